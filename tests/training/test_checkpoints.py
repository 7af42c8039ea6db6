"""Checkpoints: whole, of the same run, or not used."""

import pytest
import torch

from retro.base.stage import UserError
from retro.training.checkpoints import Checkpoints, name_of, run_facts
from retro.training.weights import assign, read_tensors, weights, write_tensors

RUN = {
    "name": "gpt-s1",
    "twin": None,
    "seed": 1,
    "model": {"width": 16},
    "train": {"lr": 0.1, "log_interval": 1},
}


def facts(**changed):
    return run_facts("c0", {**RUN, **changed}, "code", {"torch": "2"}, "cpu")


def write(checkpoints, step):
    checkpoints.open()
    return checkpoints.write({"step": step}, {"model/w": torch.full((1000,), float(step))})


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path, facts())


def test_the_last_two_are_kept(checkpoints):
    for step in (3, 6, 9):
        write(checkpoints, step)
    assert [path.name for path in checkpoints.paths()] == [f"step-{n:08d}.safetensors" for n in (6, 9)]
    assert len(list(checkpoints.folder.glob("*.sha256"))) == 2
    state, files = checkpoints.newest()
    assert state == {"step": 9} and read_tensors(files[0])[0]["model/w"][0] == 9


@pytest.mark.parametrize("damage", ["cut", "flip", "unfinished"])
def test_a_broken_one_is_set_aside_and_the_one_before_is_used(checkpoints, damage, capsys):
    write(checkpoints, 3)
    path = write(checkpoints, 6)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[:-9])
    elif damage == "flip":
        data[-100] ^= 1
        path.write_bytes(data)
    else:
        path.with_name(path.name + ".sha256").unlink()
    assert checkpoints.newest()[0] == {"step": 3}
    assert f"warning: {path}:" in capsys.readouterr().err
    write(checkpoints, 5)
    assert [path.name[-14:-12] for path in checkpoints.paths()] == ["03", "05"]
    assert not list(checkpoints.folder.glob("*.damaged"))


def test_what_a_kill_left_half_written_is_removed(checkpoints):
    write(checkpoints, 3)
    left = checkpoints.folder / ".step-00000006.safetensors.123.tmp"
    left.write_bytes(b"half")
    checkpoints.open()
    assert not left.exists() and len(checkpoints.paths()) == 1


def test_when_all_are_broken_there_is_none(checkpoints):
    write(checkpoints, 3).write_bytes(b"")
    assert checkpoints.newest() is None


def test_those_of_another_run_are_named_and_go_with_the_first_new_one(checkpoints, tmp_path):
    old = write(checkpoints, 3)
    other = Checkpoints(tmp_path, facts(train={"lr": 0.2, "log_interval": 1}))
    assert other.newest() is None
    assert other.stale() == [f"{checkpoints.folder}: run.train.lr was 0.1, is 0.2"]
    other.open()
    assert old.exists()
    write(other, 1)
    assert not old.exists() and not checkpoints.folder.exists()


def test_what_changes_no_weight_changes_no_fingerprint():
    assert facts() == facts(name="x", twin="y", train={"lr": 0.1, "log_interval": 9, "checkpoint_minutes": 1})
    assert name_of(facts()) != name_of(facts(seed=2))


def test_tensors_give_the_same_bytes_in_any_order_and_come_back(tmp_path):
    tensors = {"b": torch.randn(3, 2), "a": torch.tensor([1, 2])}
    write_tensors(tmp_path / "1", tensors, "note")
    write_tensors(tmp_path / "2", dict(reversed(tensors.items())), "note")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    found, note = read_tensors(tmp_path / "1")
    assert note == "note" and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_weights_must_be_exactly_the_models():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2, bias=False))
    tensors = {name: torch.ones_like(tensor) for name, tensor in weights(model).items()}
    assign(model, tensors, "here")
    assert (model[0].bias == 1).all()
    for wrong, message in (
        ({**tensors, "2.weight": torch.ones(1)}, "here: has unknown 2.weight"),
        ({name: tensors[name] for name in ("0.bias", "0.weight")}, "here: lacks 1.weight"),
        ({**tensors, "0.bias": torch.ones(2)}, r"here: 0.bias is torch.float32 \[2\], the model wants"),
        ({**tensors, "0.bias": torch.ones(3).half()}, "here: 0.bias is torch.float16"),
    ):
        with pytest.raises(UserError, match=message):
            assign(model, wrong, "here")


def test_a_shared_tensor_is_written_once():
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    assert list(weights(model)) == ["0.weight"]
