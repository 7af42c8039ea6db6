"""List every message of the package in docs/troubleshooting.md: `python -m retro.messages`.

Read from the code, so that the list is complete: what `UserError` and its like are given, what settings refuse.
Placeholders are shown as <name>, or as … where no name says what stands there.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from retro import provenance

PACKAGE = provenance.ROOT
PAGE = PACKAGE.parent / "docs/troubleshooting.md"
MARK = "<!-- From here on made by `python -m retro.messages`; do not edit. -->"
# Calls that take a message, and which argument it is.
TAKES = {"UserError": 0, "WorkflowError": 0, "ArgumentTypeError": 0, "Malformed": 2, "Damaged": 0, "_broken": 0}
PARTS = {
    "Malformed": "<path>, line <line>: {}. Correct it, or set dataset.on_error to skip …",
    "Damaged": "<path>, line <line>: {}. Correct it, or set dataset.on_error to skip …",
    "_broken": "<path>: {}. Copy it again, or delete it and run snakemake to rebuild it.",
}  # of calls that are told a part of the message only
ROOMS = {
    "": "Config, files, archive",
    "corpus": "Corpus",
    "database": "Chunks and embeddings",
    "retrieval": "Index and neighbours",
    "model": "Model settings",
    "training": "Training",
    "evaluation": "Evaluation and generation",
    "qa": "Question answering",
    "experiments": "Experiments",
    "report": "Report",
    "planning": "Planning",
    "interop": "Other projects' checkpoints",
}


SETTINGS = ("settings.py", "config.py", "retrievals.py", "config_checks.py", "config_names.py")  # what refuses values


class Module:
    """The messages of one file of the package."""

    def __init__(self, path: Path):
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.settings = path.name in SETTINGS
        self.functions = {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)}
        self.constants = {
            target.id: node.value.value
            for node in self.tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def messages(self) -> Iterator[str]:
        """Each message, in the order of the file."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                at = 0 if self.settings and name == "ValueError" else TAKES.get(name)
                if at is not None and len(node.args) > at:
                    yield from self._texts(node.args[at], name)
            elif isinstance(node, ast.Yield) and self.settings and node.value is not None:
                yield from self._texts(node.value)

    def _texts(self, node: ast.expr, name: str = "") -> Iterator[str]:
        """The texts an argument stands for: itself, or what the function that it calls returns."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
            for inner in ast.walk(self.functions[node.func.id]):
                if isinstance(inner, ast.Return):
                    yield from self._texts(inner.value, name)
        else:
            text = " ".join(self._text(node).split())
            if len(re.sub("<[^>]*>", "", text)) > 8:  # more than placeholders
                yield PARTS.get(name, "{}").format(text)

    def _text(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(
                    self._text(part.value if isinstance(part, ast.FormattedValue) else part) for part in parts
                )
            case ast.BinOp(left=left, op=ast.Add(), right=right) if not isinstance(left, ast.Name):
                return self._text(left) + self._text(right)
            case ast.Name(id=name) if name in self.constants:
                return self.constants[name]
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="format")) if name in self.constants:
                return self.constants[name].replace("{", "<").replace("}", ">")
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return f"<{name}>"
        return "…"


def listed() -> dict[str, list[str]]:
    """Messages by room, each once, in the order of their text."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in sorted(PACKAGE.rglob("*.py")):
        folder, *_ = path.relative_to(PACKAGE).parts
        found[folder if folder in ROOMS else ""].update(Module(path).messages())
    return {room: sorted(messages) for room, messages in found.items() if messages}


def section() -> str:
    """The end of the page."""
    lines = [MARK, "", "## All messages", "", "By part of the pipeline; `<name>` and `…` stand for what was found.", ""]
    for room, messages in listed().items():
        lines += [f"### {ROOMS[room]}", "", *map(_code, messages), ""]
    return "\n".join(lines)


def _code(message: str) -> str:
    """A line of the list. Two backticks enclose text that has one."""
    return f"- `` {message} ``" if "`" in message else f"- `{message}`"


def main() -> None:
    written, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(written + section(), encoding="utf-8")


if __name__ == "__main__":
    main()
