"""Every module that can be run: its --help, and what it says to paths and JSON that are not what it wants."""

import argparse
import importlib
import io
import json
import sys
from pathlib import Path

import pytest

from retro.base import stage
from retro.base.stage import given

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "retro").rglob("*.py"))
    if "errors.run(main)" in path.read_text(encoding="utf-8") and "os.execv(" not in path.read_text(encoding="utf-8")
]  # but those that become the trainer, which has its own turn
# Commands that can be run without naming a file.
NAMELESS = {"retro.tools.audit", "retro.bench.corpus"}
NAMELESS |= {f"retro.{room}.bench" for room in ("database", "retrieval", "training")}
NAMELESS |= {f"retro.{room}.bench_peer" for room in ("retrieval", "training")}
FACTS = ("files", "counts", "inputs")
# What a path may lead to by mistake: the content of the file, None for nothing there, "folder" for a folder.
MISTAKES = {
    "nothing": None,
    "folder": "folder",
    "empty": "",
    "list": "[]",
    "object": "{}",
    "cut": '{"files": {"a": ',
    "binary": "\x00\x93NUMPY\x01",
    "other": json.dumps({"format": 1, "kind": "x", "stage": "x", "settings": {}} | {key: {} for key in FACTS}),
    "config": json.dumps({"kind": "recorded config", "manifests": {}}),
}


class Seen(Exception):
    """The parser of a command, its commands below included, before it parses."""


def parser_of(module, monkeypatch) -> argparse.ArgumentParser:
    def stop(self, *_, **__):
        raise Seen(self)

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Seen) as seen:
            module.main()
    return seen.value.args[0]


def words(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """A command line with everything that is required, `path` wherever a file is wanted."""
    line = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            name, inside = next(iter(action.choices.items()))
            line += [name, *words(inside, path)]
        elif action.required or not action.option_strings:
            value = path
            if action.choices:
                value = str(next(iter(action.choices)))
            elif action.type in (int, float):
                value = "1"
            elif action.type is given or (action.dest in ("settings", "run") and action.type is None):
                value = "{}"
            line += [*action.option_strings[-1:], value]
    return line


def ended(module, line: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Exit status and what was said on stderr; anything but an exit is the traceback a user would see."""
    monkeypatch.setattr(sys, "argv", ["python -m", *line])
    with pytest.raises(SystemExit) as stopped:
        stage.run(module.main)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", MODULES)
def test_help_describes_every_argument(name, monkeypatch, capsys):
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", ["python -m", "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out
    parser = parser_of(module, monkeypatch)
    assert parser.description and len(parser.description) > 20
    assert ("given.json" in words(parser, "given.json")) == (name not in NAMELESS)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", [name for name in MODULES if name not in NAMELESS])
def test_what_is_not_wanted_is_said_in_words(name, mistake, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(name)
    line = words(parser_of(module, monkeypatch), "given.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    content = MISTAKES[mistake]
    if content == "folder":
        Path("given.json").mkdir()
    elif content is not None:
        Path("given.json").write_text(content, encoding="utf-8")
    status, said = ended(module, line, monkeypatch, capsys)
    assert status in (1, 2)
    assert "error: " in said and len(said.strip().splitlines()[-1]) > 15
