"""Decoders of Hugging Face: read, they compute the same; written, they are the same bits."""

import pytest
import torch
from torch import nn

from retro.model.build import build_model
from retro.model.cache import DecodingCache
from retro.model.exchange import BUFFERS, from_theirs, to_theirs
from retro.model.families import decoder, stock, stock_config
from retro.model.layers import frequencies
from retro.model.settings import ModelSettings
from tests.model.families import FAMILIES, make, saved

LENGTHS = {"vocab_size": 260, "seq_length": 32, "chunk_length": 4, "retrieved_length": 8}


def ours_of(facts, state, architecture="gpt", **fields):
    """Our model of a config.json with the tensors beside it, in float64."""
    settings = ModelSettings(**decoder(facts, 32), **fields)
    model = build_model(settings, architecture=architecture, seed=1, **LENGTHS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("encoder.", "copier.")) and ".cca." not in name:
                found = from_theirs(facts["model_type"], name, state.__getitem__, settings)
                parameter.copy_(found[: len(parameter)])  # GPT-2's table of positions is longer
    return model.double().eval()


def exact(other, settings):
    """Transformers' model in float64, also where it would stay in float32: in norms, and in the frequencies of rope,
    which are ours there; they differ by the rounding of a power.
    """
    for module in list(other.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(module, name, norm)
    other.double()
    for module in other.modules():
        if hasattr(module, "inv_freq"):
            size = 2 * (int(settings.head_size * settings.rope_fraction) // 2)
            wanted = frequencies(size, settings.rope_base, settings.rope_scaling)
            torch.testing.assert_close(module.inv_freq.float(), wanted, rtol=5e-7, atol=0)
            module.inv_freq = wanted
    return other


def tokens(count=30):
    return torch.randint(256, (2, count), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_decoder_that_was_read_computes_the_same_with_a_cache_and_without(name, tmp_path):
    other, facts, state = saved(tmp_path, name)
    ours = ours_of(facts, state)
    x = tokens()
    wanted = exact(other, ours.settings)(input_ids=x).logits
    most = 1e-10 * wanted.abs().max().item()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), wanted, atol=most, rtol=0)
    cache = DecodingCache(ours)
    pieces = [cache.extend(piece) for piece in x.split([1, 7, 1, 1, 20], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, atol=most, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_written_again_it_is_the_same_bits_and_the_same_config(name, tmp_path):
    _, facts, state = saved(tmp_path, name)
    settings = ModelSettings(**decoder(facts, 32))
    kind = stock(settings)
    assert kind == {"mistral": "llama"}.get(facts["model_type"], facts["model_type"])
    model = build_model(settings, architecture="gpt", seed=None, **{**LENGTHS, "seq_length": 64})
    found = {}
    for parameter in dict(model.named_parameters()):
        tensor = from_theirs(kind, parameter, state.__getitem__, settings)
        found |= dict(to_theirs(kind, parameter, tensor, settings))
    left = {name for name in state if not BUFFERS.fullmatch(name)} - found.keys()
    assert left <= ({"lm_head.weight"} if settings.tied else set())
    assert all(torch.equal(found[name], state[name]) for name in found)
    written = {"model_type": kind, **stock_config(kind, settings, 260, 64)}
    assert ModelSettings(**decoder(written)) == settings


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("flavour", ["paper", "copy-ready"])
def test_fitted_with_retrieval_it_is_the_same_where_retrieval_is_off(name, flavour, tmp_path):
    _, facts, state = saved(tmp_path, name)
    ours = ours_of(facts, state, "retro", flavour=flavour)
    twin, x = ours_of(facts, state), tokens(14)
    generator = torch.Generator().manual_seed(1)
    neighbours = torch.randint(256, (2, 4, 2, 8), generator=generator)
    nothing = torch.zeros_like(neighbours, dtype=torch.bool)
    assert torch.equal(ours(x), twin(x)) and torch.equal(ours(x, neighbours, nothing), twin(x))
    on = ours(x, neighbours)
    assert not torch.equal(on, twin(x))
    cache = DecodingCache(ours)  # and written token by token it reads the same
    pieces = [cache.extend(x[:, :6], neighbours[:, :1]), cache.extend(x[:, 6:], neighbours[:, 1:3])]
    torch.testing.assert_close(torch.cat(pieces, 1), on, atol=1e-9, rtol=1e-9)


OLD = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}


def test_configs_of_before_transformers_5_are_read():
    llama, neox = make("llama").config.to_dict(), make("gpt_neox").config.to_dict()
    del llama["rope_parameters"], neox["rope_parameters"], llama["head_dim"]
    found = ModelSettings(**decoder(llama | OLD))
    assert (found.rope_base, found.rope_scaling.factor) == (500.0, 2.0)
    found = ModelSettings(**decoder(neox | {"rotary_pct": 0.5, "rotary_emb_base": 50}))
    assert (found.rope_base, found.rope_fraction, found.parallel_residual) == (50.0, 0.5, True)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"model_type": "mamba"}, "model_type is 'mamba', wanted one of arcee, gpt2"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type is 'dynamic'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "su"}}, "rope_scaling.rope_type is 'su'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', wanted one of silu, swish"),
        ("llama", {"attention_bias": True}, "attention_bias is True, wanted False"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True and attention_bias is not"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved is True, wanted False"),
        ("llama", {"rms_norm_eps": None}, "lacks rms_norm_eps"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, wanted None"),
        ("mistral", {"sliding_window": 16}, "sliding_window is 16, which texts of 32 tokens outgrow"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "sliding_window is 8"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, wanted False"),
        ("gpt2", {"n_positions": 16}, "n_positions is 16, and dataset.samples.seq_length 32"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias is False, wanted True"),
    ],
)  # fmt: skip
def test_what_our_decoder_does_not_compute_is_refused_by_its_key(name, fields, message):
    with pytest.raises(ValueError, match=message):
        decoder(make(name).config.to_dict() | fields, 32)
