"""Decoding with a cache gives the logits of the whole sequence."""

import random

import pytest
import torch

from retro.model.cache import DecodingCache
from retro.model.settings import ModelSettings
from tests.model.shapes import inputs, random_settings, small_model


def pieces(rng, tokens):
    """Cut `tokens` into random pieces."""
    out = []
    while tokens:
        out.append(rng.randint(1, min(tokens, 7)))
        tokens -= out[-1]
    return out


def decode(model, x, neighbours, mask, cut):
    cache, logits, start, chunk = DecodingCache(model), [], 0, 0
    for count in cut:
        full = cache.completes(count)
        given = None if neighbours is None else neighbours[:, chunk : chunk + full]
        seen = None if mask is None else mask[:, chunk : chunk + full]
        logits.append(cache.extend(x[:, start : start + count], given, seen))
        start, chunk = start + count, chunk + full
    assert cache.length == x.shape[1]
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("flavour", ["paper", "megatron", "copy-ready"])
def test_cached_logits_are_those_of_the_whole_sequence(flavour, seed):
    rng = random.Random(f"cache{flavour}{seed}")
    settings = random_settings(rng, flavour)
    chunk = rng.randint(1, 4)
    tokens = chunk * rng.randint(1, 4)  # whole chunks, where both alignments agree
    if settings.chunk_alignment == "start":
        tokens = rng.randint(1, 16)
    model = small_model(settings, chunk=chunk, seed=seed).double().eval()
    x, neighbours, mask, _ = inputs(rng, tokens=tokens, chunk=chunk)
    if seed % 3 == 0:
        mask = None
    cut = pieces(rng, tokens)
    torch.testing.assert_close(
        decode(model, x, neighbours, mask, cut), model(x, neighbours, mask), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(decode(model, x, None, None, cut), model(x), atol=1e-5, rtol=1e-5)


def test_a_gpt_decodes_too_and_one_token_at_a_time():
    model = small_model(ModelSettings(layers=2, width=16, heads=2), architecture="gpt").eval()
    x, *_ = inputs(random.Random(0), tokens=9)
    torch.testing.assert_close(decode(model, x, None, None, [1] * 9), model(x), atol=1e-5, rtol=1e-5)


def test_last_gives_only_the_logits_of_the_last_token():
    model = small_model(ModelSettings(layers=2, width=16, heads=2)).eval()
    x, neighbours, mask, _ = inputs(random.Random(0), tokens=9)
    last = DecodingCache(model).extend(x, neighbours, mask, last=True)
    torch.testing.assert_close(last, model(x, neighbours, mask)[:, -1:], atol=1e-5, rtol=1e-5)


def test_neighbours_are_encoded_once_a_chunk():
    model = small_model(ModelSettings(layers=3, width=16, heads=2, cca_layers=(1, 3))).eval()
    x, neighbours, mask, _ = inputs(random.Random(0), tokens=12)
    calls = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    decode(model, x, neighbours, mask, [1] * 12)
    assert len(calls) == 4


def test_misuse_is_refused():
    settings = ModelSettings(layers=2, width=16, heads=2)
    model = small_model(settings)
    with pytest.raises(ValueError, match="training mode"):
        DecodingCache(model.train())
    cache = DecodingCache(model.eval(), capacity=4)
    x, neighbours, _, _ = inputs(random.Random(0), tokens=4)
    with pytest.raises(ValueError, match="complete 1 chunks, but neighbours of 2"):
        cache.extend(x, neighbours)
    cache.extend(x)
    with pytest.raises(ValueError, match="exceed the capacity of 4"):
        cache.extend(x)
    with pytest.raises(ValueError, match="table of positions ends at 16"):
        DecodingCache(small_model(ModelSettings(flavour="megatron", layers=2, width=16, heads=2)).eval(), capacity=17)
    with pytest.raises(ValueError, match="a GPT was given neighbours"):
        DecodingCache(small_model(settings, architecture="gpt").eval()).extend(x, neighbours[:, :1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("flavour", ["paper", "megatron", "copy-ready"])
def test_rows_of_different_lengths_are_each_read_as_if_alone(flavour, seed):
    """Of one cache, a token each at a time; rows begin again and move, and chunks of their own begin anew."""
    rng = random.Random(f"rows{flavour}{seed}")
    chunk, count = rng.randint(2, 4), 14
    model = small_model(random_settings(rng, flavour), chunk=chunk, seed=seed).double().eval()
    x, neighbours, mask, _ = inputs(rng, batch=3, tokens=count, chunk=chunk)
    begun = [rng.randint(0, 5) for _ in range(3)]
    alone, rows = [DecodingCache(model) for _ in begun], DecodingCache(model, rows=4)
    order = [0, 1, 2]  # the text in each row
    for row, own in enumerate(begun):
        for cache, first in ((alone[row], 0), (rows, row)):
            if own:
                given = neighbours[row : row + 1, : own // chunk], mask[row : row + 1, : own // chunk]
                cache.extend(x[row : row + 1, :own], *given, first=first)
    for step in range(8):
        if step == 4:  # the first text ends; the last takes its row
            rows.move(2, 0)
            order = [2, 1]
        tokens = torch.stack([x[text, begun[text] + step] for text in order])
        ends = [begun[text] + step + 1 for text in order]
        anew = [row for row, end in enumerate(ends) if end >= chunk and (end % chunk == 0 or rng.random() < 0.2)]
        given = (
            neighbours[:1, step // chunk].expand(len(anew), -1, -1),
            mask[:1, step // chunk].repeat(len(anew), 1, 1),
        )
        kept = rng.random() < 0.8 and bool(anew)
        found = rows.step(tokens, anew, *(given if kept else ()))
        for row, text in enumerate(order):
            at = begun[text] + step
            near = tuple(each[:1, None] for each in given) if row in anew and kept else ()
            whole = alone[text].extend(x[text : text + 1, at : at + 1], *near, anew=row in anew)[0, 0]
            torch.testing.assert_close(found[row], whole, atol=1e-10, rtol=1e-10)
    rows.clear(1)
    again = rows.extend(x[:1, :chunk], neighbours[:1, :1], mask[:1, :1], first=1)
    fresh = DecodingCache(model).extend(x[:1, :chunk], neighbours[:1, :1], mask[:1, :1])
    torch.testing.assert_close(again, fresh, atol=1e-10, rtol=1e-10)
