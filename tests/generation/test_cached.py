"""Cached decoding gives the logits of uncached passes over the window, across chunk borders and slides."""

from itertools import islice

import numpy as np
import pytest
import torch

from retro.generation.decoding import Decoder, Found, Growing, Prompt, Query, Reading, Sampler
from retro.generation.live import LiveLookup
from retro.model.build import build_model
from retro.model.cache import DecodingCache
from retro.model.settings import ModelSettings
from tests.evaluation.built import LENGTH, MODEL, M

KINDS = {"gpt": ("gpt", "paper"), "paper": ("retro", "paper"), "copy-ready": ("retro", "copy-ready")}


def make(dataset, kind):
    architecture, flavour = KINDS[kind]
    shape = {"seq_length": LENGTH, "chunk_length": M, "retrieved_length": 2 * M}
    settings = ModelSettings(flavour=flavour, **MODEL)
    return build_model(settings, architecture=architecture, vocab_size=dataset.vocab_size, seed=3, **shape).eval()


def uncached(model, dataset, tokens, found, chunks):
    """Logits after `tokens`: one pass over the window's chunks, the last padded, with the neighbours of full ones."""
    filled = -(-len(tokens) // M)
    first = max(0, filled - chunks)
    window = np.full((filled - first) * M, dataset.tokenizer.pad_id)
    seen = tokens[first * M :]
    window[: len(seen)] = seen
    given = (None, None)
    if found:
        rows = np.full((1, filled - first, 2), -1, np.int64)
        for end, each in found.items():
            if end > first * M:
                rows[0, end // M - 1 - first] = each.rows
        given = map(torch.from_numpy, dataset.store.retrieved(rows, 2))
    with torch.no_grad():
        return model(torch.from_numpy(window)[None], *given)[0, len(seen) - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_are_uncached_logits_across_borders_and_slides(dataset, kind):
    model, chunks, rng = make(dataset, kind), 3, np.random.default_rng(0)
    shape = {"seq_length": chunks * M, "eod_id": dataset.tokenizer.eod_id, "retrieved_chunks": 2}
    decoder, tokens = Decoder(model, dataset.store, **shape), rng.integers(5, dataset.vocab_size, 6 * M)
    text = Growing(Prompt(tokens, 0, Sampler()), 0, decoder)
    reading, found = Reading(decoder, 1, len(tokens)), text.found
    reading.texts.append(text)
    for size in range(M + 3, len(tokens) + 1):
        while kind != "gpt" and len(found) < size // M:
            holes = len(found) == 1  # the second chunk found nothing
            rows = np.full(2, -1) if holes else rng.choice(dataset.database, 2)
            found[(len(found) + 1) * M] = Found(rows, np.zeros(2))
        text.size = size
        (logits,) = reading.logits()
        torch.testing.assert_close(logits, uncached(model, dataset, tokens[:size], found, chunks), atol=2e-5, rtol=1e-4)


def test_a_step_of_a_chunk_is_the_grid_and_a_smaller_one_asks_for_the_last_tokens(dataset):
    asked, rows = [], dataset.database[[1, 4]]
    shape = {"seq_length": LENGTH, "eod_id": -1, "retrieved_chunks": 2}

    def lookup(queries):
        asked.extend(query.tokens.tolist() for query in queries)
        return [Found(rows, np.zeros(2)) for _ in queries]

    def write(step):
        asked.clear()
        made = Decoder(make(dataset, "paper"), dataset.store, lookup=lookup, retrieval_step=step, **shape)
        return [each.token for each in made.write(np.arange(20, 20 + 2 * M), 2 * M, Sampler())]

    assert write(M) == write(None)
    whole = [*range(20, 20 + 2 * M), *write(3)]
    ends = [M, *range(2 * M, 4 * M, 3)]
    assert asked == [whole[end - M : end] for end in ends]


@pytest.mark.parametrize("kind", ["paper", "copy-ready"])
def test_a_chunk_begun_anew_reads_like_one_on_the_grid(dataset, kind):
    """Rope and attention know distances only: m tokens moved off the grid are read as those on it."""
    model, rng = make(dataset, kind), np.random.default_rng(1)
    tokens = torch.from_numpy(rng.integers(5, dataset.vocab_size, (1, 2 * M)))
    neighbours, mask = map(torch.from_numpy, dataset.store.retrieved(dataset.database[[[2, 6]]][None], 2))
    with torch.no_grad():
        on = model(tokens, torch.cat([neighbours] * 2, 1), torch.cat([mask, mask & False], 1))[:, M - 1 : 2 * M - 1]
    moved = DecodingCache(model)
    moved.extend(tokens[:, : M - 1])
    torch.testing.assert_close(
        moved.extend(tokens[:, M - 1 : -1], neighbours, mask, anew=True), on, atol=2e-5, rtol=1e-4
    )
    # Off the grid: the last m of m + 3 tokens find what they found before, and the cache says where it was moved to.
    off = DecodingCache(model)
    off.extend(tokens[:, : M + 2])
    states = off._rows["chunk", 0].clone()
    off.extend(tokens[:, M + 2 : M + 3], neighbours, mask, anew=True)
    kept = torch.cat([states[:, 3:], states[:, :2]], dim=1)
    torch.testing.assert_close(off._rows["chunk", 0][:, :-1], kept, atol=0, rtol=0)
    assert off.completes(M - 1) == 0 and off.completes(M) == 1
    with pytest.raises(ValueError, match="make no chunk"):
        DecodingCache(model).extend(tokens[:, :1], neighbours, mask, anew=True)


def test_live_ids_are_those_that_the_search_stored(dataset):
    stored = dataset.neighbour_ids("test")
    lookup = LiveLookup(dataset, stored.shape[1])
    for position, row in islice(enumerate(dataset.rows("test")), 12):
        tokens, mask = dataset.store.tokens(np.array(row))
        (found,) = lookup([Query(tokens[mask])])
        assert found.rows.tolist() == dataset.neighbour_rows(stored[position]).tolist()


def test_the_same_seed_finds_the_same_neighbours(dataset):
    shape = {"seq_length": LENGTH, "eod_id": -1, "retrieved_chunks": 2}

    def write():
        made = Decoder(make(dataset, "copy-ready"), dataset.store, lookup=LiveLookup(dataset, 2), **shape)
        steps = list(made.write(np.arange(20, 20 + M), 2 * M, Sampler(1.0, 0.9, 5, 40)))
        return [(step.token, [found.rows.tolist() for _, found in step.looked_up]) for step in steps]

    assert write() == write()


def test_top_k_keeps_the_likeliest():
    logits = torch.tensor([2.0, 1.9, -3.0, 1.0])
    assert {Sampler(5.0, 1.0, seed, 2).choose(logits) for seed in range(100)} == {0, 1}
    assert {Sampler(5.0, 1.0, seed, 1).choose(logits) for seed in range(20)} == {0}
