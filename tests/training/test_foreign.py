"""Beginning with a folder of Hugging Face's: what is taken over, what stays as it was, what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.interop.huggingface import export
from retro.model.build import build_model
from retro.model.families import decoder
from retro.model.settings import ModelSettings
from retro.training import foreign
from retro.training.initial import start_from
from retro.training.settings import Run
from retro.training.weights import load_model, retrieves
from tests.model.families import saved
from tests.training.stage import Stage
from tests.training.toy import run_json

LENGTHS = {"vocab_size": 257, "seq_length": 32, "chunk_length": 8, "retrieved_length": 16}


def folder_of(place, name, dataset):
    """A folder as a hub has it: 3 tokens more than the tokenizer, which lies beside the weights."""
    model, facts, state = saved(place, name)
    shutil.copy(dataset.folder / "tokenizer/tokenizer.json", place)
    return model, facts, state


def run(folder, architecture="retro", **model):
    facts = json.loads((folder / "config.json").read_text())
    text = json.loads(run_json(architecture))
    text |= {"model": {"encoder_layers": 1, "encoder_width": 16, **decoder(facts, 32), **model}}
    return json.dumps(text | {"from": str(folder / "config.json"), "freeze": "base"})


def started(folder, dataset, architecture="retro", **model):
    """The model that a run of the folder begins with, and what `start_from` gave."""
    given = Run.parse(run(folder, architecture, **model), "--run")
    built = build_model(given.model, architecture=architecture, seed=1, **LENGTHS)
    return built.eval(), start_from(built, given, dataset)


def tokens():
    return torch.randint(256, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gpt2", "qwen3"])
@pytest.mark.parametrize("architecture", ["gpt", "retro"])
def test_a_run_begins_as_the_folder_s_model(name, architecture, dataset, tmp_path):
    theirs, *_ = folder_of(tmp_path, name, dataset)
    ours, _ = started(tmp_path, dataset, architecture)
    wanted = theirs(input_ids=tokens()).logits[..., :257]  # the other rows have no token
    torch.testing.assert_close(ours(tokens()), wanted, atol=2e-5, rtol=2e-5)
    assert all(parameter.requires_grad == retrieves(key) for key, parameter in ours.named_parameters())


def rewritten(state, folder, change):
    save_file({name: tensor.clone() for name, tensor in change(state).items()}, folder / "model.safetensors")


def test_halves_of_precision_several_files_and_names_without_a_root_are_read(dataset, tmp_path):
    theirs, _, state = folder_of(tmp_path, "gpt2", dataset)
    whole, digest = started(tmp_path, dataset)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewritten(bare, tmp_path, lambda found: found | masks)
    again, other = started(tmp_path, dataset)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert digest != other
    theirs.bfloat16().save_pretrained(tmp_path, max_shard_size="5KB")
    (tmp_path / "model.safetensors").unlink()
    assert len(foreign.files(tmp_path / "config.json")) > 3
    half, _ = started(tmp_path, dataset)
    for name, parameter in half.named_parameters():
        wanted = dict(whole.named_parameters())[name]
        assert torch.equal(parameter, wanted if retrieves(name) else wanted.bfloat16().float()), name


@pytest.mark.slow
def test_fitted_from_a_folder_only_what_retrieves_moves_and_the_base_is_measured_as_it_is(config, dataset, tmp_path):
    there = tmp_path / "model"
    folder_of(there, "llama", dataset)
    before, _ = started(there, dataset)
    for architecture in ("retro", "gpt"):
        stage = Stage(config, run(there, architecture), tmp_path / architecture)
        assert stage.run() == 0, stage.log
    manifest = read_manifest(tmp_path / "retro/model.json", "model")
    assert {path.rpartition("/")[2] for path in manifest.facts["inputs"]} >= {"config.json", "model.safetensors"}
    assert manifest.settings["model"]["kv_heads"] == 2
    fitted, _ = load_model(tmp_path / "retro/model.json", dataset)
    for name, tensor in fitted.state_dict().items():
        assert retrieves(name) or torch.equal(tensor, before.state_dict()[name]), name
    base, _ = load_model(tmp_path / "gpt/model.json", dataset)
    assert torch.equal(base(tokens()), fitted(tokens()))
    counts = read_manifest(tmp_path / "gpt/model.json", "model").counts
    assert (counts["samples"], counts["steps"]) == (0, 0)
    assert "nothing of this model is trained" in stage.log and "warmup" not in stage.log


@pytest.mark.slow
def test_a_model_trained_here_goes_there_and_is_fitted_when_it_comes_back(config, dataset, tmp_path):
    text = run_json("gpt", model={"activation": "swiglu", "kv_heads": 1})
    gpt = Stage(config, text, tmp_path / "gpt")
    assert gpt.run() == 0, gpt.log
    export(tmp_path / "gpt", tmp_path / "there", dataset.folder / "tokenizer/manifest.json")
    fitted = Stage(config, run(tmp_path / "there"), tmp_path / "fitted")
    assert fitted.run() == 0, fitted.log
    lines = [json.loads(line) for line in (tmp_path / "fitted/metrics.jsonl").read_text().splitlines()]
    losses = {mode: [line["loss"] for line in lines if line.get("retrieval") == mode] for mode in ("on", "off")}
    assert set(losses["off"]) == {read_manifest(gpt.output).counts["losses"]["valid/none"]}, "not its base"
    assert losses["on"][-1] < losses["on"][0]
    export(tmp_path / "fitted", tmp_path / "back", dataset.folder / "tokenizer/manifest.json")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "back/base" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def spoil(folder, dataset, what):
    facts = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    if what == "other tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    elif what == "few tokens":
        facts["vocab_size"] = 200
    elif what == "a tensor less":
        del state["model.norm.weight"]
    elif what == "a tensor more":
        state["model.layers.0.self_attn.q_norm.weight"] = torch.ones(4)
    elif what == "another shape":
        state["model.norm.weight"] = torch.ones(8)
    elif what == "parts of two shapes":
        state["model.layers.0.self_attn.k_proj.weight"] = torch.ones(8, 8)
    elif what == "not a number":
        state["model.norm.weight"][3] = torch.nan
    elif what == "integers":
        state["model.norm.weight"] = torch.ones(16, dtype=torch.int8)
    elif what == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": 1}}')
    elif what == "no index":
        (folder / "model.safetensors.index.json").write_text("[]")
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(facts))
    if what == "cut":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    if what == "no weights":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("other tokenizer", "is another tokenizer than that of .*dataset.tokenizer.type: huggingface"),
        ("few tokens", "vocab_size is 200, .* has 257 tokens"),
        ("a tensor less", "lacks model.norm.weight"),
        ("a tensor more", "holds model.layers.0.self_attn.q_norm.weight and 0 more, which no llama has"),
        ("another shape", r"decoder.norm.weight comes out as \[8\], config.json wants \[16\]"),
        ("parts of two shapes", r"layers.0.attention.qkv.weight comes out as nothing, config.json wants \[32, 16\]"),
        ("not a number", "model.norm.weight holds what is no finite number"),
        ("integers", "model.norm.weight holds .* torch.int8"),
        ("index", "weight_map: wanted the name of a file for each tensor"),
        ("no index", "index.json: holds a list, wanted an object"),
        ("cut", "not a whole safetensors file"),
        ("no weights", r"weights are read from safetensors only; .*hf download <owner>/"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(what, message, dataset, tmp_path):
    folder_of(tmp_path, "llama", dataset)
    spoil(tmp_path, dataset, what)
    with pytest.raises(UserError, match=message) as error:
        started(tmp_path, dataset)
    assert "\n" not in str(error.value)


def test_a_folder_that_changed_since_the_config_was_read_is_refused(dataset, tmp_path):
    folder_of(tmp_path, "llama", dataset)
    with pytest.raises(UserError, match="decides layers otherwise than this run was given it"):
        started(tmp_path, dataset, layers=3)
    assert ModelSettings(**decoder(foreign.facts(tmp_path / "config.json"))).layers == 2
