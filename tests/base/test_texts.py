"""What a person is told changes no digest; what is kept, and that something is told, does."""

import ast
from pathlib import Path

import pytest

from retro.base import provenance, texts
from retro.base.definitions import Module
from retro.base.provenance import Package
from retro.tools import docs
from tests.base.watched import ROOT, STAGES

RESULTS = {"Malformed", "Damaged"}  # errors whose reason is written to skipped.jsonl
HEAD = "import sys\nfrom retro.a import UserError, Malformed, helper, say\nfrom retro.a import Field, bar, log, w\n"


@pytest.fixture
def digest(tmp_path):
    """The digest of a stage whose module is given."""

    def take(text):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        root.mkdir()
        (root / "__init__.py").write_text("")
        lines = ["UserError = Malformed = helper = say = Field = bar = log = 1", "w = 'way out'"]
        (root / "a.py").write_text("\n".join(lines))
        (root / "stage.py").write_text(HEAD + text)
        return Package(root).digest("retro.stage")

    return take


def main(line, before=""):
    return f"{before}\ndef main(x, y):\n    {line}\n"


TEXT = {
    "a message": ("raise UserError('a')", "raise UserError('b')"),
    "a message with values": ("raise UserError(f'a {x}')", "raise UserError(f'b {y.z[0]:.2f} {len(x)}')"),
    "a message in pieces": ("raise UserError('a' + w)", "raise UserError('b')"),
    "a list in a message": ("raise ValueError('a')", "raise ValueError(f'a {\", \".join(sorted(map(str, x)))}')"),
    "an error that is returned": ("return UserError('a')", "return UserError('b')"),
    "what is said": ("say('a')", "say(f'b {x}')"),
    "a line for the log": ("print('a', file=sys.stderr)", "print('b', x, file=sys.stderr)"),
    "a label": ("bar(x, 'a', 'chunk')", "bar(x, 'b', 'row')"),
    "a label, by its module": ("log.bar(x, 'a', 'chunk')", "log.bar(x, 'b', 'row')"),
    "an assertion": ("assert x, 'a'", "assert x"),
    "help": ("x.add_argument('--a', help='a')", "x.add_argument('--a')"),
    "a description": ("return Field(3, description='a')", "return Field(3, description=f'b {w}')"),
    "a docstring": ("'''a'''; return x", "'''b'''; return x"),
}
CODE = {
    "another error": ("raise UserError('a')", "raise ValueError('a')"),
    "a condition": ("if x: raise UserError('a')", "if y: raise UserError('a')"),
    "no error": ("raise UserError('a')", "return"),
    "a reason that is kept": ("raise Malformed(x, 1, 'a')", "raise Malformed(x, 1, 'b')"),
    "a call in a message": ("raise UserError(f'a {x.pop()}')", "raise UserError('a')"),
    "a function of another module in a message": ("say(helper(x))", "say(x)"),
    "a function that is handed over": ("say(list(map(helper, x)))", "say(list(map(str, x)))"),
    "a key": ("say(sorted(x, key=lambda y: x.append(y)))", "say(sorted(x))"),
    "an assignment in a message": ("say(f'a {(y := x)}')", "say('a')"),
    "a line on stdout": ("print('a')", "print('b')"),
    "a line of a file": ("print('a', file=x)", "print('b', file=x)"),
    "a bar of a figure": ("x.bar([1], ['a'])", "x.bar([1], ['b'])"),
    "a total": ("bar(1, 'a', 'chunk')", "bar(2, 'a', 'chunk')"),
    "a default": ("return Field(3, description='a')", "return Field(4, description='a')"),
    "an argument": ("x.add_argument('--a', help='a')", "x.add_argument('--b', help='a')"),
    "a description of something else": ("return helper(description='a')", "return helper(description='b')"),
    "text that is no message": ("return 'a'", "return 'b'"),
}


@pytest.mark.parametrize("what", TEXT)
def test_no_result_depends_on(digest, what):
    before, after = TEXT[what]
    assert digest(main(before)) == digest(main(after))


@pytest.mark.parametrize("what", CODE)
def test_a_result_may_depend_on(digest, what):
    before, after = CODE[what]
    assert digest(main(before)) != digest(main(after))


def test_a_constant_and_a_function_that_only_messages_use_are_text(digest):
    before = "KEY = 'a'\ndef told(x):\n    if x:\n        return f'{x} {KEY}'\n    return KEY"
    line = "raise UserError(f'a {told(x)}')"
    assert digest(main(line, before)) == digest(main(line, before.replace("'a'", "'b'").replace("if x", "if not x")))
    assert digest(main("return told(x)", before)) != digest(main("return told(x)", before.replace("'a'", "'b'")))


def test_a_function_that_does_more_than_to_format_counts_in_a_message(digest):
    for body in ("x.n = 1", "x[0] = 1", "x.append(1)", "for y in x: pass", "global G; G = 1", "open(x)"):
        before = f"def told(x):\n    {body}\n    return 'a'"
        assert digest(main("say(told(x))", before)) != digest(main("say(told(x))", before.replace("'a'", "'b'"))), body


def test_text_of_an_error_of_ours_that_is_kept_counts(digest):
    """An error that hands its text on to `UserError` and keeps a part: the part counts, the text does not."""
    lines = ["class Wrong(UserError):", "    def __init__(self, why):"]
    before = "\n".join([*lines, "        super().__init__(f'a {why}')", "        self.why = 1"])
    assert digest(main("raise Wrong(x)", before)) == digest(main("raise Wrong(x)", before.replace("'a ", "'b ")))
    assert digest(main("raise Wrong(x)", before)) != digest(
        main("raise Wrong(x)", before.replace("why = 1", "why = 2"))
    )


class Reword(ast.NodeTransformer):
    """Adds a word to all text for people, found in another way than `retro.base.texts` does."""

    count = 0

    def told(self, node: ast.AST | None) -> None:
        """Add the word to a string, and to the literal parts of what is put together from strings."""
        match node:
            case ast.Constant(value=str(text)):
                node.value = f"{text} reworded"
                self.count += 1
            case ast.JoinedStr(values=parts):
                for part in parts:
                    self.told(part)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                self.told(left)
                self.told(right)
            case ast.IfExp(body=body, orelse=other):
                self.told(body)
                self.told(other)

    def visit_Raise(self, node):
        name = ast.unparse(node.exc.func).rpartition(".")[2] if isinstance(node.exc, ast.Call) else ""
        if name in ("UserError", "ValueError", "TypeError", "ArgumentTypeError", "_broken"):
            for argument in node.exc.args:
                self.told(argument)
        return self.generic_visit(node)

    def visit_Assert(self, node):
        self.told(node.msg)
        return node

    def visit_Expr(self, node):
        """Docstrings, and calls that are made for what they show."""
        self.told(node.value if isinstance(node.value, ast.Constant) else None)
        words = ast.unparse(node)
        if words.startswith(("say(", "warn(")) or (words.startswith("print(") and "file=sys.stderr" in words):
            for argument in node.value.args:
                self.told(argument)
        return self.generic_visit(node)

    def visit_withitem(self, node):
        call = node.context_expr
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("bar", "log.bar"):
            for argument in call.args[1:]:
                self.told(argument)
        return self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg in ("help", "description", "epilog"):
            self.told(node.value)
        return self.generic_visit(node)


def test_rewording_everything_that_people_are_told_reruns_nothing(tmp_path):
    here = Package(ROOT / "retro")
    count = 0
    for path in sorted(here.root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        reword = Reword()
        there = tmp_path / path.relative_to(here.root)
        there.parent.mkdir(exist_ok=True)
        there.write_text(ast.unparse(reword.visit(tree)), encoding="utf-8")
        count += reword.count
    assert count > 2000
    assert "reworded" in (tmp_path / "base/artifacts.py").read_text(encoding="utf-8")
    there = Package(tmp_path)
    assert {stage: there.digest(stage) for stage in STAGES} == {stage: here.digest(stage) for stage in STAGES}


def reruns(tmp_path, path, old, new):
    """Stages that one edit of a module makes run again. Of the others, what was read of them once is taken."""
    text = (ROOT / "retro" / path).read_text(encoding="utf-8")
    assert text.count(old) == 1
    file = tmp_path / Path(path).name
    file.write_text(text.replace(old, new), encoding="utf-8")
    name = ".".join(["retro", *Path(path).with_suffix("").parts])
    there = Package(ROOT / "retro")
    there.read = provenance.package().read | {name: Module(name, file)}
    return [stage for stage in STAGES if there.digest(stage) != provenance.digest(stage)]


def test_a_message_of_artifacts_reruns_nothing(tmp_path):
    assert (
        reruns(tmp_path, "base/artifacts.py", "no such file. Run snakemake to make it.", "is not there; make it.") == []
    )


def test_a_way_out_that_messages_share_reruns_nothing(tmp_path):
    assert reruns(tmp_path, "base/artifacts.py", "to rebuild it.", "to make it again.") == []


def test_the_help_of_a_setting_reruns_nothing(tmp_path):
    field = next(
        node
        for node in ast.walk(ast.parse((ROOT / "retro/corpus/settings.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "shingle"
    )
    text = next(word.value.value for word in field.value.keywords if word.arg == "description")
    words = text.split(".")[0][:30]
    assert reruns(tmp_path, "corpus/settings.py", words, f"Reworded: {words}") == []


def test_the_default_of_a_setting_reruns_what_reads_it(tmp_path):
    found = reruns(tmp_path, "database/settings.py", "batch_size: int = Field(32,", "batch_size: int = Field(64,")
    assert "retro.database.embed" in found and "retro.training.train" not in found


def test_the_reason_of_a_skipped_record_reruns_who_writes_it(tmp_path):
    found = reruns(
        tmp_path,
        "corpus/readers.py",
        '"the file is empty")',
        '"empty")',
    )
    assert "retro.corpus.tokenize" in found and "retro.database.chunk" not in found


# Handlers that look into an error's text for more than to tell it, and why no text of ours is a result there.
LOOKED_INTO = {
    ("corpus/readers.py", "Damaged"): "its text counts",
    ("corpus/records.py", "Damaged"): "its text counts",
    ("qa/questions.py", "Damaged"): "its text counts",
    ("corpus/records.py", "Repeated"): "its text is a key, and goes into that of Damaged, which counts",
    ("corpus/files.py", "OSError"): "the system's",
    ("corpus/files.py", "(zlib.error, zstandard.ZstdError)"): "not ours",
    ("corpus/readers.py", "UnicodeDecodeError"): "not ours",
    ("corpus/records.py", "UnicodeDecodeError"): "handed on as a mark of a cell",
    ("corpus/records.py", "(ValueError, RecursionError)"): "those of `json.loads`",
    ("corpus/records.py", "(pyarrow.ArrowException, OSError)"): "not ours",
    ("base/command.py", "UserError"): "ends in a message",
    ("base/artifacts.py", "ValueError"): "NumPy's: the handler is of one call of NumPy",
    ("base/stage.py", "(MemoryError, RuntimeError)"): "torch's and faiss's, and ends in a message",
    ("base/stage.py", "ValidationError"): "ends in a message",
    ("config/layers.py", "ValidationError"): "ends in a message",
    ("training/settings.py", "ValidationError"): "ends in a message",
    ("retrieval/factory.py", "RuntimeError"): "faiss's, and ends in a message or a line for the log",
    ("interop/infer.py", "(pickle.UnpicklingError, RuntimeError, EOFError)"): "not ours, and ends in a message",
    ("training/samples.py", "BaseException"): "raised again in another thread",
}


def test_no_stage_keeps_the_text_of_a_message():
    """Where an error is caught by name, its text goes into another message, to the log, or nowhere."""
    kept = set()
    for path in sorted({provenance.source_path(name) for stage in STAGES for name in provenance.closure(stage)}):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts.drop_texts(tree, lambda name: None)  # what is left of a message is no text
        for handler in ast.walk(tree):
            if not isinstance(handler, ast.ExceptHandler) or not handler.name:
                continue
            for node in ast.walk(handler):
                if isinstance(node, ast.Raise | ast.Attribute) or "isinstance" in ast.unparse(node):
                    continue
                if any(
                    isinstance(child, ast.Name) and child.id == handler.name for child in ast.iter_child_nodes(node)
                ):
                    kept.add((path.relative_to(ROOT / "retro").as_posix(), ast.unparse(handler.type)))
    assert kept - LOOKED_INTO.keys() == set()


def test_calls_that_take_text_are_what_their_names_say():
    """A function of one of these names, or an error, would be taken for the one that only tells."""
    known = {"say", "warn", "bar", "track", "waiting", "_broken", "UserError"}
    found = {}
    for path in provenance.ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, texts.DEFINITIONS) and node.name in texts.TAKES.keys() | texts.DESCRIBES | {"print"}:
                found.setdefault(node.name, []).append(path)
    assert found.keys() == known
    assert all(len(paths) == 1 for paths in found.values())


def test_every_call_that_takes_a_message_is_known():
    assert docs.TAKES.keys() - texts.TAKES.keys() == RESULTS


def test_no_method_of_the_package_hides_behind_the_name_of_one_that_formats():
    """A method is known by its name alone: `x.get()` in a message is taken for that of a dict."""
    names = texts.METHODS - {"join"}  # which is taken for that of a string only where it is one's
    for path in {provenance.source_path(name) for stage in STAGES for name in provenance.closure(stage)}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for part in node.body if isinstance(node, ast.ClassDef) else []:
                assert not isinstance(part, ast.FunctionDef) or part.name not in names, f"{path}: {part.name}"
