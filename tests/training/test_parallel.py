"""A model cut over processes trains as the whole one does, and goes on as any other number of processes."""

import json

import pytest
import torch

from retro.training.sharding import Cut, chunk_sizes
from retro.training.weights import read_tensors
from tests.training.stage import Stage
from tests.training.toy import make_dataset, run_json

pytestmark = pytest.mark.slow

SHAPE = {"layers": 3, "width": 16, "heads": 2, "encoder_layers": 1, "encoder_width": 16}
MODELS = {
    "gpt": ("gpt", SHAPE),
    "paper": ("retro", SHAPE | {"activation": "swiglu", "bias": True, "cca_gate": "token"}),
    "copy-ready": ("retro", SHAPE | {"flavour": "copy-ready", "tied": True, "copy_output": True}),
}
LAYOUTS = {
    "data": (2, {}),
    "fsdp": (2, {"parallel": {"fsdp": True}, "recompute": "layers"}),
    "tensor": (2, {"parallel": {"tensor": 2}, "recompute": "layers"}),
    "both": (4, {"parallel": {"fsdp": True, "tensor": 2}}),
}


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    """A dataset of 20 steps, the last of which has fewer samples than there are processes."""
    return make_dataset(tmp_path_factory.mktemp("twenty"), train_samples=77, eval_interval=10)


def curve(stage):
    found = [json.loads(text) for text in (stage.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found], [line["grad_norm"] for line in found if "grad_norm" in line]


def trained(config, folder, name, processes=1, **train):
    architecture, model = MODELS[name]
    stage = Stage(config, run_json(architecture, model=model, clip=0.5, log_norms=True, **train), folder)
    status = stage.run_ranks(processes) if processes > 1 else stage.run()
    assert status == 0, stage.log[-3000:]
    return stage


@pytest.fixture(scope="module")
def alone(twenty, tmp_path_factory):
    return {name: trained(twenty, tmp_path_factory.mktemp(name), name) for name in MODELS}


def same(one, two, tolerance=1e-5):
    for left, right in zip(curve(one), curve(two), strict=True):
        assert left == pytest.approx(right, rel=tolerance)
    here, there = (read_tensors(stage.folder / "model.safetensors")[0] for stage in (one, two))
    assert list(here) == list(there)
    assert all(torch.allclose(here[name], there[name], atol=1e-4) for name in here)


@pytest.mark.parametrize(
    "layout, name",
    [("data", "gpt"), ("fsdp", "paper"), ("tensor", "paper"), ("tensor", "copy-ready"), ("both", "copy-ready")],
)
def test_the_curve_is_that_of_one_process(twenty, alone, tmp_path, layout, name):
    processes, train = LAYOUTS[layout]
    stage = trained(twenty, tmp_path / "run", name, processes, **train)
    same(stage, alone[name])
    assert len(curve(stage)[0]) == 20 + 2 * (1 if name == "gpt" else 2)


@pytest.mark.parametrize("processes", [1, 4])
def test_two_processes_checkpoint_is_resumed_by_another_number(twenty, alone, tmp_path, processes):
    cut = {"parallel": {"fsdp": True}}
    folder = tmp_path / "run"
    stage = Stage(twenty, run_json("retro", model=MODELS["paper"][1], clip=0.5, log_norms=True, **cut), folder)
    trained(twenty, folder, "paper", 2, **cut)
    for path in stage.checkpoints.glob("*/step-00000020*"):
        path.unlink()  # as if killed after the checkpoint before
    assert [path.name for path in stage.checkpoints.glob("*/step-*.json")] == ["step-00000018.json"]
    stage.output.unlink()
    resumed = trained(twenty, folder, "paper", processes, **(cut if processes > 1 else {}))
    assert "start      step 18" in resumed.log and "written on 2 x cpu" in resumed.log
    same(resumed, alone["paper"])


@pytest.mark.parametrize("cut", [Cut(0, (2, 1, 1)), Cut(0), Cut(1), Cut(0, (1, 1))])
def test_a_cut_tensor_is_put_together_again(cut):
    whole = torch.arange(16 * 6.0).view(16, 6)
    permuted = cut.permuted(whole, 2)
    assert torch.equal(cut.restored(permuted, 2), whole)
    if cut.blocks == (2, 1, 1):
        assert permuted[:8, 0].tolist() == whole[[0, 1, 2, 3, 8, 9, 12, 13], 0].tolist()


def test_pieces_are_torchs():
    for size in range(9):
        found = [len(piece) for piece in torch.zeros(size).chunk(3)] if size else []
        assert chunk_sizes(size, 3) == found + [0] * (3 - len(found))


def test_bf16_over_two_processes_follows_fp32_within_its_rounding(twenty, alone, tmp_path):
    cut = {"parallel": {"fsdp": True}, "recompute": "layers"}
    stage = trained(twenty, tmp_path / "run", "paper", 2, precision="bf16", **cut)
    for left, right, tolerance in zip(curve(stage), curve(alone["paper"]), (0.003, 0.1), strict=True):
        assert left == pytest.approx(right, rel=tolerance) and left != right
    kept = read_tensors(stage.folder / "model.safetensors")[0]
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
