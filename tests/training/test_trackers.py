"""Trackers: fed from metrics as they are logged; a training that resumes goes on with the same tracked run.

The packages of three of them are no part of the environment: `make test-trackers` brings them, other runs skip them.
"""

import copy
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retro.base.stage import UserError
from retro.config.schema import parse
from retro.training.metrics import Metrics
from retro.training.settings import PACKAGES, _installed, refuse_absent
from retro.training.trackers import NOTE, Trackers
from tests.training.stage import Stage
from tests.training.toy import run_json

FACTS = {"architecture": "gpt", "train": {"lr": 0.1}}
WANTED = [(step, 1 / step) for step in range(1, 7)]


def line(step: int) -> dict:
    return {"step": step, "samples": 4 * step, "tokens": 9, "loss": 1 / step}


def train(folder: Path, name: str, begin: int, end: int) -> dict:
    """Metrics of the steps after `begin` up to `end`, as a training that begins or resumes writes them; the note."""
    trackers = Trackers([name], folder / "run/tensorboard", folder / NOTE, begin, "open-book", "gpt-s1", FACTS)
    metrics = Metrics(folder / "metrics.jsonl", trackers, begin)
    for step in range(begin + 1, end + 1):
        metrics.write([line(step)])
    metrics.sync()
    metrics.close()
    return json.loads((folder / NOTE).read_text()) if (folder / NOTE).exists() else {}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which trackers write off line."""
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():
        monkeypatch.setenv(key, value)
    return tmp_path


def tensorboard(folder: Path, note: dict) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run/tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def wandb(folder: Path, note: dict) -> list[tuple[int, float]]:
    """What every offline part of the run holds; `wandb sync` puts those of one id together."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((folder / "run/wandb").glob(f"offline-run-*/run-{note['id']}.wandb")):
        for data in records(path.read_bytes()):
            history = wandb_internal_pb2.Record.FromString(data).history.item
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in history}
            if "train/loss" in items:
                found.append((items["_step"], items["train/loss"]))
    return found


def records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Of a log in LevelDB's format after a header of 7 bytes: pieces in blocks, each crc, length and kind first."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def trackio(folder: Path, note: dict) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "trackio/open-book.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {run for run, *_ in rows} == {f"gpt-s1-{note['id']}"}
    return [(step, json.loads(values)["train/loss"]) for _, step, values in rows]


def mlflow(folder: Path, note: dict) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("open-book")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == note["mlflow"] and run.data.params["train.lr"] == "0.1"
    return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "train/loss")]


READ = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio, "mlflow": mlflow}


@pytest.mark.parametrize("name", READ)
def test_a_resumed_training_goes_on_with_its_run_and_doubles_no_step(folder, name):
    if not any(map(_installed, PACKAGES.get(name, ["tensorboard"]))):
        pytest.skip(f"{name} is no part of this environment; make test-trackers has it")
    first = train(folder, name, 0, 5)
    second = train(folder, name, 3, 6)  # the checkpoint was of step 3
    assert first.get("id") == second.get("id")
    found = READ[name](folder, second)
    assert [step for step, _ in found] == [step for step, _ in WANTED]
    assert [value for _, value in found] == pytest.approx([value for _, value in WANTED])


def test_a_training_that_begins_anew_is_another_run(folder):
    if not any(map(_installed, PACKAGES["mlflow"])):
        pytest.skip("mlflow is no part of this environment; make test-trackers has it")
    assert train(folder, "mlflow", 0, 2)["mlflow"] != train(folder, "mlflow", 0, 2)["mlflow"]


def test_training_goes_on_without_a_tracker_that_fails(folder, capsys):
    if not any(map(_installed, PACKAGES["mlflow"])):
        pytest.skip("mlflow is no part of this environment; make test-trackers has it")
    trackers = Trackers(["mlflow", "tensorboard"], folder / "board", folder / NOTE, 0, "open-book", "gpt-s1", FACTS)
    shutil.rmtree(folder / "mlruns")
    trackers.send(1, "train", line(1))
    trackers.send(2, "train", line(2))
    assert list(trackers.open) == ["tensorboard"] and capsys.readouterr().err.count("mlflow takes no more") == 1


def test_one_that_does_not_start_is_refused(folder, monkeypatch):
    if not any(map(_installed, PACKAGES["mlflow"])):
        pytest.skip("mlflow is no part of this environment; make test-trackers has it")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(UserError, match=r"^train\.trackers: mlflow did not start .*take it out"):
        train(folder, "mlflow", 0, 1)


def test_packages_that_a_tracker_brings_made_nothing(folder):
    if not any(map(_installed, PACKAGES["mlflow"])):
        pytest.skip("mlflow is no part of this environment; make test-trackers has it")
    code = (
        "import sys, pathlib; from retro.base import provenance; from retro.training.trackers import Trackers\n"
        "before = provenance.versions()\n"
        "made = Trackers(['mlflow'], *map(pathlib.Path, ('run/board', 'note')), 0, 'd', 'r', {})\n"
        "assert provenance.versions() != before and 'pandas' in sys.modules\n"
        "with made.unseen():\n    assert provenance.versions() == before\n"
        "assert provenance.versions() != before"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused_with_the_command(name):
    if any(map(_installed, PACKAGES[name])):
        pytest.skip(f"the package of {name} is installed here")
    with pytest.raises(UserError, match=f"`pip install {name}` in the environment that trains"):
        refuse_absent(["tensorboard", name])


def test_the_stage_refuses_a_name_that_is_none_before_it_reads_anything(tmp_path):
    stage = Stage(tmp_path / "no config", run_json("gpt"), tmp_path / "run")
    stage.arguments += ["--trackers", "tensorbord"]
    assert stage.run() == 1
    assert "train.trackers: 'tensorbord' is none of tensorboard, wandb, trackio, mlflow" in stage.log_path.read_text()


def test_without_any_the_same_model_is_made(config, tmp_path):
    plain, without = Stage(config, run_json("gpt"), tmp_path / "plain"), Stage(config, run_json("gpt"), tmp_path / "no")
    without.arguments += ["--trackers", "none"]
    assert plain.run() == without.run() == 0
    assert plain.weights == without.weights
    assert (plain.folder / "tensorboard").exists() and not (without.folder / "tensorboard").exists()
    assert sorted(os.listdir(without.folder)) == sorted(set(os.listdir(plain.folder)) - {"tensorboard"})


def test_a_run_has_the_trackers_of_train_unless_it_names_its_own_and_records_neither():
    raw = {
        "dataset": {"name": "d", "sources": {"s": {"path": "s.jsonl"}}},
        "train": {"trackers": ["wandb"]},
        "runs": {"a": {"architecture": "gpt"}, "b": {"architecture": "gpt", "train": {"trackers": []}}},
    }
    models = parse(copy.deepcopy(raw)).models()
    assert [list(models[name].train.trackers) for name in sorted(models)] == [["wandb"], []]
    assert not any("trackers" in run.facts()["train"] for run in models.values())
