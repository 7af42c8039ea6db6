"""The order in which a run reads its training split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.stage import UserError
from retro.training.samples import Samples, documents_of, doubt

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=20)


def documents(lengths):
    return np.repeat(np.arange(len(lengths)), lengths)


def stream(samples, count):
    """The first `count` positions of the stream that is cut into samples, put together again."""
    numbers = range(-(-(count + samples.count) // samples.seq_chunks))  # an epoch more: its samples are shuffled
    found = {samples.place(number): samples.sample(number)[:-1] for number in numbers}
    assert sorted(found) == list(range(len(found))) or max(found) > count // samples.seq_chunks
    return np.concatenate([found[place] for place in range(-(-count // samples.seq_chunks))])[:count]


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
def test_a_sample_depends_on_its_number_alone_and_ends_where_the_next_in_the_stream_begins(lengths, seq_chunks, number):
    if sum(lengths) < seq_chunks:
        return
    used, fresh = (Samples(documents(lengths), seq_chunks, 3) for _ in range(2))
    for earlier in (7, 0, number + 1):
        used.sample(earlier)
    assert np.array_equal(used.sample(number), fresh.sample(number))
    places = {used.place(each): used.sample(each) for each in range(60 + sum(lengths))}
    assert places[number][-1] == places[number + 1][0]


def test_epochs_and_seeds_are_shuffled_differently():
    samples, other = Samples(np.arange(100), 4, 1), Samples(np.arange(100), 4, 2)
    first, second = stream(samples, 200).reshape(2, 100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, stream(other, 100))


def test_a_limited_stream_ends_with_minus_one():
    samples = Samples(documents([3, 2]), 4, 0, epochs=1)
    assert samples.number == 2
    found = samples.samples(np.arange(2))
    last = found[[samples.place(0), samples.place(1)].index(1)]
    assert np.array_equal(last[1:], [-1] * 4)
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


def test_samples_that_follow_each_other_come_from_different_documents():
    of = documents([150] * 55)
    samples = Samples(of, 8, 1)
    read = of[samples.samples(np.arange(250))[:, :-1]]
    assert len(np.unique(read)) > 50 and samples.read(250) == len(np.unique(read))
    follows = read[1:, 0] == read[:-1, -1]
    assert follows.mean() < 0.1


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 6), st.integers(0, 40))
def test_documents_read_are_those_that_samples_have_a_chunk_of(lengths, seq_chunks, number):
    if sum(lengths) < seq_chunks:
        return
    of = documents(lengths)
    samples = Samples(of, seq_chunks, 5)
    assert samples.documents == len(lengths)
    assert samples.read(number) == len(np.unique(of[samples.samples(np.arange(number))[:, :-1]]))


def test_a_validation_reads_from_all_over_its_split():
    samples = Samples(np.arange(1000) // 100, 4, 0, epochs=1)
    assert samples.read(25) > 7


@pytest.mark.parametrize(
    "epochs, said", [(0.1, "reads 0.10 of an epoch, 3 of 30 documents"), (0.2, None), (4, None), (4.5, "4.5 times")]
)
def test_too_few_and_too_many_epochs_are_doubted(epochs, said):
    found = doubt({"epochs": epochs, "documents_read": 3, "documents": 30})
    assert found is said if said is None else said in found
