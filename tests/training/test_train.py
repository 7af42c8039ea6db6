"""The train stage from the outside: files in, files out, whatever happens in between."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retro.base.artifacts import read_manifest
from tests.training.stage import Stage, ended
from tests.training.toy import make_dataset, run_json

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}
RUN = run_json(
    model={**DROPOUT, "flavour": "copy-ready", "copy_output": True},
    optimizer="muon",
    curriculum={},
    neighbour_dropout=0.2,
    sample_dropout=0.1,
    micro_batch_size=3,
)


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    """A run with dropout of all kinds and accumulation, from start to end."""
    stage = Stage(config, RUN, tmp_path_factory.mktemp("unbroken"))
    command = [sys.executable, "-m", "retro.training.train", *stage.arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stage.log_path.write_text(done.stderr)
    return stage


@pytest.fixture(scope="module")
def long_config(tmp_path_factory):
    """A dataset on which training takes so long that it can be interrupted."""
    return make_dataset(tmp_path_factory.mktemp("long"), train_samples=4000)


def lines(stage):
    return [json.loads(text) for text in (stage.folder / "metrics.jsonl").read_text().splitlines()]


def without_times(stage):
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s", "mfu")} for line in lines(stage)]


@pytest.mark.parametrize(("warmup", "told"), [(41, True), (40, False)], ids=["too long", "just as long"])
def test_a_warm_up_that_never_ends_is_said_before_training(config, tmp_path, warmup, told):
    stage = Stage(config, run_json("gpt", lr=2e-3, warmup_samples=warmup), tmp_path)
    assert stage.run() == 0
    said = f"train.warmup_samples is {warmup}, and there are 40 samples: the learning rate ends at 0.00195 and never"
    assert (said in stage.log_path.read_text()) == told


def test_a_training_that_follows_a_small_corpus_has_a_warm_up_that_ends(tmp_path):
    config = make_dataset(tmp_path / "dataset", train_samples=40, epochs=4.0)
    stage = Stage(config, run_json("gpt", warmup_samples=60, checkpoint_interval=500), tmp_path)
    assert stage.run() == 0
    log = stage.log_path.read_text()
    assert "warmup_samples 60 becomes 4, for so short a training" in log
    assert "checkpoint_interval 500 becomes 3" in log and "never reaches" not in log
    trained = read_manifest(stage.output, "model").settings["train"]
    assert (trained["warmup_samples"], trained["checkpoint_interval"]) == (4, 3)


def test_the_model_is_described(unbroken, config):
    manifest = read_manifest(unbroken.output, "model")
    manifest.check()
    assert list(manifest.facts["files"]) == ["model.safetensors"]
    assert manifest.settings["architecture"] == "retro"
    assert manifest.settings["recorded"]["retrieved_length"] == 16
    counts = manifest.counts
    assert (counts["samples"], counts["steps"], counts["tokens"]) == (40, 10, 1280)
    assert set(counts["losses"]) == {"train", "valid/on", "valid/off"}
    assert str(config.parent) not in unbroken.output.read_text()


def test_metrics_hold_every_logged_step_and_validation(unbroken):
    train = [line for line in lines(unbroken) if "split" not in line]
    valid = [(line["step"], line["retrieval"]) for line in lines(unbroken) if "split" in line]
    assert [line["step"] for line in train] == list(range(1, 11))
    assert [line["samples"] for line in train] == list(range(4, 41, 4))
    assert valid == [(step, mode) for step in (4, 8, 10) for mode in ("on", "off")]
    assert set(train[0]) == {
        *("step", "samples", "tokens", "loss", "lr", "grad_norm", "seconds", "tokens_per_s", "mfu")
    }
    assert list((unbroken.folder / "tensorboard").glob("events.out.tfevents*"))


def test_a_second_run_makes_the_same_bytes(unbroken, config, tmp_path):
    again = Stage(config, RUN, tmp_path / "again")
    assert again.run() == 0
    assert again.weights == unbroken.weights
    assert without_times(again) == without_times(unbroken)
    assert again.output.read_bytes().count(b"sha256") == unbroken.output.read_bytes().count(b"sha256")


def test_killed_ten_times_at_any_step_it_resumes_to_the_same_bytes(tmp_path):
    forty = make_dataset(tmp_path / "forty", train_samples=160)
    unbroken, stage = Stage(forty, RUN, tmp_path / "unbroken"), Stage(forty, RUN, tmp_path / "killed")
    assert unbroken.run() == 0, unbroken.log
    for step in sorted(random.Random(4).sample(range(1, 40), 10)):
        process = stage.start()
        stage.wait_for(f"step {step}/40", process)
        process.kill()
        assert ended(process) == -signal.SIGKILL
    assert stage.run() == 0, stage.log
    assert "start      step" in stage.log
    assert stage.weights == unbroken.weights
    assert without_times(stage) == without_times(unbroken)
    files = [json.loads(each.output.read_text()) for each in (stage, unbroken)]
    for facts in files:
        facts.pop("inputs")  # by relative path, and the two lie in different folders
    assert files[0] == files[1]


@pytest.mark.parametrize("signum, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_ends_with_its_status(long_config, tmp_path, signum, status):
    run = run_json("gpt", checkpoint_interval=100_000)
    stage = Stage(long_config, run, tmp_path / "stopped")
    process = stage.start()
    stage.wait_for("step 5/", process)
    os.kill(process.pid, signum)
    assert ended(process) == status
    (saved,) = stage.saved()
    assert f"stopped by {signum.name} after step {int(saved.stem[5:])} of 1000" in stage.log
    assert "Traceback" not in stage.log and not stage.output.exists()


def test_a_signal_saves_even_when_the_log_is_closed(long_config, tmp_path):
    stage = Stage(long_config, run_json("gpt", checkpoint_interval=100_000), tmp_path / "piped")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = stage.start(str(pipe))
    with open(pipe) as log:
        while "step 3/" not in log.readline():
            pass
    process.terminate()
    assert ended(process) == 143
    assert len(stage.saved()) == 1


def test_a_second_trainer_on_the_same_checkpoints_is_refused(long_config, tmp_path):
    stage = Stage(long_config, run_json("gpt"), tmp_path / "held")
    process = stage.start()
    try:
        stage.wait_for("step 1/", process)
        second = tmp_path / "second.txt"
        assert ended(stage.start(str(second))) == 1
        assert f"error: {stage.checkpoints}: in use by process {process.pid} on" in second.read_text()
        assert process.is_alive()
    finally:
        process.kill()
        process.join()


def test_a_run_with_other_settings_starts_afresh_and_says_what_differs(unbroken, config, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(unbroken.folder, folder)
    facts = json.loads(RUN)
    facts["train"]["lr"] = 0.001
    stage = Stage(config, json.dumps(facts), folder)
    stage.log_path.unlink()
    assert stage.run() == 0, stage.log
    assert "run.train.lr was 0.003, is 0.001" in stage.log
    assert "start      afresh" in stage.log
    assert stage.weights != unbroken.weights
    assert len({path.parent for path in stage.saved()}) == 1


def test_a_finished_run_is_not_trained_again(unbroken, config, tmp_path):
    folder = tmp_path / "finished"
    shutil.copytree(unbroken.folder, folder)
    stage = Stage(config, RUN, folder)
    stage.output.unlink()
    stage.log_path.unlink()
    assert stage.run() == 0, stage.log
    assert "start      step 10" in stage.log and "loss" not in stage.log
    assert stage.weights == unbroken.weights


def test_one_changed_byte_in_the_neighbours_is_refused_by_name(config, tmp_path):
    folder = tmp_path / "dataset"
    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns("runs"))
    path = folder / "neighbours/train/ids.npy"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    stage = Stage(folder / "config.json", RUN, tmp_path / "run")
    assert stage.run() == 1
    assert f"error: {path}: content changed since it was made" in stage.log
    assert "Traceback" not in stage.log and not stage.saved()
    gpt = Stage(folder / "config.json", run_json("gpt"), tmp_path / "gpt")
    assert gpt.run() == 0, "a GPT reads no neighbours"


def test_a_loss_that_is_not_finite_ends_the_run_naming_step_and_documents(config, tmp_path):
    run = run_json("gpt", lr=1e30, min_lr=1e30, warmup_samples=0, clip=0, checkpoint_interval=1)
    stage = Stage(config, run, tmp_path / "wild")
    assert stage.run() == 1
    message = stage.log.splitlines()[-1]
    assert message.startswith("error: gpt-s1: the ") and " at step " in message
    assert "samples " in message and "documents " in message and "-" in message.split("documents ")[1]
    assert "the last checkpoint is kept: " in message and len(stage.saved()) >= 1
    assert "Traceback" not in stage.log


def test_a_run_that_is_none_is_refused_in_words(config, tmp_path):
    for run, message in (
        ("{", "--run: not a run's JSON"),
        ('{"architecture": "gpt"}', "--run: model: is missing"),
        (run_json("bert"), "--run: architecture: wanted 'gpt' or 'retro'"),
        ("[]", "--run: wanted a mapping"),
        (run_json("gpt", lrr=1), "--run: train.lrr: unknown key; did you mean train.lr?"),
    ):
        stage = Stage(config, run, tmp_path / str(len(run)))
        assert stage.run() == 1
        assert message in stage.log and "Traceback" not in stage.log
