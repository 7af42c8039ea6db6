"""Counts by formula are counts of the built model, and Megatron-core's."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from retro.config import schema
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


@pytest.mark.parametrize("name", MEGATRON_SHAPES)
@pytest.mark.parametrize("architecture", ["gpt", "retro"])
def test_a_preset_of_full_size_takes_the_operations_of_the_formula(name, architecture):
    dataset = {"name": name, "sources": {"corpus": {"path": "corpus"}}}
    preset = schema.parse({"preset": name, "dataset": dataset}, name)
    settings = next(iter(preset.models().values())).model
    assert (settings.layers, settings.width, settings.heads) == MEGATRON_SHAPES[name]
    n, m = preset.dataset.samples.seq_length, preset.dataset.chunk_length
    k, r = preset.train.neighbours_used, preset.train.retrieved_chunks * m
    shape = {"vocab_size": 50304, "seq_length": n, "chunk_length": m, "retrieved_length": r}
    with torch.device("meta"):
        model = build_model(settings, architecture=architecture, seed=None, **shape)
        tokens = torch.zeros(1, n, dtype=torch.int64)
        neighbours = torch.zeros(1, n // m, k, r, dtype=torch.int64) if architecture == "retro" else None
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            model(tokens, neighbours).sum().backward()
    causal = settings.layers * n * settings.width * 6  # torch counts the half that the causal mask hides
    expected = flops_per_token(settings, architecture=architecture, neighbours=k, **shape) + causal
    assert counter.get_total_flops() == n * expected


def test_presets_train_as_megatron_s_script_does():
    """The values of its train_retro_2b_distributed.sh, and of the arguments that it leaves at their defaults."""
    for name in MEGATRON_SHAPES:
        dataset = {"name": name, "sources": {"corpus": {"path": "corpus"}}}
        preset = schema.parse({"preset": name, "dataset": dataset}, name)
        run = next(run for run in preset.models().values() if run.retro)
        train, model, samples = run.train, run.model, preset.dataset.samples
        assert (train.lr, train.min_lr, train.schedule) == (6e-4, 6e-5, "cosine")
        assert (train.warmup_samples, samples.max_samples) == (162_761, 166_400_000)
        assert (train.weight_decay, train.beta1, train.beta2, train.clip) == (0.1, 0.9, 0.95, 1.0)
        assert (train.micro_batch_size, samples.global_batch_size, train.precision) == (4, 256, "bf16")
        assert (model.init_std, model.activation) == (0.023, "gelu_tanh")
        assert (model.dropout, model.attention_dropout, model.encoder_dropout) == (0.1, 0.1, 0.1)
        assert (train.neighbours_used, train.retrieved_chunks, preset.dataset.chunk_length) == (2, 2, 64)
        assert (train.log_interval, train.log_norms, train.checkpoint_interval) == (100, True, 10_000)
        assert (samples.seq_length, samples.eval_interval, samples.eval_iterations) == (2048, 1000, 10)
