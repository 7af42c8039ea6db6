"""Every module that can be run: its --help, and what it says to paths and JSON that are not what it wants."""

import argparse
import importlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from retro.base import stage
from retro.base.stage import given
from retro.tools import run

pytestmark = pytest.mark.slow  # every command against every mistake: many seconds

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "retro").rglob("*.py"))
    if "run(main)" in path.read_text(encoding="utf-8") and "os.execv(" not in path.read_text(encoding="utf-8")
    if path.name != "cli.py"
]  # but those that become the trainer, or any of these (tests/tools/test_cli.py), which have turns of their own
SEVERAL = {  # modules of several commands, which their first word names
    "retro.bench.beside_peer": ("step", "write", "index"),
    "retro.bench.model": ("step", "write"),
    "retro.bench.preprocessing": ("embed", "search"),
}
COMMANDS = [f"{name} {word}".strip() for name in MODULES for word in SEVERAL.get(name, ("",))]
# Commands that can be run without naming a file.
NAMELESS = {"retro.tools.audit", "retro.bench.corpus", "retro.bench.device", "retro.validate.recompute"}
NAMELESS |= {f"{name} {word}" for name, words in SEVERAL.items() for word in words} - {"retro.bench.model write"}
FACTS = ("files", "counts", "inputs")
MANIFESTS = (  # kinds of artifacts
    "tokenizer", "tokens", "duplicates", "chunks", "embeddings", "database", "index", "neighbours", "model", "losses",
    "overlap",
)  # fmt: skip
# What a path may lead to by mistake: the content of the file, None for nothing there, or how it is made.
MISTAKES: dict[str, str | bytes | Callable[[Path], object] | None] = {
    "nothing": None,
    "folder": Path.mkdir,
    "named pipe": os.mkfifo,
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "empty": "",
    "list": "[]",
    "object": "{}",
    "cut": '{"files": {"a": ',
    "binary": "\x00\x93NUMPY\x01",
    "other": json.dumps({"format": 1, "kind": "x", "stage": "x", "settings": {}} | {key: {} for key in FACTS}),
    "config": json.dumps({"kind": "recorded config", "manifests": {}}),
    "Latin-1": b'{"kind": "caf\xe9"}\n',
    "UTF-16": '{"kind": "tokens"}\n'.encode("utf-16"),
    "text": "A line that is no JSON.\n",
    "number": "5\n",
    "deep": "[" * 100_000,
}
OF_TOKENS = {"format": 1, "kind": "tokens", "stage": "x"}
MISTAKES["manifest without a key"] = json.dumps({**OF_TOKENS, "files": {}})
MISTAKES["manifest with lists for objects"] = json.dumps({**OF_TOKENS, "settings": []} | {key: [] for key in FACTS})
for kind in MANIFESTS:  # of the right kind, with nothing in it that is looked for
    MISTAKES[kind] = json.dumps({**OF_TOKENS, "kind": kind, "settings": {}} | {key: {} for key in FACTS})


class Seen(Exception):
    """The parser of a command, its commands below included, before it parses."""


def opened(command: str, monkeypatch) -> tuple[ModuleType, list[str]]:
    """The module of a command, and the words that choose the command in it; they are the command line."""
    name, *chosen = command.split()
    monkeypatch.setattr(sys, "argv", ["python -m", *chosen])
    return importlib.import_module(name), chosen


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


@contextmanager
def no_wait() -> Iterator[None]:
    """What waits for a pipe waits for ever: let it fail instead."""

    def stop(*_: object) -> None:
        raise AssertionError("waits for something that never comes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_every_room_with_commands_is_looked_at():
    assert len(MODULES) > 40
    assert {name for name in MODULES if "one_of(" in (ROOT / f"{name.replace('.', '/')}.py").read_text()} == set(
        SEVERAL
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_argument(command, monkeypatch, capsys):
    module, chosen = opened(command, monkeypatch)
    parser = parser_of(module, monkeypatch)
    assert parser.description and len(parser.description) > 20
    assert ("given.json" in words(parser, "given.json")) == (command not in NAMELESS)
    monkeypatch.setattr(sys, "argv", ["python -m", *chosen, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in NAMELESS])
def test_what_is_not_wanted_is_said_in_words(command, mistake, tmp_path, monkeypatch, capsys):
    module, chosen = opened(command, monkeypatch)
    line = [*chosen, *words(parser_of(module, monkeypatch), "given.json")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    content = MISTAKES[mistake]
    if isinstance(content, str | bytes):
        Path("given.json").write_bytes(content.encode() if isinstance(content, str) else content)
    elif content is not None:
        content(Path("given.json"))
    with no_wait():
        status, said = ended(module, line, monkeypatch, capsys)
    assert status in (1, 2)
    assert said.count("error: ") == 1 and len(said.strip().splitlines()[-1]) > 15 and "Traceback" not in said


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument, those of the commands below included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inside in action.choices.values():
                yield from actions(inside)
        else:
            yield action


@pytest.mark.parametrize("command", COMMANDS)
def test_no_number_is_nan_or_infinite(command, monkeypatch):
    module, _ = opened(command, monkeypatch)
    for action in actions(parser_of(module, monkeypatch)):
        number = action.type is not None and action.type is not Path and _takes(action.type, "1")
        if number and action.dest != "mode":
            found = [text for text in ("nan", "inf", "-Infinity", "1e999") if _takes(action.type, text)]
            assert not found, action.dest


@pytest.mark.parametrize("text", ['{"temperature": NaN}', '{"lr": [-Infinity]}', '{"a": {"b": 1e999}}'])
def test_nor_is_one_inside_settings(text):
    with pytest.raises(argparse.ArgumentTypeError, match="wanted a finite number"):
        given(text)


@pytest.mark.parametrize("command", COMMANDS)
def test_threads_and_other_counts_begin_at_1(command, monkeypatch):
    module, _ = opened(command, monkeypatch)
    for action in actions(parser_of(module, monkeypatch)):
        if action.dest in ("threads", "block", "sample", "k", "cores", "steps") and action.type is not None:
            assert [text for text in ("0", "-1", "1.5", str(10**30)) if _takes(action.type, text)] == [], action.dest


def _takes(kind, text: str) -> bool:
    try:
        kind(text)
    except (argparse.ArgumentTypeError, ValueError, stage.UserError):
        return False
    return True


def test_a_terminal_without_our_characters_is_given_their_numbers(monkeypatch):
    """PYTHONIOENCODING=ascii, or a locale that knows no dash."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def main() -> None:
        print("Évian — a title", flush=True)
        raise stage.UserError("Évian: no such document. Give another.")

    with pytest.raises(SystemExit):
        stage.run(main)
    assert streams["stdout"].buffer.getvalue() == b"\\xc9vian \\u2014 a title\n"
    assert streams["stderr"].buffer.getvalue().startswith(b"error: \\xc9vian: no such")


def test_standard_input_is_utf_8_whatever_the_terminal_is():
    typed = io.TextIOWrapper(io.BytesIO("Évian\r\n".encode()), encoding="ascii")
    assert stage.text_of(typed, "standard input") == "Évian\n"
    with pytest.raises(stage.UserError, match="standard input: byte 1 is not UTF-8"):
        stage.text_of(io.TextIOWrapper(io.BytesIO("aÉ".encode("latin-1"))), "standard input")


def test_an_argument_that_is_not_utf_8_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python -m", "--prompt", b"caf\xe9".decode("utf-8", "surrogateescape")])
    with pytest.raises(SystemExit):
        stage.run(lambda: None)
    assert "error: the argument 'caf\\udce9' is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("home", ["/dev/null/nobody", "/proc/nobody"])
def test_caches_lie_beside_the_run_where_home_cannot_be_written_to(home, tmp_path, monkeypatch, capsys):
    """Snakemake would end with a traceback before it reads a rule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", "unset")  # so that it is put back
    monkeypatch.setattr(os, "environ", os.environ.copy())
    run.cache_elsewhere()
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / ".snakemake/cache")
    assert os.environ["MPLCONFIGDIR"].startswith(str(tmp_path))
    assert capsys.readouterr().err.count("\n") == 1


def test_caches_stay_at_home_where_there_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    run.cache_elsewhere()
    assert "XDG_CACHE_HOME" not in os.environ and not capsys.readouterr().err


def test_make_report_makes_the_folder_it_writes_into():
    """Snakemake would end with a traceback after all its work."""
    command = ["make", "--no-print-directory", "-n", "report"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    words = shlex.split(lines[-1])
    folder = words[words.index("--report") + 1].rpartition("/")[0]
    assert f"mkdir -p {folder}" in lines[-2]
