"""The order in which a run reads its training split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.stage import UserError
from retro.training.samples import Samples, documents_of

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=20)


def documents(lengths):
    return np.repeat(np.arange(len(lengths)), lengths)


def stream(samples, count):
    """The first `count` positions."""
    numbers = range(-(-count // samples.seq_chunks))
    return np.concatenate([samples.sample(number)[:-1] for number in numbers])[:count]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 6), st.integers(0, 2**40))
def test_every_chunk_comes_once_an_epoch_and_documents_stay_whole(lengths, seq_chunks, seed):
    count = sum(lengths)
    if count < seq_chunks:
        return
    samples = Samples(documents(lengths), seq_chunks, seed)
    for epoch in stream(samples, 3 * count).reshape(3, count):
        assert np.array_equal(np.sort(epoch), np.arange(count))
        changes = np.flatnonzero(np.diff(documents(lengths)[epoch]))
        assert len(changes) == len(lengths) - 1
        inside = np.delete(np.diff(epoch), changes)
        assert (inside == 1).all()


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(0, 50))
def test_a_sample_depends_on_its_number_alone_and_the_next_begins_where_it_ends(lengths, seq_chunks, number):
    if sum(lengths) < seq_chunks:
        return
    used, fresh = (Samples(documents(lengths), seq_chunks, 3) for _ in range(2))
    for earlier in (7, 0, number + 1):
        used.sample(earlier)
    assert np.array_equal(used.sample(number), fresh.sample(number))
    assert used.sample(number)[-1] == used.sample(number + 1)[0]


def test_epochs_and_seeds_are_shuffled_differently():
    samples, other = Samples(np.arange(100), 4, 1), Samples(np.arange(100), 4, 2)
    first, second = stream(samples, 200).reshape(2, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, stream(other, 100))


def test_a_limited_stream_ends_with_minus_one():
    samples = Samples(documents([3, 2]), 4, 0, epochs=1)
    assert samples.number == 2
    found = samples.samples(np.arange(2))
    assert np.array_equal(found[1, 1:], [-1] * 4)
    assert np.array_equal(np.sort(found[:, :4].ravel()), [-1, -1, -1, 0, 1, 2, 3, 4])


def test_too_few_chunks_for_a_sample_are_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"has 3 chunks, fewer than the 8 of one sample"):
        Samples(documents([1, 2]), 8, 0)


def test_documents_are_told_apart_across_sources(dataset):
    rows, store = dataset.rows("train"), dataset.store
    pairs = list(zip(store.source(rows).tolist(), store.chunks(rows)["document"].tolist(), strict=True))
    numbers = documents_of(dataset, "train")
    assert numbers[0] == 0 and numbers[-1] == len(set(pairs)) - 1
    assert len(set(zip(numbers.tolist(), pairs, strict=True))) == len(set(pairs))
