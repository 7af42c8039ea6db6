"""One optimizer step, and steps shared by processes."""

import json
import socket

import pytest
import torch

from retro.training.loop import Stop, fit, train_step
from retro.training.train import setup
from retro.training.weights import read_tensors
from tests.training.stage import Stage, ended
from tests.training.toy import make_dataset, run_json


def first_step(config, folder, **train):
    """The outcome of a run's first step, and the session after it."""
    session = setup(config, run_json(**train), folder / "checkpoints", folder / "tensorboard")
    outcome = train_step(session, *next(session.batches()), Stop())
    session.metrics.close()
    return outcome, session


@pytest.mark.parametrize("size", [1, 3])
def test_accumulated_micro_batches_are_the_large_batch(config, tmp_path, size):
    whole, session = first_step(config, tmp_path / "whole", clip=0.1)
    cut, other = first_step(config, tmp_path / "cut", clip=0.1, micro_batch_size=size)
    assert cut.loss == pytest.approx(whole.loss, abs=1e-6)
    assert cut.norm == pytest.approx(whole.norm, rel=1e-5)
    for one, two in zip(session.model.parameters(), other.model.parameters(), strict=True):
        state, same = session.optimizer.state(one), other.optimizer.state(two)
        assert torch.allclose(state["exp_avg"], same["exp_avg"], atol=1e-6)


def test_twins_read_the_same_samples_and_other_seeds_others(config, tmp_path):
    def samples(architecture, seed):
        run = run_json(architecture, seed=seed)
        session = setup(config, run, tmp_path / "checkpoints", tmp_path / "tensorboard")
        session.metrics.close()
        course = session.course
        return course.positions(session.numbers(0)).tolist(), course.validation.positions.tolist()

    assert samples("gpt", 1) == samples("retro", 1)
    assert samples("gpt", 1)[0] != samples("gpt", 2)[0]
    assert samples("gpt", 1)[1] == samples("gpt", 2)[1]


def test_a_model_learns(tmp_path):
    config = make_dataset(tmp_path / "dataset", train_samples=400, global_batch_size=8)
    session = setup(config, run_json("gpt", lr=1e-2), tmp_path / "checkpoints", tmp_path / "tensorboard")
    fit(session)
    losses = [line["loss"] for line in session.metrics.lines if "split" not in line]
    assert losses[-1] < losses[0] - 0.5
    session.metrics.close()


def test_two_processes_train_the_same_model(config, tmp_path):
    alone, shared = (Stage(config, run_json(), tmp_path / name) for name in ("alone", "shared"))
    assert alone.run() == 0, alone.log
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    processes = [shared.start(RANK=rank, **place) for rank in "01"]
    assert [ended(process) for process in processes] == [0, 0], shared.log
    one, two = (read_tensors(stage.folder / "model.safetensors")[0] for stage in (alone, shared))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    losses = [json.loads(stage.output.read_text())["counts"]["losses"] for stage in (alone, shared)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
