"""`retro`: it lists the commands, hands on their arguments and exit statuses, and fills in what is left out."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from retro.base.stage import UserError
from retro.tools import cli, docs
from retro.tools.cli import BY_NAME, COMMANDS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = [(name, example) for name, command in BY_NAME.items() for example in command.examples]
WIDTH = 80  # of a terminal
# A module that other tests of this process have imported is run once more, by its name.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a Snakefile and two datasets, of which `open-book` is the newer."""
    (tmp_path / "Snakefile").write_text("")
    for age, name in enumerate(("open-book", "older")):
        folder = tmp_path / "results" / name
        for run in ("gpt-s1", "retro-s1"):
            (folder / "runs" / run).mkdir(parents=True)
            (folder / "runs" / run / "model.json").write_text("{}")
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (1000 - age, 1000 - age))
        (folder / "summary.csv").write_text("run,retrieval\ngpt-s1,none\nretro-s1,on\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def retro(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `retro` with these words says, started as a user does."""
    command = [sys.executable, "-c", "from retro.tools.cli import start; start()", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(WIDTH), **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def plain(text: str) -> str:
    """Without the colours and frames of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", "", text)


# The list


@pytest.mark.slow
def test_help_lists_every_command_in_its_group_in_one_line_each():
    done = retro("--help")
    assert done.returncode == 0 and not done.stderr
    said = plain(done.stdout)
    for panel, group in COMMANDS.items():
        assert panel in said
        for name, command in group.items():
            assert re.search(rf"^\s*{name}\s+{re.escape(command.about)}\s*$", said, re.MULTILINE), name


@pytest.mark.slow
def test_retro_alone_is_help():
    assert "Usage: retro" in plain(retro().stdout)


def test_help_imports_neither_torch_nor_snakemake():
    code = "import sys; from retro.tools.cli import start\ntry: start()\nfinally: print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "snakemake", "numpy", "pandas", "faiss", "transformers", "matplotlib"}


def test_the_page_is_current():
    assert docs.COMMANDS_PAGE.read_text(encoding="utf-8") == docs.commands(), "run: python -m retro.tools.docs"


def test_the_installed_script_calls_it():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["retro"].partition(":")
    assert getattr(import_module(module), function) is cli.start


@pytest.mark.parametrize("name", BY_NAME)
def test_every_command_runs_modules_that_there_are(name):
    for module in filter(None, (BY_NAME[name].module, BY_NAME[name].other[1])):
        assert "command.run(main)" in ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")


# Arguments


@pytest.mark.parametrize("name", BY_NAME)
def test_help_of_a_command_is_its_modules_with_examples(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["retro", name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert said.startswith(f"usage: retro {name} ") and "\nexamples:\n" in said
    assert 1 <= len(BY_NAME[name].examples) <= 2
    for example in BY_NAME[name].examples:
        assert example.split()[:2] == ["retro", name] and f"\n  {example}\n" in said


class Taken(Exception):
    """The parser took a command line."""


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_example_is_a_command_line_that_its_module_takes(name, example, project, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def taken(self, *given):
        raise Taken(parse(self, *given))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", taken)
    monkeypatch.setattr(sys, "argv", shlex.split(example))
    with pytest.raises(Taken):
        cli.main()


def test_what_follows_a_command_is_handed_on_as_it_is(project):
    given = ["--cores", "2", "--config", "a b.yaml", "-x", "--", "all"]
    assert cli.line("run", given) == ("retro.tools.run", given)
    assert cli.line("validate", given) == ("retro.tools.run", ["validate", *given])
    assert cli.line("plan", []) == ("retro.planning.plan", [])


def test_a_flag_chooses_another_module():
    assert cli.line("export", ["--megatron", "M", "S"]) == ("retro.interop.megatron", ["export", "M", "S"])


# What is left out


def test_the_newest_dataset_is_taken_and_said(project, capsys):
    found = "results/open-book/config.json"
    assert cli.line("show", ["--text", "x"])[1] == ["--config", found, "--text", "x"]
    assert capsys.readouterr().err == f"taken: {found} (--config names another)\n"


def test_so_is_the_run_that_its_report_is_about(project, capsys):
    assert cli.line("write", ["--prompt", "x"])[1] == ["--run", "results/open-book/runs/retro-s1", "--prompt", "x"]
    assert "taken: results/open-book/runs/retro-s1" in capsys.readouterr().err


def test_and_its_folder(project, capsys):
    assert cli.line("verify", ["--quick"])[1] == ["results/open-book", "--quick"]
    assert cli.line("verify", ["results/older"])[1] == ["results/older"]
    assert capsys.readouterr().err == "taken: results/open-book\n"


@pytest.mark.parametrize("given", [["--config", "older"], ["--config=older"], ["--help"], ["-h"]])
def test_what_is_given_is_not_replaced(given, project, capsys):
    assert cli.line("show", given)[1] == given
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, command in BY_NAME.items() if command.needs])
def test_where_nothing_was_made_a_command_says_how_to_make_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    with pytest.raises(UserError, match=r"no dataset there\. `retro run` makes one"):
        cli.line(name, [])


# Errors and exit statuses


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in BY_NAME.items() if command.workflow or command.needs])
def test_outside_the_project_one_sentence_says_where_to_go(name, tmp_path):
    done = retro(name, folder=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert re.match(rf"error: {tmp_path}: (no|neither results nor a) Snakefile here, which `retro {name}`", done.stderr)
    assert done.stderr.endswith(f"cd {ROOT}\n")


@pytest.mark.slow
def test_a_wrong_command_is_answered_with_all_and_the_nearest():
    done = retro("shwo")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"commands: {', '.join(BY_NAME)}; did you mean show?" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["plan", "nowhere.yaml"], 1, "error: nowhere.yaml: no such config file"),
        (["plan", "--cores", "none"], 2, "retro plan: error: argument --cores"),
        (["plan", "config/tiny.yaml", "--json"], 0, ""),
    ],
)
def test_statuses_and_messages_are_the_modules(words, status, said):
    done = retro(*words)
    assert done.returncode == status and "Traceback" not in done.stderr
    assert said in done.stderr
    if status == 0:
        assert json.loads(done.stdout)["counts"]["documents"] > 0


# Completion


def completed(*words: str, folder: Path = ROOT) -> list[str]:
    """What bash is told that the last word may become."""
    line = " ".join(["retro", *words])
    return retro(
        folder=folder, _RETRO_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words))
    ).stdout.split()


@pytest.mark.slow
def test_the_shell_completes_commands():
    assert completed("ex") == ["experiments", "export"]
    assert set(completed("")) == set(BY_NAME)


@pytest.mark.slow
def test_and_options_of_a_command():
    assert completed("write", "--top") == ["--top-k", "--top-p"]
    assert "--utilisation" in completed("plan", "--")


@pytest.mark.slow
def test_and_runs_after_run(project):
    assert completed("write", "--run", "results/open-book/runs/r", folder=project) == [
        "results/open-book/runs/retro-s1"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_the_shell_is_printed(shell):
    said = retro(_RETRO_COMPLETE=f"source_{shell}").stdout
    assert "_RETRO_COMPLETE" in said and "retro" in said
