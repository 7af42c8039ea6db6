"""Names and texts that would like to be executed."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.faults.conftest import go_on
from tests.told import tell
from tests.workflow.conftest import ROOT, Project

HOSTILE = [
    "with space.jsonl",
    "quote's.jsonl",
    'double".jsonl',
    "semi;touch pwned;.jsonl",
    "$(touch pwned).jsonl",
    "`touch pwned`.jsonl",
    "&& touch pwned #.jsonl",
    "line\nbreak.jsonl",
    "{wildcards.source}.jsonl",
    "-rf.jsonl",
    "ünï–код.jsonl",
]


def with_source(project: Project, path: str, **dataset) -> None:
    settings = {"preset": "config/tiny.yaml", "dataset": {"sources": {"tiny": {"path": path}}, **dataset}}
    (project.folder / "config/hostile.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_names_are_only_names(tmp_path, name):
    project = Project.create(tmp_path / "project")
    (project.folder / "data/here").mkdir()
    shutil.copy(project.folder / "data/tiny.jsonl", project.folder / "data/here" / name)
    with_source(project, f"data/here/{name}")
    done = project.snakemake("results/tiny/chunks/tiny/manifest.json", config="config/hostile.yaml")
    assert not list(project.folder.rglob("pwned"))
    assert "Traceback" not in done.stdout
    if done.returncode:
        assert name.splitlines()[0][:4] in done.stdout, done.stdout[-2000:]  # refused, the file named
    tell(f"corpus file {name!r}: {'taken as a name' if done.returncode == 0 else 'refused'}")


@pytest.mark.parametrize("key", ["source", "dataset", "run"])
@pytest.mark.parametrize("name", ["../up", "a b", "x;touch pwned", "$(touch pwned)", "a\nb", "", "'", "..", "/abs"])
def test_hostile_names_in_the_config_are_refused(tmp_path, key, name):
    project = Project.create(tmp_path / "project")
    settings = {"preset": "config/tiny.yaml"}
    if key == "source":
        settings["dataset"] = {"sources": {name: {"path": "data/tiny.jsonl"}}}
    elif key == "dataset":
        settings["dataset"] = {"name": name}
    else:
        settings["runs"] = {name: {"architecture": "gpt"}}
    (project.folder / "config/hostile.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = project.snakemake("--dry-run", "all", config="config/hostile.yaml")
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout[-2000:]
    assert not list(project.folder.rglob("pwned"))


def test_a_results_folder_with_a_space_and_a_quote(finished, tmp_path):
    project = Project.create(tmp_path / "project")
    (project.folder / "config/where.yaml").write_text(
        yaml.safe_dump({"preset": "config/tiny.yaml", "results": "my results'; touch pwned #"}), encoding="utf-8"
    )
    done = project.snakemake("all", config="config/where.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    made = project.folder / "my results'; touch pwned #/tiny/runs/retro-s1/model.safetensors"
    assert made.read_bytes() == finished.results("runs/retro-s1/model.safetensors").read_bytes()
    assert not list(project.folder.rglob("pwned"))
    tell("a results folder with space, quote and semicolon: the same weights, nothing executed")


def test_markup_in_a_corpus_stays_text(tmp_path):
    project = Project.create(tmp_path / "project")
    corpus = project.folder / "data/tiny.jsonl"
    lines = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    evil = "<script>alert('pwned')</script><img src=x onerror=alert(1)> "
    for record in lines:
        record["text"] = evil + record["text"].replace(". ", f". {evil}")
        record["id"] = f"{evil}{record['id']}"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in lines), encoding="utf-8")
    done = go_on(project)
    assert done.returncode == 0, done.stdout[-3000:]
    for page in project.results("").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text and "<img src=x" not in text, page.name
        assert "alert(" in text or page.name == "report.html"
    tell("a corpus of script tags: every page shows them as text")


def calls(tree: ast.AST):
    """Dotted names called, with their keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_nothing_that_executes_data():
    found = 0
    for path in [*Path(ROOT / "retro").rglob("*.py")]:
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
