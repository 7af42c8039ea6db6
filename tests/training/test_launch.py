"""Several processes, started as the train rule starts them: one curve, one checkpoint, one end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from retro.base.stage import UserError
from retro.training import launch
from retro.training.weights import read_tensors, retrieves
from tests.training.stage import Stage
from tests.training.toy import make_dataset, run_json

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = {"layers": 2, "width": 16, "heads": 2, "encoder_layers": 1, "encoder_width": 16, "activation": "swiglu"}
CUTS = {"fsdp": {"parallel": {"fsdp": True}}, "tensor": {"parallel": {"tensor": 2}}}


class Launch(Stage):
    """The train stage as two processes."""

    def start(self, python=sys.executable):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.before = len(self.log)
        command = [python, "-m", "retro.training.launch", "--processes", "2", "--", *self.arguments]
        with open(self.log_path, "a") as log:
            return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log)

    def run(self, python=sys.executable):
        return self.start(python).wait(600)

    def until(self, text, process, seconds=600):
        """Wait until the log since the last start holds `text`; the processes at work."""
        end = time.monotonic() + seconds
        while text not in self.log[self.before :]:
            assert process.poll() is None and time.monotonic() < end, self.log
            time.sleep(0.003)
        return psutil.Process(process.pid).children(recursive=True)


def steps(stage):
    return [json.loads(text) for text in (stage.folder / "metrics.jsonl").read_text().splitlines()]


def fitted(base, **train):
    """A RETRO whose base, a trained GPT, is frozen. Twenty steps."""
    facts = json.loads(run_json("retro", model=SHAPE, clip=0.5, checkpoint_interval=100, **train))
    return json.dumps({**facts, "from": str(base), "freeze": "base"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("twenty"), train_samples=80, eval_interval=10)


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    stage = Stage(data, run_json("gpt", model=SHAPE), tmp_path_factory.mktemp("base"))
    assert stage.run() == 0, stage.log
    return stage


@pytest.fixture(scope="module")
def alone(data, base, tmp_path_factory):
    stage = Stage(data, fitted(base.output), tmp_path_factory.mktemp("alone"))
    assert stage.run() == 0, stage.log
    return stage


@pytest.fixture(scope="module")
def undisturbed(data, base, warm, tmp_path_factory):
    stage = Launch(data, fitted(base.output, **CUTS["fsdp"]), tmp_path_factory.mktemp("fsdp"))
    assert stage.run(warm.python) == 0, stage.log
    return stage


def check(stage, alone, base):
    """The curve of one process, and a base that has not moved by a bit."""
    assert len(steps(stage)) == 20 + 2 * 2
    for key in ("loss", "grad_norm"):
        one, two = ([line[key] for line in steps(each) if key in line] for each in (alone, stage))
        assert two == pytest.approx(one, rel=1e-5)
    before, after = (read_tensors(each.folder / "model.safetensors")[0] for each in (base, stage))
    kept = [name for name in after if not retrieves(name)]
    assert sorted(before) == kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert len(kept) < len(after)


def test_two_processes_give_the_curve_of_one_and_leave_a_frozen_base_alone_fsdp(undisturbed, alone, base):
    check(undisturbed, alone, base)


def test_two_processes_give_the_curve_of_one_and_leave_a_frozen_base_alone_tensor(data, alone, base, warm, tmp_path):
    stage = Launch(data, fitted(base.output, **CUTS["tensor"]), tmp_path / "tensor")
    assert stage.run(warm.python) == 0, stage.log
    check(stage, alone, base)


def test_killed_crashed_and_stopped_it_ends_as_the_undisturbed_one(data, base, undisturbed, tmp_path):
    stage = Launch(data, fitted(base.output, **CUTS["fsdp"]), tmp_path / "disturbed")

    process = stage.start()  # the launcher is killed: nothing is left running
    while len(ranks := psutil.Process(process.pid).children()) < 2:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not psutil.wait_procs(ranks, 120)[1]

    process = stage.start()  # a process is killed: all end, and it is said which
    ranks = sorted(stage.until("step 3/", process), key=lambda rank: int(rank.environ()["RANK"]))
    ranks[1].kill()
    assert process.wait(600) == 1
    assert not psutil.wait_procs(ranks, 120)[1]
    last = stage.log.splitlines()[-1]
    assert last.startswith("error: training process 2 of 2 on ") and "was killed by SIGKILL" in last

    process = stage.start()  # a scheduler's warning: one step more at most, a checkpoint, "try again"
    stage.until("step 5/", process)
    process.send_signal(signal.SIGTERM)
    seen = stage.log.count("\nstep ")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(600) == 75, stage.log
    assert stage.log.count("\nstep ") <= seen + 2
    (index,) = stage.checkpoints.glob("*/step-*.json")
    assert f"stopped by SIGTERM after step {int(index.stem[5:])} of 20" in stage.log
    assert len(json.loads(index.read_text())["files"]) == 2

    assert stage.run() == 0, stage.log
    assert f"start      step {int(index.stem[5:])} of" in stage.log
    assert stage.weights == undisturbed.weights


def test_the_first_of_several_failures_is_told(tmp_path):
    """Process 1 writes to the terminal; 2 lost its partner; 3 met a wrong loss; 4 was ended by the launcher."""
    words = {1: "RuntimeError: Connection closed by peer", 2: "step 7\nerror: the loss is nan", 3: ""}
    for rank, text in words.items():
        path = tmp_path / f"run/attempt_0/{rank}/stderr.log"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    codes = {0: 1, 1: 1, 2: 1, 3: -signal.SIGTERM}
    failures = {rank: SimpleNamespace(local_rank=rank, exitcode=code) for rank, code in codes.items()}
    told = launch.told(failures, tmp_path, 4)
    assert told.startswith("training process 3 of 4 on ") and told.endswith("status 1: step 7\nerror: the loss is nan")
    del failures[2]
    assert launch.told(failures, tmp_path, 4).endswith("status 1: its message is above")


def test_one_process_is_the_trainer_itself(monkeypatch):
    called = []
    monkeypatch.setattr(os, "execv", lambda *words: called.append(words) or sys.exit())
    monkeypatch.setattr(sys, "argv", ["launch", "--nodes", "1", "--processes", "1", "--", "--config", "x"])
    with pytest.raises(SystemExit):
        launch.main()
    assert called == [(sys.executable, [sys.executable, "-m", "retro.training.train", "--config", "x"])]


@pytest.mark.parametrize("variables, message", [({}, "this is no SLURM job"), ({"SLURM_JOB_ID": "1"}, "no srun here")])
def test_several_nodes_need_a_slurm_job(monkeypatch, variables, message):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launch.on_nodes(2, 4, "", [])
