"""State dicts on disk: read one tensor at a time, nothing run, written as safetensors writes them."""

import json
import os
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.base.stage import UserError
from retro.interop.states import Writer, open_file, read_state


def tensors(**shapes):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
@pytest.mark.parametrize(
    "state",
    [
        tensors(b=(3, 5), a=(7,), c=()),
        tensors(**{"a.b": (2, 2, 2), "ä": (0, 4), 'quoted"': (1,)}),
        tensors(large=(3000, 2000), small=(1,)),
    ],
)
def test_a_streamed_file_is_the_one_that_safetensors_writes(state, metadata, tmp_path):
    save_file(state, tmp_path / "theirs", metadata=metadata)
    with Writer(tmp_path / "ours", {n: tuple(t.shape) for n, t in state.items()}, metadata) as writer:
        for name in reversed(state):
            writer.put(name, state[name])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_halves_and_turned_tensors_are_written_as_float32(tmp_path):
    state = tensors(a=(50, 30), b=(4, 6))
    with Writer(tmp_path / "ours", {"a": (50, 30), "b": (6, 4)}) as writer:
        writer.put("a", state["a"].bfloat16())
        writer.put("b", state["b"].T)
    found = load_file(tmp_path / "ours")
    assert torch.equal(found["a"], state["a"].bfloat16().float()) and torch.equal(found["b"], state["b"].T)


def test_a_file_that_lacks_a_tensor_is_not_finished(tmp_path):
    with pytest.raises(AssertionError, match="lacks b"), Writer(tmp_path / "ours", {"a": (1,), "b": (1,)}) as writer:
        writer.put("a", torch.zeros(1))


@pytest.mark.parametrize("kind", ["safetensors", "index.json", "pt", "old.pt"])
def test_shapes_are_known_before_values_are_read(kind, tmp_path):
    state = tensors(**{"x.weight": (4000, 3000), "x.bias": (5,), "y": ()})
    path = tmp_path / f"state.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "index.json":
        parts = {name: f"part-{i}.safetensors" for i, name in enumerate(state)}
        for name, file in parts.items():
            save_file({name: state[name]}, tmp_path / file)
        path.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    found = open_file(path)
    assert found.shapes == {name: tuple(t.shape) for name, t in state.items()}
    for _ in range(2):  # what was read can be read again
        assert all(torch.equal(found[name], state[name]) for name in found)
    assert path in found.files and all(file.exists() for file in found.files)
    found["x.bias"].zero_()  # it is a copy
    assert torch.equal(found["x.bias"], state["x.bias"])


def test_an_index_that_promises_too_much_is_refused(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    save_file(tensors(a=(1,)), tmp_path / "1.safetensors")
    path.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}))
    with pytest.raises(UserError, match="lists b, which none of its files holds"):
        open_file(path)
    path.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    with pytest.raises(UserError, match=r"2\.safetensors: no such file"):
        open_file(path)


class Foreign:
    """A class of somebody else's."""

    def __setstate__(self, state):
        pathlib.Path(state["ran"]).touch()


class Runs:
    """Wants a command run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", [Foreign, Runs])
def test_nothing_that_a_file_names_is_run(kind, tmp_path):
    ran = tmp_path / "ran"
    thing = Runs(ran) if kind is Runs else Foreign()
    thing.ran = str(ran)
    torch.save({"model": tensors(a=(2,)), "args": thing}, tmp_path / "state.pt")
    if kind is Runs:
        with pytest.raises(UserError, match="weights_only"):
            read_state(tmp_path / "state.pt")
    else:
        assert list(read_state(tmp_path / "state.pt")) == ["a"]
    assert not ran.exists()
