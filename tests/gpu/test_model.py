"""Models on a device: logits, losses, gradients, steps and texts are those of float64 on a CPU."""

import copy
import os
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retro.generation.decoding import Decoder, Found, Prompt, Sampler
from retro.model.layers import attend, losses_of_all, token_losses
from retro.model.settings import ModelSettings
from retro.training.optimizer import build_optimizer
from retro.training.settings import TrainSettings
from tests.model.shapes import inputs, small_model

ON_GPU = "RETRO_DEVICE" in os.environ
FLAVOURS = {"gpt": ("gpt", "paper"), **{name: ("retro", name) for name in ("paper", "megatron", "copy-ready")}}
MORE = {"grouped": {"kv_heads": 1}, "swiglu": {"activation": "swiglu"}, "gate": {"cca_gate": "token"}}
SHAPE = {"layers": 3, "width": 32, "heads": 2, "encoder_dropout": 0.0}


def made(kind, **more):
    architecture, flavour = FLAVOURS[kind]
    settings, shape = ModelSettings(**{**SHAPE, **more}, flavour=flavour), {"chunk": 4, "retrieved": 8, "shaken": False}
    model = small_model(settings, architecture=architecture, **shape)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # so that gates and new parts count
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def read(kind, device=None):
    x, neighbours, mask, y = inputs(random.Random(1), tokens=16, chunk=4, r=8)
    given = (x, None, None, y) if kind == "gpt" else (x, neighbours, mask, y)
    return tuple(None if each is None else each.to(device or "cpu") for each in given)


@contextmanager
def deterministic():
    """As in training (`retro.training.distribution.World`)."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def backward(model, given):
    """Losses and gradients by name."""
    losses = model(*given)
    losses.double().sum().backward()
    return losses.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("more", [{}, *MORE.values()], ids=["plain", *MORE])
@pytest.mark.parametrize("kind", FLAVOURS)
def test_losses_and_gradients_are_those_of_float64(device, kind, more):
    exact, wanted = backward(made(kind, **more).double(), read(kind))
    with deterministic():
        losses, gradients = backward(made(kind, **more).to(device), read(kind, device))
    torch.testing.assert_close(losses.cpu().double(), exact.double(), atol=2e-4, rtol=2e-4)
    assert gradients.keys() == wanted.keys()
    for name, each in gradients.items():
        size = float(wanted[name].abs().max())
        torch.testing.assert_close(each.cpu().double(), wanted[name], atol=1e-3 * max(1.0, size), rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_bf16_is_near(device, kind):
    exact = made(kind).double()(*read(kind))
    with torch.autocast(device.type, torch.bfloat16):
        losses, gradients = backward(made(kind).to(device), read(kind, device))
    assert losses.dtype == torch.float32 and all(each.isfinite().all() for each in gradients.values())
    error = (losses.cpu() - exact).abs().mean() / exact.abs().mean()
    assert error < 0.05


@pytest.mark.parametrize("kind", FLAVOURS if ON_GPU else ["gpt"])
def test_compiled_computes_the_same(device, kind):
    """On a GPU by inductor; on a CPU what it is given is traced, and run as it is."""
    model, given = made(kind, layers=1).to(device), read(kind, device)
    compiled = torch.compile(copy.deepcopy(model), backend="inductor" if device.type == "cuda" else "aot_eager")
    losses = model(*given)
    losses.sum().backward()
    again = compiled(*given)
    again.sum().backward()
    torch.testing.assert_close(again, losses, atol=2e-4, rtol=2e-4)
    for one, other in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["heads", "grouped"])
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("kind", ["causal", "hidden", "added", "free"])
def test_fused_attention_is_attention(device, kind, size, heads):
    """Whatever kernel PyTorch takes for the shapes and masks of this project."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 24, each, size, generator=generator) for each in (heads[0], heads[1], heads[1]))
    hidden = torch.rand(2, 1, 1, 24, generator=generator) > 0.3
    mask = {"hidden": hidden, "added": torch.randn(2, heads[0], 24, 24, generator=generator)}.get(kind)

    def by_hand():
        wide = [each.double().repeat_interleave(heads[0] // each.shape[2], 2).transpose(1, 2) for each in (q, k, v)]
        scores = wide[0] @ wide[1].transpose(-1, -2) / size**0.5
        if kind == "causal":
            scores = scores.masked_fill(~torch.ones(24, 24, dtype=torch.bool).tril(), -torch.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return (scores.softmax(-1) @ wide[2]).transpose(1, 2).flatten(2)

    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        there = [each.to(device, dtype) for each in (q, k, v)]
        found = attend(*there, mask=None if mask is None else mask.to(device), causal=kind == "causal")
        torch.testing.assert_close(found.cpu().double(), by_hand(), atol=near, rtol=near)


def test_steps_of_the_optimizer_are_those_of_a_cpu(device):
    weights = []
    for place in (device, torch.device("cpu")):
        model = made("paper").to(place)
        optimizer = build_optimizer(model, TrainSettings(lr=1e-3))
        for _ in range(3):
            model(*read("paper", place)).mean().backward()
            optimizer.step()
            for parameter in model.parameters():
                parameter.grad = None
        weights.append(model)
    for (name, one), other in zip(weights[0].named_parameters(), weights[1].parameters(), strict=True):
        torch.testing.assert_close(one.detach().cpu(), other.detach(), atol=2e-4, rtol=1e-3, msg=name)


class Nothing:
    """A store of which only padding and chunk length are asked."""

    length, pad_id = 4, 0


@pytest.mark.parametrize("kind", FLAVOURS)
def test_texts_written_side_by_side_are_those_of_a_cpu(device, kind):
    tokens, mask = np.arange(16).reshape(2, 8) % 13, np.ones((2, 8), bool)
    found = Found(np.full(2, -1), np.zeros(2), tokens, mask)

    def lookup(queries):
        return [found] * len(queries)

    written = []
    for place in (device, torch.device("cpu")):
        model, rng = made(kind).to(place).eval(), np.random.default_rng(2)
        shape = {"seq_length": 12, "eod_id": -1, "lookup": None if kind == "gpt" else lookup}
        prompts = [Prompt(rng.integers(0, 13, size), 10, Sampler()) for size in (3, 7, 4)]
        steps = Decoder(model, Nothing(), **shape).write_all(prompts, 3)
        written.append([(number, step.token) for number, step in steps])
    assert written[0] == written[1]


@pytest.mark.parametrize(("kind", "free"), [("gpt", 3), ("paper", 3), ("megatron", 3 + 2), ("copy-ready", 3)])
def test_self_attention_of_the_decoder_is_given_no_mask(device, monkeypatch, kind, free):
    """FlashAttention takes none: it is left to the decoder, and to an encoder that sees padding."""
    masks = []

    def noted(*arguments, attn_mask=None, **options):
        masks.append(attn_mask)
        return real(*arguments, attn_mask=attn_mask, **options)

    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    made(kind).to(device)(*read(kind, device))
    crossed = 1 if kind != "gpt" else 0  # the encoder's cross-attention to whole chunks
    assert sum(mask is None for mask in masks) == free + crossed
    assert len(masks) == (3 if kind == "gpt" else 3 + 2 + 1 + 2 - (kind == "copy-ready"))


def test_losses_without_waiting_are_those_of_the_positions_that_have_a_target():
    """What a GPU computes, in float64 on a CPU: values and gradients."""
    x, weight, targets = torch.randn(2, 9, 4).double(), torch.randn(13, 4).double(), torch.randint(-2, 13, (2, 9))
    found = []
    for work in (token_losses, lambda x, w, y: losses_of_all(x.flatten(0, 1), w, y.flatten()).view_as(y)):
        own = [each.clone().requires_grad_() for each in (x, weight)]
        losses = work(*own, targets)
        losses.sum().backward()
        found.append([losses.detach(), *(each.grad for each in own)])
    assert (found[1][0][targets < 0] == 0).all()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
