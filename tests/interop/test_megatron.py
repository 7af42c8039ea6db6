"""Megatron-core state dicts: parity with the oracle, round trips, refusals."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.interop.infer import flatten, infer
from retro.interop.megatron import check, compare, load, save
from retro.interop.names import entries, from_megatron, to_megatron
from retro.interop.states import read_state
from retro.model.build import build_model
from retro.model.settings import ModelSettings
from tests.interop.dumps import VARIANTS, variant, write_dump

ROOT = Path(__file__).parents[2]
DUMPS = Path(__file__).parent / "megatron"  # made by Megatron-core itself: make_dumps.py

GIVEN = {"heads": 2, "chunk_length": 4, "retrieved_length": 8, "seq_length": 16}


def state_of(name, architecture="retro"):
    settings, lengths, model, *_ = variant(name, architecture)
    return settings, lengths, {key: t.detach() for key, t in model.state_dict().items()}


@pytest.mark.parametrize("name", sorted(path.stem for path in DUMPS.glob("*.safetensors")))
def test_logits_losses_and_gradients_are_megatron_s(name):
    found = compare(DUMPS / f"{name}.safetensors")
    assert [d.what.split()[0] for d in found] == ["logits", "token_loss", "loss", "gradients"]
    assert all(d.value < 5e-6 for d in found), found


def test_what_megatron_s_shapes_do_not_tell_is_asked_of_the_facts(tmp_path):
    """GELU's form is in no parameter: without the fact beside it the dump does not agree."""
    (tmp_path / "rmsnorm.safetensors").write_bytes((DUMPS / "rmsnorm.safetensors").read_bytes())
    facts = json.loads((DUMPS / "rmsnorm.json").read_text())
    del facts["args"]["gelu_tanh"]
    (tmp_path / "rmsnorm.json").write_text(json.dumps(facts))
    assert not check([tmp_path / "rmsnorm.safetensors"])


@pytest.mark.parametrize("spec", ["local", "te"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_of_a_dump_is_read_from_it(name, spec, tmp_path):
    dump = write_dump(tmp_path, name, spec)
    found = {d.what.split()[0]: d.value for d in compare(dump)}
    assert set(found) == {"logits", "token_loss", "loss", "gradients"}
    assert max(found.values()) < 1e-6


@pytest.mark.parametrize("spoil", ["out/logits", "out/loss", "grad/embedding.word_embeddings.weight"])
def test_a_difference_is_found_and_fails_the_check(spoil, tmp_path, capsys):
    dump = write_dump(tmp_path, "base", spoil=spoil)
    assert not check([dump])
    assert capsys.readouterr().out.count("ABOVE 1e-05") == 1


@pytest.mark.parametrize("architecture", ["retro", "gpt"])
@pytest.mark.parametrize("spec", ["local", "te"])
@pytest.mark.parametrize("name", VARIANTS)
def test_import_and_export_are_inverse(name, spec, architecture, tmp_path):
    settings, lengths, ours = state_of(name, architecture)
    theirs = to_megatron(ours, settings, architecture, spec)
    assert all(torch.equal(t, ours[n]) for n, t in from_megatron(theirs, settings, architecture).items())

    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file({n: t.contiguous() for n, t in theirs.items()}, first)
    untold = {"rotary_percent": settings.rope_fraction, "gelu_tanh": settings.activation == "gelu_tanh"}
    untold |= {"encoder_residual": settings.encoder_residual, "squared_relu": settings.activation == "squared_relu"}
    load(first, tmp_path / "model", GIVEN | {"retrieved_length": lengths["retrieved_length"]} | untold)
    save(tmp_path / "model", second, spec)
    again = load_file(second)
    assert set(again) == set(theirs) and all(torch.equal(again[n], theirs[n]) for n in theirs)

    manifest = read_manifest(tmp_path / "model" / "model.json", "model")
    manifest.check()
    model = build_model(
        ModelSettings(**manifest.settings["model"]),
        architecture=manifest.settings["architecture"],
        seed=None,
        **manifest.settings["recorded"],
    )
    model.load_state_dict(read_state(tmp_path / "model" / "model.safetensors"), strict=True)
    load(second, tmp_path / "again", {})  # the JSON beside an export says what the shapes do not
    copy = read_manifest(tmp_path / "again" / "model.json", "model")
    assert copy.settings["model"] == manifest.settings["model"]


def test_grouped_queries_keep_their_groups():
    settings = ModelSettings(flavour="megatron", layers=6, width=16, heads=4, kv_heads=2, encoder_dropout=0.0)
    lengths = {"vocab_size": 19, "seq_length": 8, "chunk_length": 4, "retrieved_length": 8}
    ours = build_model(settings, architecture="gpt", seed=1, **lengths).state_dict()
    theirs = to_megatron(ours, settings, "gpt", "local")
    qkv = theirs["decoder.layers.0.self_attention.linear_qkv.weight"].view(2, 4, 4, 16)  # group, q q k v, size, d
    mine = ours["decoder.layers.0.attention.qkv.weight"].view(8, 4, 16)  # q q q q k k v v, size, d
    assert torch.equal(qkv[1], mine[[2, 3, 5, 7]])
    shapes = {n: tuple(t.shape) for n, t in theirs.items()}
    assert infer(shapes, {"heads": 4}, "x").settings.kv_heads == 2


def test_names_are_megatron_s():
    settings, _, ours = state_of("base")
    local, te = (set(to_megatron(ours, settings, "retro", spec)) for spec in ("local", "te"))
    encoder = "decoder.layers.5.cross_attention.encoder.layers"
    assert {
        "embedding.position_embeddings.weight",
        "decoder.layers.0.input_layernorm.bias",
        "decoder.layers.5.cross_attention.attn.linear_kv.weight",
        f"{encoder}.0.pre_mlp_layernorm.norm.weight",
        f"{encoder}.1.pre_mlp_layernorm.weight",
    } <= local
    assert {
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_bias",
        "decoder.layers.5.pre_cross_attn_layernorm.weight",
        f"{encoder}.0.pre_mlp_layernorm.norm.weight",
        f"{encoder}.1.mlp.linear_fc1.layer_norm_weight",
    } <= te
    assert len(local) == len(te) == len(list(entries(settings, "retro")))


def test_missing_unknown_and_contradicting_are_refused_in_one_line(tmp_path):
    settings, _, ours = state_of("base")
    whole = to_megatron(ours, settings, "retro", "local")
    path = tmp_path / "state.safetensors"

    def refused(state, given, message):
        save_file({n: t.contiguous() for n, t in state.items()}, path)
        with pytest.raises(UserError, match=message) as error:
            load(path, tmp_path / "out", given)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    norm = "decoder.layers.3.pre_mlp_layernorm.weight"
    refused({n: t for n, t in whole.items() if n != norm}, GIVEN, f"{norm} is missing")
    refused(whole | {"decoder.extra": torch.zeros(1)}, GIVEN, "decoder.extra is unknown")
    refused(whole, {"chunk_length": 4}, "give --heads")
    refused(whole, {"heads": 2}, "give --chunk-length")
    refused(whole, GIVEN | {"heads": 3}, "3 heads do not divide")
    refused(whole, GIVEN | {"num_layers": 12}, "layers is said to be 12, the parameters hold 6")
    wrong = "decoder.layers.3.self_attention.linear_proj.weight"
    refused(whole | {wrong: torch.zeros(16, 8)}, GIVEN, "attention.out.weight comes out as")
    refused({"weight": torch.zeros(1)}, GIVEN, "word_embeddings.weight is missing")
    refused({n: t for n, t in whole.items() if ".layers.0." not in n or "cross" in n}, GIVEN, "pipeline-parallel")


def test_models_that_megatron_lacks_are_not_exported(tmp_path):
    settings, _, ours = state_of("base")
    whole = to_megatron(ours, settings, "retro", "local")
    save_file({n: t.contiguous() for n, t in whole.items()}, tmp_path / "s.safetensors")
    load(tmp_path / "s.safetensors", tmp_path / "model", GIVEN)
    manifest = tmp_path / "model" / "model.json"
    facts = json.loads(manifest.read_text())
    facts["settings"]["model"] |= {"cca_null": True, "mask_padding": True}
    manifest.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"no such model: cca_null is True; mask_padding is True"):
        save(tmp_path / "model", tmp_path / "t.safetensors", "te")
    facts["settings"] |= {"architecture": "gpt", "model": facts["settings"]["model"] | {"parallel_residual": True}}
    manifest.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"no such model: parallel_residual is True\."):
        save(tmp_path / "model", tmp_path / "t.safetensors", "te")


def test_torch_files_are_read_without_running_them(tmp_path):
    settings, _, ours = state_of("base")
    theirs = to_megatron(ours, settings, "retro", "te")
    wrapped = {"model": {f"module.{n}": t for n, t in theirs.items()} | {"module.x._extra_state": None}}
    torch.save(wrapped, tmp_path / "state.pt")
    assert set(read_state(tmp_path / "state.pt")) == set(theirs)
    torch.save({"model": theirs, "args": Path("x")}, tmp_path / "state.pt")  # a class that torch does not know
    assert set(read_state(tmp_path / "state.pt")) == set(theirs)

    class Running:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"model": theirs, "args": Running()}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="weights_only") as error:
        read_state(tmp_path / "state.pt")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_state(tmp_path / "broken.safetensors")


def test_half_precision_becomes_fp32(tmp_path):
    settings, _, ours = state_of("base")
    theirs = to_megatron(ours, settings, "retro", "te")
    save_file({n: t.bfloat16().contiguous() for n, t in theirs.items()}, tmp_path / "s.safetensors")
    load(tmp_path / "s.safetensors", tmp_path / "model", GIVEN)
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "model" / "model.safetensors").values())


def shifted(theirs, by):
    """Parameters of Megatron with every norm's weight moved."""
    norm = re.compile(r"(layernorm(\.norm)?\.weight|layer_norm_weight)$")
    assert any(norm.search(name) for name in theirs)
    return {name: (t + by if norm.search(name) else t).contiguous() for name, t in theirs.items()}


def logits_of(folder, inputs, chunks):
    manifest = read_manifest(folder / "model.json", "model")
    lengths = manifest.settings["recorded"]
    settings = ModelSettings(**manifest.settings["model"]).model_copy(update={"encoder_dropout": 0.0})
    model = build_model(settings, architecture="retro", seed=None, **lengths)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    ids = inputs["input_ids"]
    return model(ids, inputs["context_input_ids"].view(len(ids), chunks, -1, lengths["retrieved_length"]))


@pytest.mark.parametrize("told", ["flag", "apply_layernorm_1p", "layernorm_zero_centered_gamma"])
@pytest.mark.parametrize("spec", ["local", "te"])
@pytest.mark.parametrize("name", ["base", "final norm", "rmsnorm"])
def test_norms_that_count_from_1_give_the_same_logits(name, spec, told, tmp_path):
    """InstructRetro's: Megatron's --apply-layernorm-1p stores how far a norm's weight is from 1."""
    settings, lengths, model, inputs, chunks, _ = variant(name)
    theirs = to_megatron({n: p.detach() for n, p in model.named_parameters()}, settings, "retro", spec)
    path = tmp_path / "state.safetensors"
    save_file(shifted(theirs, -1.0), path)
    given = GIVEN | {"retrieved_length": lengths["retrieved_length"], "encoder_residual": settings.encoder_residual}
    given |= {"gelu_tanh": settings.activation == "gelu_tanh"}
    if told == "flag":
        given |= {"layernorm_1p": True}
    else:
        path.with_suffix(".json").write_text(json.dumps({"args": {told: True}}))
    load(path, tmp_path / "model", given)
    neighbours = inputs["context_input_ids"].view(2, chunks, -1, lengths["retrieved_length"])
    wanted = model(inputs["input_ids"], neighbours)
    assert (logits_of(tmp_path / "model", inputs, chunks) - wanted).abs().max() < 1e-5

    back = tmp_path / "back.safetensors"
    save(tmp_path / "model", back, spec, layernorm_1p=True)
    found = load_file(back)
    assert all(torch.allclose(found[n], t, atol=1e-6) for n, t in shifted(theirs, -1.0).items())
    load(back, tmp_path / "again", {})  # the JSON beside it says so
    assert (logits_of(tmp_path / "again", inputs, chunks) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("by", [-1.0, -1.6])
def test_norms_that_seem_to_count_from_1_are_not_read_without_a_word(by, tmp_path, capsys):
    settings, _, ours = state_of("base")
    path = tmp_path / "state.safetensors"
    save_file(shifted(to_megatron(ours, settings, "retro", "local"), by), path)
    with pytest.raises(UserError, match=r"weights of norms are -0\.\d+ on average.*--layernorm-1p if|norms are 0\.0"):
        load(path, tmp_path / "model", GIVEN)
    assert not (tmp_path / "model").exists()
    load(path, tmp_path / "model", GIVEN | {"layernorm_1p": False})
    assert "read as they are all the same" in capsys.readouterr().err


def test_facts_that_the_norms_contradict_are_told(tmp_path, capsys):
    settings, _, ours = state_of("base")
    path = tmp_path / "state.safetensors"
    save_file(shifted(to_megatron(ours, settings, "retro", "te"), 0.0), path)
    load(path, tmp_path / "model", GIVEN)
    assert "norms" not in capsys.readouterr().err
    load(path, tmp_path / "model", GIVEN | {"layernorm_1p": True})
    assert "read as distances from 1 all the same" in capsys.readouterr().err


def test_small_numbers_beside_1_are_not_lost_in_half_precision(tmp_path):
    """0.001 in bf16, added to 1 in bf16, would be nothing."""
    settings, _, ours = state_of("base")
    centred = shifted(to_megatron(ours, settings, "retro", "local"), -1.0)
    name = "decoder.layers.0.input_layernorm.weight"
    centred[name] = torch.full_like(centred[name], 0.001)
    path = tmp_path / "state.safetensors"
    save_file({n: t.bfloat16() for n, t in centred.items()}, path)
    load(path, tmp_path / "model", GIVEN | {"layernorm_1p": True})
    found = load_file(tmp_path / "model" / "model.safetensors")["decoder.layers.0.attention_norm.weight"]
    assert torch.allclose(found, torch.tensor(1.001), atol=1e-5) and not torch.equal(found, torch.ones(len(found)))


def test_facts_go_by_several_names():
    assert flatten({"args": {"hidden": 8}, "ffn_hidden_size": 32}) == {"width": 8, "ffn": 32}
    assert flatten({"config": {"num_attention_heads": 4, "norm_epsilon": 1e-6}}) == {"heads": 4, "eps": 1e-6}


def test_the_command_line_says_what_is_wrong_and_exits_1(warm, tmp_path):
    def run(*arguments):
        return subprocess.run(
            [warm.python, "-m", "retro.interop.megatron", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )

    done = run("check", write_dump(tmp_path, "base"))
    assert done.returncode == 0 and "gradients" in done.stdout
    done = run("check", write_dump(tmp_path, "base", spoil="out/logits"))
    assert done.returncode == 1 and "ABOVE" in done.stdout and not done.stderr
    done = run("import", tmp_path / "none.safetensors", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path / 'none.safetensors'}: no such file")
