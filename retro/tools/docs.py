"""Write what the docs say of the code: config/README.md, config/schema.json, docs/commands.md, the list of messages.

The config's pages come from the settings' own descriptions, the commands from the table of `retro.tools.cli`. The list
of messages, in docs/troubleshooting.md, is read
from the code, so that it is complete: what `UserError` and its like are given, what settings refuse. Placeholders are
shown as <name>, or as … where no name says what stands there.
"""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from retro.base import provenance
from retro.base.stage import settings_in
from retro.base.texts import called, walk
from retro.config.schema import PRESETS, Config
from retro.tools.cli import COMMANDS, Command

PACKAGE = provenance.ROOT
PAGE = PACKAGE.parent / "docs/troubleshooting.md"
MARK = "<!-- From here on made by `python -m retro.tools.docs`; do not edit. -->"
# Calls that take a message, and which argument it is.
TAKES = {"UserError": 0, "WorkflowError": 0, "ArgumentTypeError": 0, "Malformed": 2, "Damaged": 0, "_broken": 0}
PARTS = {
    "Malformed": "<path>, line <line>: {}. Correct it, or set dataset.on_error to skip …",
    "Damaged": "<path>, line <line>: {}. Correct it, or set dataset.on_error to skip …",
    "_broken": "<path>: {}. Copy it again, or delete it and run snakemake to rebuild it.",
}  # of calls that are told a part of the message only
ROOMS = {
    "config": "Config",
    "base": "Files and stages",
    "tools": "Tools",
    "corpus": "Corpus",
    "database": "Chunks and embeddings",
    "retrieval": "Index and neighbours",
    "model": "Model settings",
    "training": "Training",
    "dataset": "Recorded config",
    "evaluation": "Evaluation",
    "generation": "Generation",
    "qa": "Question answering",
    "experiments": "Experiments",
    "report": "Report",
    "planning": "Planning",
    "interop": "Other projects' checkpoints",
    "validate": "Validation",
    "bench": "Benchmarks",
}


SETTINGS = ("settings.py", "stage.py", "schema.py", "layers.py", "checks.py")  # what refuses values


class Module:
    """The messages of one file of the package."""

    def __init__(self, path: Path):
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.settings = path.name in SETTINGS
        self.functions = {node.name: node for node in walk(self.tree) if isinstance(node, ast.FunctionDef)}
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
        for node in walk(self.tree):
            if isinstance(node, ast.Call):
                name = called(node.func)
                at = 0 if self.settings and name == "ValueError" else TAKES.get(name)
                if at is not None and len(node.args) > at:
                    yield from self._texts(node.args[at], name)
            elif isinstance(node, ast.Yield) and self.settings and node.value is not None:
                yield from self._texts(node.value)

    def _texts(self, node: ast.expr, name: str = "") -> Iterator[str]:
        """The texts an argument stands for: itself, or what the function that it calls returns."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
            for inner in walk(self.functions[node.func.id]):
                if isinstance(inner, ast.Return) and inner.value is not None:
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


@cache
def modules() -> dict[Path, Module]:
    """All files of the package."""
    return {path: Module(path) for path in sorted(PACKAGE.rglob("*.py"))}


def listed() -> dict[str, list[str]]:
    """Messages by room, each once, in the order of their text."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path, module in modules().items():
        found.setdefault(path.relative_to(PACKAGE).parts[0], set()).update(module.messages())
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


def write_messages() -> None:
    written, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(written + section(), encoding="utf-8")


FOLDER = PRESETS.parent
EDITOR = "yaml-language-server: $schema="  # the first line of a config, for editors
INTRODUCTION = """# Configuration

Made by `python -m retro.tools.docs` from the settings' own descriptions; do not edit.

A config file is YAML. It may name a `preset`, whose values it overrides key by key. Unknown keys are refused.
`config.yaml` is the default; another file is chosen by `make run CONFIG=config/tiny.yaml` or
`snakemake --configfile config/tiny.yaml`. `retro new PATH` writes one for your own text.

Editors that speak YAML (VS Code with the YAML extension, Neovim and others with yaml-language-server) complete keys and
underline what is wrong, if the first line is `# yaml-language-server: $schema=config/schema.json`, the path being
relative to the file. The schema knows types and keys; what keys say against each other is told when the config is read.

| file | what it runs |
|---|---|
"""


def readme() -> str:
    """The text of config/README.md."""
    lines = [INTRODUCTION.rstrip("\n")]
    for path in sorted(FOLDER.glob("*.yaml")) + sorted(PRESETS.glob("*.yaml")):
        lines.append(f"| {path.relative_to(FOLDER)} | {_first_comment(path)} |")
    lines += ["", "## Keys", "", "Changing a key makes again what depends on it, and nothing else.", ""]
    _section(Config, "", lines)
    return "\n".join(lines) + "\n"


def _first_comment(path: Path) -> str:
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if line.startswith(f"# {EDITOR}"):
            continue
        words.append(line.lstrip("# "))
    return " ".join(words)


def _section(model: type[BaseModel], prefix: str, lines: list[str]) -> None:
    """A table of a section's own keys, then one for each section inside it."""
    inner = []
    assert model.__doc__ is not None
    lines += [f"### `{prefix or 'top level'}`", "", model.__doc__.strip().splitlines()[0], ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    for attribute, field in model.model_fields.items():
        name = field.alias or attribute
        key = f"{prefix}.{name}" if prefix else name
        inside = settings_in(field.annotation)
        if inside is not None:
            path = f"{key}.<name>" if "dict" in str(field.annotation) else key
            inner.append((inside, path))
        default = "see below" if inside is not None else _default(field)
        text = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {text} |")
    lines.append("")
    for inside, path in inner:
        _section(inside, path, lines)


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if value is None:
        return "none"
    return f"`{json.dumps(value)}`".replace("|", "\\|")


def schema() -> str:
    """The text of config/schema.json, for editors that complete and check YAML.

    It requires no key: what one file leaves out, its preset may give.
    """
    found = _optional(Config.model_json_schema())
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _optional(node: Any) -> Any:
    """A schema without its lists of required keys."""
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not (key == "required" and isinstance(value, list))}
        return {key: _optional(value) for key, value in kept.items()}
    return [_optional(each) for each in node] if isinstance(node, list) else node


def write_config_docs() -> None:
    (FOLDER / "README.md").write_text(readme(), encoding="utf-8")
    (FOLDER / "schema.json").write_text(schema(), encoding="utf-8")


COMMANDS_PAGE = PACKAGE.parent / "docs/commands.md"
COMMANDS_BEGIN = """# Commands

Made by `python -m retro.tools.docs` from the table in `retro/tools/cli.py`; do not edit.

`. .venv/bin/activate` puts `retro` on the PATH. `retro --help` lists its commands, `retro COMMAND --help` the arguments
of one. `retro --install-completion` lets the shell complete commands, options and runs. Commands that run Snakemake
want the project's folder; the others find datasets and runs below `results`. `make run`, `snakemake …` and
`python -m …` do the same.

A run is named as the report names it (`retro-s1`) or by its folder, a dataset by its name, its folder or its
config.json. What is left out is taken from the newest dataset below `results`, and said.
"""


def commands() -> str:
    """The text of docs/commands.md."""
    lines = [COMMANDS_BEGIN]
    for group, found in COMMANDS.items():
        lines += [f"## {group}", "", "| command | what it does | without `retro` |", "|---|---|---|"]
        lines += [f"| `retro {name}` | {each.about} | `{_plainly(each)}` |" for name, each in found.items()]
        lines += ["", *(f"    {example}" for each in found.values() for example in each.examples), ""]
    return "\n".join(lines)


def _plainly(command: Command) -> str:
    """How a command is called without `retro`."""
    return " ".join(["python -m", command.module, *command.words])


def main() -> None:
    COMMANDS_PAGE.write_text(commands(), encoding="utf-8")
    write_config_docs()
    write_messages()


if __name__ == "__main__":
    main()
