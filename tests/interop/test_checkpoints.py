"""Megatron's checkpoint folders: every layout joins to the bytes of the whole, one tensor in memory at a time."""

import io
import json
import pickle
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.interop.distributed import _Reader
from retro.interop.huggingface import write_weights
from retro.interop.megatron import load, open_state
from retro.interop.names import to_megatron
from retro.interop.states import Inert, State, open_file
from retro.model.settings import ModelSettings
from tests.interop import make_checkpoints
from tests.interop.dumps import variant
from tests.interop.make_checkpoints import stacked, write_distributed, write_ranks

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"num_layers": 6, "hidden_size": 16, "num_attention_heads": 2, "retro_chunk_length": 4}
ARGUMENTS |= {"retro_retrieved_length": 8, "seq_length": 16, "retro_encoder_layers": 2, "padded_vocab_size": 20}
ARGUMENTS |= {"position_embedding_type": "learned_absolute", "bias_gelu_fusion": False}
NAMES = ["base", "modern", "final norm", "rmsnorm", "squared relu"]


def whole(name, architecture="retro", spec="local", centred=False):
    """A state dict under Megatron's names, its vocabulary padded to 20; and Megatron's arguments."""
    settings, _, model, *_ = variant(name, architecture)
    found = to_megatron(model.state_dict(), settings, architecture, spec, centred)
    found = {key: t.detach().clone() for key, t in found.items()}
    for key in {"embedding.word_embeddings.weight", "output_layer.weight"} & set(found):
        found[key] = torch.cat([found[key], torch.ones(1, 16)])
    told = ARGUMENTS | {"apply_layernorm_1p": centred, "squared_relu": settings.activation == "squared_relu"}
    told |= {"bias_gelu_fusion": settings.activation == "gelu_tanh", "rotary_percent": settings.rope_fraction}
    told |= {"position_embedding_type": "rope" if settings.positions == "rope" else "learned_absolute"}
    told |= {"untie_embeddings_and_output_weights": not settings.tied}
    return found, told


def equal(state, wanted):
    """The same names, shapes known beforehand, and bytes."""
    assert set(state) == set(wanted)
    assert state.shapes == {name: tuple(t.shape) for name, t in wanted.items()}
    return all(torch.equal(state[name], wanted[name]) for name in wanted)


CUTS = [("core", cuts) for cuts in ((1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 3, 1), (2, 2, 3))]
CUTS += [("legacy", (1, 1, 1)), ("legacy", (2, 2, 1)), ("legacy", (2, 2, 3)), ("newer", (2, 2, 1))]


@pytest.mark.parametrize(("names", "cuts"), CUTS)
@pytest.mark.parametrize("architecture", ["retro", "gpt"])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_join_to_the_whole(name, architecture, names, cuts, tmp_path):
    state, told = whole(name, architecture, centred=name != "base")
    ranks, stages, parts = cuts
    if stages == 3 and name == "base":
        told.pop("untie_embeddings_and_output_weights")  # then equal tables are one
    home = write_ranks(tmp_path, state, layers=6, ranks=ranks, stages=stages, parts=parts, names=names, **told)
    assert equal(open_state(home), state)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_ranks_of_transformer_engine_join_to_the_whole(name, ranks, tmp_path):
    state, told = whole(name, spec="te")
    assert equal(open_state(write_ranks(tmp_path, state, layers=6, ranks=ranks, **told)), state)


def test_groups_of_queries_are_cut_whole(tmp_path):
    """Two ranks of 4 heads in 2 groups: each has one group's queries, key and value."""
    state, _ = whole("base", "gpt")
    for name in [n for n in state if "linear_qkv" in n]:
        state[name] = state[name][:32]
    home = write_ranks(tmp_path, state, layers=6, ranks=2, num_attention_heads=4, num_query_groups=2)
    load(home, tmp_path / "model", {"gelu_tanh": False})
    settings = read_manifest(tmp_path / "model" / "model.json", "model").settings["model"]
    assert (settings["heads"], settings["kv_heads"]) == (4, 2)
    theirs = state["decoder.layers.0.self_attention.linear_qkv.weight"].view(2, 4, 4, 16)  # group, q q k v, size, d
    ours = load_file(tmp_path / "model" / "model.safetensors")["decoder.layers.0.attention.qkv.weight"]
    assert torch.equal(ours.view(8, 4, 16)[[2, 3, 5, 7]], theirs[1])


@pytest.mark.parametrize("kind", ["ranks", "legacy", "distributed"])
@pytest.mark.parametrize("name", NAMES)
def test_an_imported_folder_is_the_imported_state(name, kind, tmp_path):
    """The folder's own arguments say what the JSON beside a state says."""
    state, told = whole(name, centred=True)
    save_file(state, tmp_path / "state.safetensors")
    residual = {"encoder_residual": "raw"} if kind == "legacy" else {}
    (tmp_path / "state.json").write_text(json.dumps({"args": told | residual}))
    load(tmp_path / "state.safetensors", tmp_path / "wanted", {}, 19)
    if kind == "distributed":
        write_distributed(tmp_path / "all", state, **told)
    else:
        write_ranks(tmp_path / "all", state, layers=6, ranks=2, names="core" if kind == "ranks" else kind, **told)
    load(tmp_path / "all", tmp_path / "found", {}, 19)
    wanted, found = (read_manifest(tmp_path / n / "model.json", "model") for n in ("wanted", "found"))
    assert wanted.settings | {"name": ""} == found.settings | {"name": ""} and found.settings["name"] == "iter_0000010"
    files = [(m.folder / "model.safetensors").read_bytes() for m in (wanted, found)]
    assert files[0] == files[1]
    assert all("iter_0000010" in path for path in found.facts["inputs"])


def test_flags_win_over_a_json_beside_the_folder_and_that_over_its_arguments(tmp_path):
    state, told = whole("modern")
    home = write_ranks(tmp_path, state, layers=6, ranks=1, **told | {"rotary_percent": 1.0, "rotary_base": 50})
    home.with_name(f"{home.name}.json").write_text(json.dumps({"args": {"rotary_percent": 0.25, "norm_epsilon": 0.1}}))
    load(home, tmp_path / "model", {"rotary_percent": 0.5})
    found = read_manifest(tmp_path / "model" / "model.json", "model").settings["model"]
    assert (found["rope_fraction"], found["rope_base"], found["norm_eps"]) == (0.5, 50, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_distributed_checkpoint_is_the_whole(name, tmp_path):
    state, told = whole(name, spec="te")
    assert equal(open_state(write_distributed(tmp_path, state, **told)), state)


def test_stacked_layers_are_taken_apart(tmp_path):
    state, told = whole("modern", "gpt", "te")
    assert equal(open_state(write_distributed(tmp_path, stacked(state, 6), **told)), state)


SAVING = """
import sys, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from safetensors.torch import load_file
from tests.interop.make_checkpoints import COLUMNS, ROWS

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = {}
for name, tensor in load_file(f"{folder}/whole").items():
    if name.startswith("decoder.layers.self") or name.startswith("decoder.layers.mlp"):
        placed = Shard(0)  # by layers, as pipeline stages have them
    else:
        placed = Shard(0) if ROWS.search(name) else Shard(1) if COLUMNS.search(name) else Replicate()
    state[name] = distribute_tensor(tensor, mesh, [placed])
dcp.save(state, checkpoint_id=f"{folder}/iter_0000010")
"""


@pytest.mark.parametrize("architecture", ["retro", "gpt"])
def test_pieces_of_two_processes_are_put_together(architecture, tmp_path):
    state, told = whole("modern", architecture)
    save_file(state if architecture == "retro" else stacked(state, 6), tmp_path / "whole")
    ranks = [
        subprocess.Popen([sys.executable, "-c", SAVING, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [rank.communicate()[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    home = tmp_path / "iter_0000010"
    assert {path.name for path in home.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    make_checkpoints.write_beside(home, tmp_path, **told)
    assert equal(open_state(tmp_path), state)


MEASURE = """
import re, sys
from pathlib import Path
from retro.interop.megatron import load

def peak():  # getrusage's would be that of the process that started this one, were it higher
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
load(Path(sys.argv[1]), Path(sys.argv[2]), {})
print("grew", peak() - before)
"""


@pytest.mark.parametrize("kind", ["safetensors", "ranks", "distributed"])
def test_an_import_holds_one_tensor_at_a_time(kind, tmp_path):
    width, words = 256, 120_000
    state = {"embedding.word_embeddings.weight": torch.ones(words, width)}
    state["output_layer.weight"] = torch.ones(words, width)
    for i in range(12):
        layer = f"decoder.layers.{i}"
        state |= {f"{layer}.{norm}_layernorm.weight": torch.ones(width) for norm in ("input", "pre_mlp")}
        state[f"{layer}.self_attention.linear_qkv.weight"] = torch.ones(3 * width, width)
        state[f"{layer}.self_attention.linear_proj.weight"] = torch.ones(width, width)
        state[f"{layer}.mlp.linear_fc1.weight"] = torch.ones(4 * width, width)
        state[f"{layer}.mlp.linear_fc2.weight"] = torch.ones(width, 4 * width)
    told = {"num_attention_heads": 4, "untie_embeddings_and_output_weights": True, "bias_gelu_fusion": False}
    if kind == "safetensors":
        path = tmp_path / "state.safetensors"
        save_file(state, path)
        path.with_suffix(".json").write_text(json.dumps({"args": told}))
    elif kind == "ranks":
        path = write_ranks(tmp_path, state, layers=12, ranks=2, **told)
    else:
        path = write_distributed(tmp_path, state, **told)
    largest, everything = words * width * 4, sum(t.nbytes for t in state.values())
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    grew = int(re.search(r"grew (\d+)", done.stdout)[1])
    assert largest < grew < 1.5 * largest + (48 << 20) < 0.9 * everything, (grew, largest, everything)


@pytest.mark.parametrize("architecture", ["retro", "gpt"])
def test_the_last_tensor_is_gone_before_the_next_is_read(architecture, tmp_path, monkeypatch):
    """On the way in, but for norms, and on the way out to Hugging Face."""
    alive, read = weakref.WeakSet(), State.__getitem__

    def counting(state, name):
        assert not alive, name
        found = read(state, name)
        if "norm" not in name:  # all norms are looked at together
            alive.add(Held(found))
        return found

    class Held:
        def __init__(self, tensor):
            weakref.finalize(tensor, alive.discard, self)

    monkeypatch.setattr(State, "__getitem__", counting)
    state, told = whole("final norm", architecture)
    load(write_ranks(tmp_path, state, layers=6, ranks=2, **told), tmp_path / "model", {"encoder_residual": "raw"}, 19)
    assert not alive
    settings = ModelSettings(**read_manifest(tmp_path / "model" / "model.json", "model").settings["model"])
    weights = open_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "out").mkdir()
    write_weights(tmp_path / "out", weights, "gpt2" if architecture == "gpt" else None, settings, 5000)
    assert not alive and len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_what_is_no_whole_checkpoint_is_refused_in_one_line(tmp_path):
    state, told = whole("base")

    def refused(path, message):
        with pytest.raises(UserError, match=message) as error:
            load(path, tmp_path / "out", {})
        assert "\n" not in str(error.value) and not any((tmp_path / "out").glob("*"))

    home = write_ranks(tmp_path / "a", state, layers=6, ranks=2, stages=2, **told)
    for rank in ("01", "00"):
        (home / f"mp_rank_{rank}_001").rename(home / "away")
        refused(home, f"tensor-parallel rank {int(rank)} of pipeline stage 1 is missing")
        (home / "away").rename(home / f"mp_rank_{rank}_001")
    (home / "mp_rank_00_000_001").mkdir()
    refused(home, "only models without experts are imported")

    def changed(folder, change):
        home = write_ranks(tmp_path / folder, state, layers=6, ranks=2, **told)
        path = home / "mp_rank_01" / "model_optim_rng.pt"
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)
        return home

    norm = "decoder.layers.3.input_layernorm.weight"
    refused(changed("b", lambda c: c["model"][norm].add_(1e-3)), "differs between tensor-parallel ranks 0 and 1")
    bias = "decoder.layers.3.mlp.linear_fc2.bias"
    refused(changed("c", lambda c: c["model"][bias].add_(1e-3)), f"{bias} differs between")
    refused(changed("d", lambda c: c["model"].pop(norm)), f"{norm} is in one of the tensor-parallel ranks only")
    refused(
        changed("e", lambda c: c.update(checkpoint_version=1.0)), r"checkpoint_version is 1\.0, .* wanted 2 or newer"
    )
    refused(changed("f", lambda c: c.pop("model")), "holds no model")

    home = write_ranks(tmp_path / "g", state, layers=6, ranks=1, **told | {"position_embedding_type": "none"})
    refused(home, "trained with position_embedding_type 'none'")
    home = write_ranks(tmp_path / "h", state, layers=6, ranks=1, stages=2, **told)
    path = home / "mp_rank_00_001" / "model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    content["model"]["output_layer.weight"].add_(1)
    torch.save(content, path)
    refused(home, "different token tables")

    home = write_distributed(tmp_path / "i", state, **told)
    pieces = (home / "__0_0.distcp").read_bytes()
    (home / "__0_0.distcp").write_bytes(pieces[: len(pieces) // 2])
    refused(home, "a piece cannot be read")
    (home / "__0_0.distcp").unlink()
    refused(home, r"__0_0\.distcp: no such file, though \.metadata lists it")
    (home / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    refused(home, "sharded_backend is 'zarr', wanted torch_dist")
    (home / "metadata.json").unlink()
    (home / ".metadata").write_bytes(b"no")
    refused(home, r"\.metadata: cannot be read")
    (home / "latest_checkpointed_iteration.txt").write_text("99")
    refused(home, "iter_0000099: no such folder, though")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"holds neither \.metadata nor mp_rank_00")


def test_metadata_runs_nothing(tmp_path):
    import os
    import pickle

    class Running:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Running()))
    with pytest.raises(UserError, match="describes no distributed checkpoint"):
        open_state(tmp_path)
    assert not (tmp_path / "ran").exists()


class Named:
    """Pickled as what `getattr` gives of something, as some versions of Python pickle members of enumerations."""

    def __init__(self, owner: object, name: str):
        self.found = (getattr, (owner, name))

    def __reduce__(self):
        return self.found


def test_members_of_enumerations_are_read_however_they_were_pickled_and_nothing_else_is():
    kind = torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
    member = next(iter(kind))

    def read(thing: object) -> object:
        return _Reader(io.BytesIO(pickle.dumps(thing))).load()

    assert read(member) is read(Named(kind, member.name)) is member
    assert isinstance(read(Named(Path, "home")), Inert) and isinstance(read(Named(int, "from_bytes")), Inert)
