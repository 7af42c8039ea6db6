"""Trainings and measurements as a user starts them, on a device."""

import json
import os
import sys

import pytest
import torch

from retro.bench import device as bench
from retro.planning import plan
from tests.training.stage import Stage, ended
from tests.training.test_train import RUN
from tests.training.toy import make_dataset


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"] if "RETRO_DEVICE" in os.environ else ["bf16"])
def test_a_training_that_was_killed_goes_on_to_the_same_bytes(device, tmp_path, precision):
    dataset = make_dataset(tmp_path / "dataset", train_samples=48)
    run = json.loads(RUN)
    run["train"] |= {"precision": precision}
    whole, killed = (Stage(dataset, json.dumps(run), tmp_path / name) for name in ("whole", "killed"))
    assert whole.run() == 0, whole.log
    process = killed.start()
    killed.wait_for("step 7/", process)
    process.kill()
    ended(process)
    assert killed.run() == 0, killed.log
    assert killed.weights == whole.weights


@pytest.fixture(scope="module")
def measured(device, tmp_path_factory):
    """The benches at a toy size; on a GPU the same code as at full size."""
    path = tmp_path_factory.mktemp("bench") / "gpu.json"
    argv, sys.argv = sys.argv, ["bench", "--device", device.type, "--small", "--output", str(path)]
    try:
        bench.main()
    finally:
        sys.argv = argv
        torch.use_deterministic_algorithms(False)
    return path


def test_every_row_is_measured(device, measured):
    found = json.loads(measured.read_text())
    assert not found["failed"] and not found["left_out"] and found["device"] == device.type
    names = [row["name"] for row in found["train"]]
    assert names == ["gpt", "retro", "gpt, layers recomputed", "retro, layers recomputed"]
    rates = [row["flops_per_s"] for kind in ("train", "embed", "index") for row in found[kind]]
    assert len(rates) == 8 and min(rates) > 0
    assert all(("peak_bytes" in row) == (device.type == "cuda") for row in found["train"])


def test_what_is_left_out_for_time_is_named(device):
    found = bench.measure(bench.Machine(device, True, 1.0), minutes=0)
    assert not found["train"] and len(found["left_out"]) == 8


def test_a_plan_takes_what_was_measured_for_what_it_assumes(measured, monkeypatch, capsys):
    words = ["plan", "--preset", "857m", "--database-tokens", "1e9", "--json", "--cores", "4", "--gpus", "2"]

    def planned(*more):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        plan.main()
        return json.loads(capsys.readouterr().out)

    facts = json.loads(measured.read_text())
    kind, count = ("gpu", 2) if facts["device"] == "cuda" else ("cpu", 4)
    assumed, found = planned(), planned("--measured", str(measured))
    best = max(row["flops_per_s"] for row in facts["train"] if row["model"] == "retro")
    assert found["hours"]["training"][kind] == pytest.approx(found["flops"]["training"] / best / count / 3600)
    assert found["hours"]["training"] != assumed["hours"]["training"]
    assert {**found["hours"], "tokenizing": 0}.keys() == assumed["hours"].keys()


def test_a_plan_refuses_another_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["plan", "--preset", "857m", "--measured", str(tmp_path / "other.json")])
    with pytest.raises((SystemExit, Exception), match="not what `make bench-gpu` writes"):
        plan.main()
