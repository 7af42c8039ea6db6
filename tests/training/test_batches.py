"""What a model is given, against loops that spell the rules out."""

import itertools

import numpy as np
import pytest
import torch

from retro.base.stage import UserError
from retro.training.batches import Batcher, hidden_chunks, text_ahead
from retro.training.samples import Samples, documents_of
from retro.training.settings import CurriculumSettings
from tests.training.toy import EOD, SEQ, M

K, R = 3, 2


@pytest.fixture(scope="module")
def batcher(dataset):
    return Batcher(dataset, "train", neighbours_used=K, retrieved_chunks=R)


@pytest.fixture(scope="module")
def positions(dataset):
    return Samples(documents_of(dataset, "train"), SEQ // M, 1).samples(np.arange(60))


def chunk_tokens(dataset, row):
    """A chunk's tokens as a list, from the store, the slow way."""
    source = sum(row >= offset for offset in dataset.store.offsets[1:])
    record = dataset.store.tables[source][row - dataset.store.offsets[source]]
    start, length = int(record["start"]), int(record["length"])
    return [int(token) for token in dataset.store.stores[source].tokens[start : start + length]]


def document(dataset, row):
    source = sum(row >= offset for offset in dataset.store.offsets[1:])
    return source, int(dataset.store.tables[source][row - dataset.store.offsets[source]]["document"])


def test_targets_are_the_next_tokens_of_the_stream(dataset, batcher, positions):
    batch = batcher.batch(positions)
    rows = dataset.rows("train")
    for number, sample in enumerate(positions):
        chunks = [chunk_tokens(dataset, rows[position]) for position in sample]
        tokens, targets = [], []
        for chunk, following in itertools.pairwise(chunks):
            padded = chunk + [None] * (M - len(chunk))
            tokens += [EOD if token is None else token for token in padded]
            targets += [-1 if token is None else token for token in padded[1:]] + [following[0]]
        assert batch.tokens[number].tolist() == tokens
        assert batch.targets[number].tolist() == targets
    assert batch.counted == int((batch.targets >= 0).sum())


def test_over_an_epoch_every_token_but_the_first_is_a_target_once(dataset, batcher):
    samples = Samples(documents_of(dataset, "train"), SEQ // M, 1, epochs=1)
    batch = batcher.batch(samples.samples(np.arange(samples.number)))
    tokens = int(dataset.store.chunks(dataset.rows("train"))["length"].sum())
    assert batch.counted == tokens - 1


def test_a_missing_chunk_brings_padding_and_no_targets(batcher):
    batch = batcher.batch(np.array([[4, -1, -1, -1, -1]]))
    assert (batch.tokens[0, M:] == EOD).all()
    assert (batch.targets[0, M - 1 :] == -1).all()
    assert not batch.mask[0, 1:].any()


def test_neighbours_are_the_stored_chunks_and_continue_inside_their_document(dataset, batcher, positions):
    batch = batcher.batch(positions)
    ids = dataset.neighbour_ids("train")
    assert batch.neighbours.shape == batch.mask.shape == (len(positions), SEQ // M, K, R * M)
    ended = missing = 0
    for b, sample in enumerate(positions):
        for u, position in enumerate(sample[:-1]):
            for k in range(K):
                wanted = []
                if ids[position, k] < 0:
                    missing += 1
                else:
                    row = int(dataset.database[ids[position, k]])
                    wanted = chunk_tokens(dataset, row)
                    wanted += [None] * (M - len(wanted))
                    if row + 1 < len(dataset.store) and document(dataset, row) == document(dataset, row + 1):
                        wanted += chunk_tokens(dataset, row + 1)
                    else:
                        ended += 1
                wanted += [None] * (R * M - len(wanted))
                assert batch.mask[b, u, k].tolist() == [token is not None for token in wanted]
                seen = batch.neighbours[b, u, k][batch.mask[b, u, k]]
                assert seen.tolist() == [token for token in wanted if token is not None]
    assert ended and missing


def test_hidden_chunks_see_nothing_and_others_are_untouched(batcher, positions):
    hidden = np.zeros((len(positions), SEQ // M), bool)
    hidden[3, 1] = hidden[5] = True
    full, batch = batcher.batch(positions), batcher.batch(positions, hidden)
    assert not batch.mask[torch.from_numpy(hidden)].any()
    assert torch.equal(batch.mask[torch.from_numpy(~hidden)], full.mask[torch.from_numpy(~hidden)])
    assert torch.equal(batch.tokens, full.tokens)


def test_dropout_is_decided_by_sample_number_and_has_its_rate():
    numbers = np.arange(20_000)
    hidden = hidden_chunks(1, numbers, 4, 0.25, 0.1)
    assert np.array_equal(hidden[[17, 5]], hidden_chunks(1, np.array([17, 5]), 4, 0.25, 0.1))
    assert abs(hidden.mean() - (1 - 0.75 * 0.9)) < 0.01
    whole = hidden_chunks(1, numbers, 4, 0.0, 0.1)
    assert set(whole.sum(1).tolist()) == {0, 4} and abs(whole.mean() - 0.1) < 0.01
    assert not np.array_equal(hidden, hidden_chunks(2, numbers, 4, 0.25, 0.1))
    assert hidden_chunks(1, numbers, 4, 0.0, 0.0) is None


def test_random_neighbours_depend_on_seed_and_chunk_alone(dataset, positions):
    def random(seed):
        return Batcher(dataset, "train", neighbours_used=2, retrieved_chunks=R, ids="random", seed=seed)

    batch = random(1).batch(positions)
    assert torch.equal(batch.neighbours[7:9], random(1).batch(positions[7:9]).neighbours)
    assert not torch.equal(batch.neighbours, random(2).batch(positions).neighbours)
    assert batch.mask.any(-1).all()


def test_without_retrieval_there_are_no_neighbours(dataset, positions):
    for used, ids in ((0, "stored"), (2, "none")):
        batch = Batcher(dataset, "train", neighbours_used=used, retrieved_chunks=R, ids=ids).batch(positions)
        assert batch.neighbours is None and batch.mask is None


def test_more_neighbours_than_stored_are_refused_with_both_numbers(dataset):
    with pytest.raises(UserError, match=r"neighbours/train/ids.npy: stores 4 neighbours a chunk, wanted 9"):
        Batcher(dataset, "train", neighbours_used=9, retrieved_chunks=R)


def test_a_batch_cut_in_parts_is_the_same_batch(batcher, positions):
    batch = batcher.batch(positions)
    parts = list(batch.cut(7))
    assert [len(part) for part in parts] == [7] * 8 + [4]
    for name in ("tokens", "targets", "neighbours", "mask"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))


FADING = CurriculumSettings(fixed_until=0.25, anywhere_by=0.5, always_until=0.5, gone_by=0.75)


def test_the_text_to_come_is_shown_first_always_and_in_place_then_anywhere_then_never():
    ahead = text_ahead(FADING, 3, np.arange(1000), 1000, 8, M)
    assert (ahead[:251] == 0).all()
    assert (ahead[:500] >= 0).all() and set(ahead[400:500].ravel()) == set(range(M))
    assert ahead[260:300].max() < ahead[450:500].max()
    assert 0.4 < (ahead[600:650] >= 0).mean() < 0.6
    assert (ahead[750:] == -1).all()
    assert np.array_equal(text_ahead(FADING, 3, np.arange(430, 440), 1000, 8, M), ahead[430:440])
    assert text_ahead(None, 3, np.arange(10), 1000, 8, M) is None


def test_the_text_to_come_takes_the_first_neighbours_place_where_the_document_goes_on(dataset, batcher, positions):
    chunks = positions.shape[1] - 1
    ahead = np.arange(len(positions) * chunks).reshape(len(positions), chunks) % (M + 1) - 1
    hidden = np.arange(ahead.size).reshape(ahead.shape) % 7 == 0
    usual, batch = batcher.batch(positions, hidden), batcher.batch(positions, hidden, ahead)
    assert torch.equal(batch.neighbours[:, :, 1:], usual.neighbours[:, :, 1:])
    rows, taken = dataset.rows("train"), 0
    for sample, chunk in itertools.product(range(len(positions)), range(chunks)):
        row, there = int(rows[positions[sample, chunk]]), (sample, chunk, 0)
        goes_on = row + 1 < len(dataset.store) and document(dataset, row + 1) == document(dataset, row)
        if ahead[sample, chunk] < 0 or hidden[sample, chunk] or not goes_on:
            assert torch.equal(batch.neighbours[there], usual.neighbours[there])
            assert torch.equal(batch.mask[there], usual.mask[there])
            continue
        text = []
        for later in range(row, min(row + R + 1, len(dataset.store))):
            if document(dataset, later) == document(dataset, row):
                text += chunk_tokens(dataset, later)
        text = text[ahead[sample, chunk] :][: R * M]
        assert batch.neighbours[there][: len(text)].tolist() == text
        assert batch.mask[there].sum() == len(text)
        taken += 1
    assert taken > 20
