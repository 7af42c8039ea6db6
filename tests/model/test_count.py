"""Counts by formula are counts of the built model, and Megatron-core's."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retro.model.build import build_model
from retro.model.count import MEGATRON_SHAPES, flops_per_token, parameters
from retro.model.settings import ModelSettings
from tests.model.shapes import random_settings


def built(settings, architecture, **shape):
    with torch.device("meta"):
        model = build_model(settings, architecture=architecture, seed=1, **shape)
    assert all(p.is_meta for p in model.parameters())
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("flavour", ["paper", "megatron", "copy-ready"])
def test_the_formula_counts_what_is_built(flavour, seed):
    rng = random.Random(f"count{flavour}{seed}")
    settings = random_settings(rng, flavour)
    shape = {"vocab_size": 11, "seq_length": rng.choice([4, 16]), "chunk_length": 4, "retrieved_length": 8}
    for architecture in ("gpt", "retro"):
        assert parameters(settings, architecture, **shape) == built(settings, architecture, **shape)


# From Megatron-core 0.16.0rc0: label, vocabulary, tied, rope + SwiGLU + no bias, parameters.
@pytest.mark.parametrize(
    ("label", "vocab", "tied", "modern", "count"),
    [
        ("857m", 50304, True, False, 410_513_408),
        ("857m", 50304, False, False, 462_024_704),
        ("857m", 256000, True, False, 621_146_112),
        ("857m", 256000, False, False, 883_290_112),
        ("857m", 256000, False, True, 877_516_800),
        ("2b", 50304, True, False, 1_970_503_680),
        ("2b", 50304, False, False, 2_073_526_272),
        ("2b", 256000, False, True, 2_906_705_920),
        ("4b", 50304, True, False, 4_461_291_520),
        ("4b", 50304, False, False, 4_590_069_760),
        ("4b", 256000, False, True, 5_620_300_800),
    ],
)
def test_megatron_s_shapes_have_megatron_s_counts(label, vocab, tied, modern, count):
    layers, width, heads = MEGATRON_SHAPES[label]
    fields = {"positions": "rope", "activation": "swiglu", "bias": False} if modern else {}
    settings = ModelSettings(flavour="megatron", layers=layers, width=width, heads=heads, tied=tied, **fields)
    shape = {"vocab_size": vocab, "seq_length": 2048, "chunk_length": 64, "retrieved_length": 128}
    assert parameters(settings, "retro", **shape) == built(settings, "retro", **shape) == count


@pytest.mark.parametrize("architecture", ["gpt", "retro"])
@pytest.mark.parametrize(
    "fields",
    [
        {"encoder_width": 16, "cca_kv_heads": 2, "activation": "swiglu"},
        {"flavour": "copy-ready", "encoder_width": 32, "copy_context": 2, "kv_heads": 2},
    ],
)
def test_operations_are_those_that_torch_counts(architecture, fields):
    settings = ModelSettings(layers=3, width=64, heads=4, **fields)
    shape = {"vocab_size": 97, "seq_length": 64, "chunk_length": 16, "retrieved_length": 32}
    model = build_model(settings, architecture=architecture, seed=1, **shape)
    x = torch.zeros(2, 64, dtype=torch.int64)
    neighbours = torch.zeros(2, 4, 2, 32, dtype=torch.int64) if architecture == "retro" else None
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(x, neighbours, targets=x).sum().backward()
    causal = settings.layers * 64 * 64 * 6  # torch counts the half that the causal mask hides
    expected = flops_per_token(settings, architecture=architecture, neighbours=2, **shape) + causal
    assert counter.get_total_flops() / x.numel() == pytest.approx(expected, rel=0.03)
