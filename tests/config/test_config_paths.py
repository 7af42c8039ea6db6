"""Paths of a config: written out once where it is read, and the same for Snakemake, the stages and the archive."""

import shlex
import subprocess
from pathlib import Path

import pytest

from retro.base.stage import UserError, plain
from retro.config.checks import named
from retro.config.layers import merged
from retro.config.schema import parse
from retro.config.workflow import Workflow

ROOT = Path(__file__).resolve().parents[2]
LONG = "x" * 300


def config(over: dict):
    return parse(merged({"dataset": {"name": "d", "sources": {"a": {"path": "data/tiny.jsonl"}}}}, over))


def at(key: str, value) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        ("./x", "x/d"),
        ("x/", "x/d"),
        ("x//y/./", "x/y/d"),
        ("../x/", "../x/d"),
        ("/far/x/", "/far/x/d"),
        ("~/x", "/home/me/x/d"),
        ("$PLACE/x", "/disk/x/d"),
        ("${PLACE}x", "/diskx/d"),
        ("x.", "x./d"),
    ],
)
def test_the_results_folder_is_written_out(written, folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/disk")
    made = Workflow(config({"results": written}))
    assert made.folder == folder
    assert all(path.startswith(f"{folder}/") and "//" not in path for path in made.preprocessed())


@pytest.mark.parametrize("written", [".", "./", "/"])
def test_a_results_folder_that_is_none_of_its_own_is_refused(written):
    with pytest.raises(UserError, match=r"results: wanted a folder of its own.* \(found "):
        config({"results": written})


PATHS = {
    "dataset.sources.a.path": lambda value: value,
    "dataset.tokenizer": lambda value: {"type": "tokenizer.json", "path": value},
    "dataset.encoder": lambda value: {"type": "transformers", "path": value},
    "runs.gpt": lambda value: {"architecture": "gpt", "from": value},
    "retrievals.other.encoder": lambda value: {"type": "transformers", "path": value},
    "qa.questions": lambda value: value,
    "results": lambda value: value,
}


@pytest.mark.parametrize("key", PATHS)
def test_every_path_of_a_config_knows_home_and_variables(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/disk")
    for written, wanted in {"~/a//b/": "/home/me/a/b", "$PLACE/./c": "/disk/c"}.items():
        assert wanted in [path.value for path in named(config(at(key, PATHS[key](written))))]


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("$NOWHERE/x", r"\$NOWHERE is not set in the environment"),
        ("${NOWHERE}/x", r"is not set in the environment"),
        ("~nobody-of-this-name/x", "is no home folder here"),
        (f"a/{LONG}", "longer than 255 bytes"),
    ],
)
def test_a_path_that_cannot_be_written_out_is_refused_by_its_key(key, written, message):
    with pytest.raises(UserError, match=rf"{key.rpartition('.')[0]}.*{message}"):
        config(at(key, PATHS[key](written)))


@pytest.mark.parametrize("written", ["~/mine.yaml", "$HOME/mine.yaml"])
def test_a_preset_is_found_at_home(written, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("results: elsewhere/\n", encoding="utf-8")
    assert config({"preset": written}).results == "elsewhere"


@pytest.mark.parametrize("written", [LONG, f"{LONG}.yaml", "$NOWHERE/x.yaml"])
def test_a_preset_that_can_be_no_file_is_refused(written):
    with pytest.raises(UserError, match="config: preset: "):
        config({"preset": written})


def test_a_model_beside_the_config_is_no_run():
    """./gpt is a folder, gpt a run; Snakemake is told of the folder without ./, which it would warn of."""
    made = config({"runs": {"gpt": {"architecture": "gpt"}, "more": {"architecture": "gpt", "from": "./gpt/"}}})
    assert made.models()["more-s1"].start == "gpt/model.json"


def test_a_plain_path_stays_as_it_is():
    for path in ("results", "data/tiny.jsonl", "/a/b", "a b/c", "data/**/*.txt", "..", "x./y"):
        assert plain(path) == path


@pytest.mark.parametrize("target", ["run", "report", "archive"])
@pytest.mark.parametrize("path", ["a b.yaml", "my configs/a b.c.yaml", "$HOME.yaml"])
def test_make_takes_a_config_with_spaces_in_its_name(target, path):
    command = ["make", "--no-print-directory", "-n", target, f"CONFIG={path.replace('$', '$$')}"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    words = shlex.split(lines[-1])
    assert words[words.index("--configfile" if target == "report" else "--config") + 1] == path
    if target == "archive":
        name = subprocess.run(["sh", "-c", f"echo {lines[-1].split('--output ')[1]}"], capture_output=True, text=True)
        assert name.stdout.strip() == f"archive/{Path(path).stem}"
