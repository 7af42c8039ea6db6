"""What retrieval may and may not touch: causality, exact absence, order of neighbours."""

import random

import pytest
import torch

from retro.model.settings import ModelSettings
from tests.model.shapes import VOCAB, inputs, random_settings, small_model

FLAVOURS = ["paper", "megatron", "copy-ready"]


def plain(flavour, **fields):
    return ModelSettings(flavour=flavour, layers=3, width=16, heads=2, cca_layers=(1, 3), encoder_dropout=0.0, **fields)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("alignment", ["start", "end"])
@pytest.mark.parametrize("tokens", [12, 14, 13, 3, 5])
def test_neighbours_of_a_chunk_move_nothing_before_its_last_token(flavour, alignment, tokens):
    chunk = 4
    model = small_model(plain(flavour, chunk_alignment=alignment), chunk=chunk)
    x, neighbours, mask, _ = inputs(random.Random(1), tokens=tokens, chunk=chunk, missing=False)
    before = model(x, neighbours, mask)
    for u in range(neighbours.shape[1]):
        other = neighbours.clone()
        other[:, u] = (other[:, u] + 1) % VOCAB
        moved = (model(x, other, mask) != before).any(-1).any(0).nonzero()[:, 0].tolist()
        first = (u + 1) * chunk - 1 if alignment == "start" else (tokens - 1) % chunk + u * chunk
        assert moved[:1] == ([first] if first < tokens else []), (u, moved)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("context", [1, 4])
def test_a_token_moves_no_logit_before_it_nor_another_row(flavour, context):
    extra = {"copy_context": context} if flavour == "copy-ready" else {}
    model = small_model(plain(flavour, **extra), chunk=4)
    x, neighbours, mask, _ = inputs(random.Random(2), tokens=13, chunk=4)
    before = model(x, neighbours, mask)
    for t in range(13):
        other = x.clone()
        other[1, t] = (other[1, t] + 1) % VOCAB
        after = model(other, neighbours, mask)
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1, :t], before[1, :t])
        assert not torch.equal(after[1, t], before[1, t])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_without_neighbours_retro_is_its_gpt_twin_bit_for_bit(flavour, seed):
    rng = random.Random(f"off{flavour}{seed}")
    settings = random_settings(rng, flavour)
    gpt, retro = (small_model(settings, architecture=a, seed=seed) for a in ("gpt", "retro"))
    x, neighbours, mask, y = inputs(rng)
    assert torch.equal(gpt(x), retro(x))
    assert torch.equal(gpt(x, targets=y), retro(x, targets=y))
    none = torch.zeros_like(mask)
    assert torch.equal(gpt(x), retro(x, neighbours, none))
    assert torch.equal(gpt(x, targets=y), retro(x, neighbours, none, y))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_chunk_without_neighbours_is_as_with_retrieval_off(flavour):
    model = small_model(plain(flavour))
    x, neighbours, mask, _ = inputs(random.Random(3), tokens=12, missing=False)
    mask[:, 1:] = False  # only chunk 0 has neighbours, and it ends at position 2
    on, off = model(x, neighbours, mask), model(x)
    assert torch.equal(on[:, :2], off[:, :2])
    assert not torch.equal(on[:, 2], off[:, 2])
    mask[:] = False
    mask[:, -1] = True  # only the last chunk has: it reaches the last position alone
    on = model(x, neighbours, mask)
    assert torch.equal(on[:, :-1], off[:, :-1])
    assert not torch.equal(on[:, -1], off[:, -1])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_gradients_are_finite_where_nothing_is_real(flavour):
    model = small_model(plain(flavour))
    x, neighbours, mask, y = inputs(random.Random(4))
    model(x, neighbours, torch.zeros_like(mask), y).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
        if parameter.grad is not None and ".cca." in name:
            assert not parameter.grad.any(), name


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_order_of_neighbours_does_not_matter(flavour):
    model = small_model(plain(flavour)).double()
    x, neighbours, mask, _ = inputs(random.Random(5), k=3)
    order = [2, 0, 1]
    torch.testing.assert_close(
        model(x, neighbours[:, :, order], mask[:, :, order]), model(x, neighbours, mask), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("flavour", ["paper", "copy-ready"])
def test_what_is_masked_is_not_seen(flavour):
    model = small_model(plain(flavour)).double()
    x, neighbours, mask, _ = inputs(random.Random(6))
    other = torch.where(mask, neighbours, -1)  # even ids that index nothing
    assert torch.equal(model(x, other, mask), model(x, neighbours, mask))
    more = torch.cat([neighbours, neighbours[:, :, :1]], dim=2)
    seen = torch.cat([mask, torch.zeros_like(mask[:, :, :1])], dim=2)
    torch.testing.assert_close(model(x, more, seen), model(x, neighbours, mask), atol=1e-5, rtol=0)


def test_megatron_sees_padding_but_not_missing_neighbours():
    model = small_model(plain("megatron")).double()
    x, neighbours, mask, _ = inputs(random.Random(7), missing=False)
    mask[..., 3:] = False
    assert torch.allclose(model(x, neighbours, mask), model(x, neighbours), atol=1e-5)
    mask[:, :, 1] = False
    assert torch.allclose(model(x, neighbours, mask), model(x, neighbours[:, :, :1]), atol=1e-5)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_fewer_and_shorter_neighbours_than_built_for(flavour):
    model = small_model(plain(flavour))
    x, neighbours, _, _ = inputs(random.Random(8), k=1, r=4)
    mask = torch.ones_like(neighbours, dtype=torch.bool)
    longer = torch.nn.functional.pad(neighbours, (0, 2))
    padded = torch.nn.functional.pad(mask, (0, 2))
    if flavour != "megatron":
        torch.testing.assert_close(model(x, longer, padded), model(x, neighbours, mask), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="built for 6"):
        model(x, torch.nn.functional.pad(neighbours, (0, 3)))


def test_wrong_inputs_are_refused_by_name():
    model, gpt = small_model(plain("megatron")), small_model(plain("megatron"), architecture="gpt")
    x, neighbours, _, _ = inputs(random.Random(9), tokens=14)
    with pytest.raises(ValueError, match="5 chunks of 3"):
        model(x, neighbours[:, :3])
    with pytest.raises(ValueError, match="a GPT was given neighbours"):
        gpt(x, neighbours)
    with pytest.raises(ValueError, match="table of positions ends at 16"):
        model(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_bfloat16_keeps_what_is_exact(flavour):
    gpt, retro = (small_model(plain(flavour), architecture=a) for a in ("gpt", "retro"))
    x, neighbours, mask, y = inputs(random.Random(10))
    with torch.autocast("cpu", torch.bfloat16):
        losses = retro(x, neighbours, mask, y)
        assert losses.dtype == torch.float32
        losses.sum().backward()
        assert torch.equal(retro(x, targets=y), gpt(x, targets=y))
        assert torch.equal(retro(x, neighbours, torch.zeros_like(mask), y), gpt(x, targets=y))
    assert all(p.grad is None or p.grad.isfinite().all() for p in retro.parameters())
