"""Initial weights: reproducible, shared by twins, and well behaved; losses and their shortcuts."""

import random

import pytest
import torch
import torch.nn.functional as F

from retro.model.build import build_model
from retro.model.layers import RMSNorm, rope_table, rotate, token_losses
from retro.model.settings import ModelSettings
from tests.model.shapes import inputs, small_model

SHAPE = {"vocab_size": 32, "seq_length": 16, "chunk_length": 4, "retrieved_length": 8}


def build(seed, architecture="retro", **fields):
    settings = ModelSettings(**({"layers": 3, "width": 16, "heads": 2} | fields))
    return build_model(settings, architecture=architecture, seed=seed, **SHAPE)


@pytest.mark.parametrize("flavour", ["paper", "megatron", "copy-ready"])
def test_twins_begin_equal_and_names_tell_the_retrieval_half(flavour):
    gpt = build(7, "gpt", flavour=flavour).state_dict()
    retro = build(7, flavour=flavour).state_dict()
    added = {name for name in retro if name.startswith(("encoder.", "copier.")) or ".cca." in name}
    assert added and set(retro) - added == set(gpt)
    assert all(torch.equal(retro[name], gpt[name]) for name in gpt)


def test_a_seed_is_all_that_weights_depend_on():
    torch.manual_seed(1)
    first, state = build(3).state_dict(), torch.get_rng_state()
    torch.manual_seed(2)
    again, other = build(3).state_dict(), build(4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[n], other[n]) for n in first if n.endswith("qkv.weight"))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


def test_names_are_stable():
    names = set(build(1).state_dict())
    assert {
        "embedding.tokens.weight",
        "decoder.layers.0.attention_norm.weight",
        "decoder.layers.0.attention.qkv.weight",
        "decoder.layers.0.attention.out.weight",
        "decoder.layers.2.cca.norm.weight",
        "decoder.layers.2.cca.q.weight",
        "decoder.layers.2.cca.kv.weight",
        "decoder.layers.2.cca.out.weight",
        "decoder.layers.0.mlp_norm.weight",
        "decoder.layers.0.mlp.up.weight",
        "decoder.layers.0.mlp.down.weight",
        "decoder.norm.weight",
        "encoder.embedding.weight",
        "encoder.layers.0.cross.kv.weight",
        "encoder.norm.weight",
    } <= names


@pytest.mark.parametrize("architecture", ["gpt", "retro"])
def test_initial_spread_is_init_std(architecture):
    model = build(1, architecture, width=64, init_std=0.05)
    state = model.state_dict()
    assert state["decoder.layers.0.attention.qkv.weight"].std().item() == pytest.approx(0.05, rel=0.1)
    assert state["decoder.layers.0.mlp.down.weight"].std().item() == pytest.approx(0.05 / 6**0.5, rel=0.1)
    assert (state["decoder.norm.weight"] == 1).all()


def test_meta_models_have_no_values_and_seedless_ones_are_ready_to_load():
    with torch.device("meta"):
        assert all(p.is_meta for p in build(1).parameters())
    blank = build(None)
    assert all(not p.is_meta for p in blank.parameters())
    blank.load_state_dict(build(1).state_dict(), strict=True)


@pytest.mark.parametrize("key", ["vocab_size", "chunk_length", "retrieved_length", "seq_length"])
def test_lengths_below_one_are_refused(key):
    with pytest.raises(ValueError, match=f"{key} is 0"):
        build_model(ModelSettings(), architecture="gpt", seed=1, **(SHAPE | {key: 0}))
    with pytest.raises(ValueError, match="choose gpt or retro"):
        build_model(ModelSettings(), architecture="bert", seed=1, **SHAPE)


def test_a_fresh_copy_ready_model_reads_on_after_a_match():
    """Before any training, a neighbour that holds the text raises the probability of its continuation."""
    settings = ModelSettings(flavour="copy-ready", layers=3, width=64, heads=2)
    model = build_model(
        settings,
        architecture="retro",
        vocab_size=500,
        seq_length=32,
        chunk_length=8,
        retrieved_length=16,
        seed=1,
    )
    text = torch.randperm(500, generator=torch.Generator().manual_seed(0))[:32].view(1, 32)
    chunks = text.view(1, 4, 8)
    book = torch.cat([chunks, chunks.roll(-1, 1)], dim=-1)[:, :, None]  # each chunk with what follows it
    targets = F.pad(text[:, 1:], (0, 1), value=-1)
    on, off = model(text, book, None, targets), model(text, targets=targets)
    assert (on - off)[0, 7:31].max() < -0.5
    assert (on - off)[0, :7].abs().max() == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_losses_are_cross_entropies_and_exactly_zero_without_target(share):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 8, generator=generator, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, requires_grad=True)
    targets = torch.randint(11, (2, 5), generator=generator)
    targets[torch.rand(2, 5, generator=generator) >= share] = -1
    losses = token_losses(x, weight, targets)
    expected = F.cross_entropy((x @ weight.T).transpose(1, 2), targets, ignore_index=-1, reduction="none")
    assert losses.dtype == torch.float32 and losses.shape == targets.shape
    torch.testing.assert_close(losses, expected)
    assert (losses[targets < 0] == 0).all()
    scale = torch.arange(10.0).view(2, 5)
    got = torch.autograd.grad((losses * scale).sum(), (x, weight))
    wanted = torch.autograd.grad((expected * scale).sum(), (x, weight))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_the_fast_rmsnorm_is_torch_s():
    norm, x = RMSNorm(24, eps=1e-5), torch.randn(3, 5, 24, requires_grad=True)
    torch.nn.init.normal_(norm.weight)
    grad = torch.randn(3, 5, 24)
    fast = norm(x)
    plain = F.rms_norm(x, (24,), norm.weight, 1e-5)
    torch.testing.assert_close(fast, plain)
    for a, b in zip(
        torch.autograd.grad(fast, (x, norm.weight), grad),
        torch.autograd.grad(plain, (x, norm.weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rotated", [8, 4])
def test_rope_depends_on_distance_only(rotated):
    q, k = torch.randn(2, 1, 1, 1, 8)
    scores = [
        (
            rotate(q, rope_table(torch.tensor([a]), rotated, 100.0))
            * rotate(k, rope_table(torch.tensor([b]), rotated, 100.0))
        )
        .sum()
        .item()
        for a, b in [(5, 2), (9, 6), (3, 0)]
    ]
    assert max(scores) - min(scores) < 1e-5


def test_evaluation_is_deterministic_with_dropout_set():
    model = small_model(ModelSettings(layers=2, width=16, dropout=0.5, attention_dropout=0.5, encoder_dropout=0.5))
    x, neighbours, mask, y = inputs(random.Random(0))
    model.eval()
    assert torch.equal(model(x, neighbours, mask, y), model(x, neighbours, mask, y))
    model.train()
    assert not torch.equal(model(x, neighbours, mask, y), model(x, neighbours, mask, y))
