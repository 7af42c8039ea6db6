"""Nothing that comes from a corpus, a config or a file is executed: what the code itself must not contain.

`tests/faults/test_security.py` tries it.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Numbers, words that the rules or the config's patterns constrain, and the launcher's command, which the rule itself
# makes; all else is quoted by Snakemake.
BARE = re.compile(r"threads|wildcards\.[a-z]+|params\.(threads|split|bootstrap)|resources\.(mem_mb|launch|keep)")


def test_every_text_in_a_shell_command_is_quoted():
    found = 0
    for path in (ROOT / "rules").glob("*.smk"):
        text = path.read_text(encoding="utf-8")
        for _, block in re.findall(r"^( +)shell:\n((?:\1    .*\n)+)", text, re.MULTILINE):
            for word in re.findall(r"(?<!\{)\{([^{}]+)\}", block):
                assert word.endswith(":q") or BARE.fullmatch(word), f"{path.name}: {{{word}}} is not quoted"
                found += 1
    assert found > 100


# Functions that are given markup of ours, or escape by themselves.
TRUSTED = {"style.py": ("embedded", "inline_svg"), "report_page.py": ("read_parts",)}


def test_markup_is_written_by_us_alone():
    """`Markup(...)` says that a text is safe: everywhere but in three functions it is a constant."""
    found = 0
    for path in (ROOT / "retro").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        trusted = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name in TRUSTED.get(path.name, ())]
        allowed = {id(node) for function in trusted for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Markup" and id(node) not in allowed:
                unsafe = [part for part in ast.walk(node.args[0]) if isinstance(part, ast.Call | ast.JoinedStr)]
                assert not unsafe, f"{path}: {ast.unparse(node)}"
                found += 1
        assert "|safe" not in path.read_text(encoding="utf-8")
    for path in (ROOT / "retro").rglob("*.j2"):
        assert "safe" not in re.findall(r"\|\s*(\w+)", path.read_text(encoding="utf-8")), path
    for path in [*(ROOT / "retro").rglob("*.js"), *(ROOT / "retro").rglob("*.j2"), ROOT / "retro/generation/serve.py"]:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", path.read_text(encoding="utf-8")
        )
    assert found > 10


def calls(tree: ast.AST):
    """Dotted names called, with their keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_nothing_that_executes_data():
    found = 0
    for path in (ROOT / "retro").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"cPickle", "dill", "joblib", "marshal", "shelve"}, path
        for name, words in calls(tree):
            found += 1
            assert not name.startswith("pickle."), (path, name)  # its exceptions may be caught
            assert name not in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"), (path, name)
            assert words.get("shell") != "True", (path, name)
            assert words.get("allow_pickle", "False") == "False", (path, name)
            if name == "torch.load":
                assert words.get("weights_only") == "True", path
            if name == "np.load":
                assert words.get("allow_pickle") == "False" or "allow_pickle" not in words, path
    assert found > 1000
