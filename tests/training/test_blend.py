"""Weighted blends of sources."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.artifacts import read_json
from retro.base.stage import UserError
from retro.config.schema import parse
from retro.dataset.dataset import Dataset
from retro.training.samples import PERIOD, Blend, Samples, assignment, documents_of, open_samples, shares
from tests.training.toy import make_dataset, record

WEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def blend(sizes=(12, 40), weights=(0.7, 0.3), seq_chunks=4, seed=5):
    documents = np.arange(sum(sizes)) // 3
    bounds = np.cumsum([0, *sizes])
    return Blend(documents, bounds, {f"s{i}": weight for i, weight in enumerate(weights)}, seq_chunks, seed)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS)
def test_no_source_is_ever_a_whole_sample_ahead_and_a_period_is_exact(weights):
    parts = shares(weights)
    sources = assignment(parts)
    given = np.cumsum(sources[:, None] == np.arange(len(parts)), axis=0)
    wanted = np.arange(1, len(sources) + 1)[:, None] * parts / parts.sum()
    assert (given - wanted < 1).all()
    assert np.array_equal(given[-1], parts)


def test_the_assignment_is_the_largest_deficit_first():
    assert shares([0.5, 0.25, 0.25]).tolist() == [2, 1, 1]
    assert assignment(shares([0.5, 0.25, 0.25])).tolist() == [0, 1, 2, 0]


def test_awkward_weights_are_rounded_to_a_bounded_period():
    parts = shares([123456789, 987654321, 1])
    assert parts.sum() == PERIOD
    assert parts[2] == 1
    assert abs(parts[0] / PERIOD - 123456789 / 1111111111) < 2 / PERIOD


def test_counts_follow_the_weights_and_a_sample_depends_on_its_number_alone():
    used = blend()
    sources = np.array([int(used.sample(number)[0] >= 12) for number in range(1000)])
    assert np.bincount(sources).tolist() == [700, 300] == used.given(1000).tolist()
    for number in (997, 0, 123_456_789):
        assert np.array_equal(blend().sample(number), used.sample(number))


def test_epochs_of_a_source_follow_without_a_gap_each_with_its_own_shuffle():
    used = blend()
    own = [used.sample(number) for number in range(400) if used.sample(number)[0] < 12]
    stream = [own[number] for number in np.argsort([used.streams[0].place(number) for number in range(len(own))])]
    for left, right in itertools.pairwise(stream[:100]):
        assert left[-1] == right[0]
    epochs = np.concatenate([sample[:-1] for sample in stream])[:120].reshape(-1, 12)
    assert all(np.array_equal(np.sort(epoch), np.arange(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_a_source_too_small_for_a_sample_is_named():
    with pytest.raises(UserError, match="source s0 has 3 chunks"):
        blend(sizes=(3, 40))


def weighted(folder, weights):
    config = make_dataset(folder)
    facts = read_json(config)
    facts["sources"] = {name: {"train": True} | ({"weight": weights[name]} if weights else {}) for name in weights}
    return Dataset(config, facts)


def test_a_dataset_with_weights_is_blended_and_one_without_is_as_before(tmp_path):
    dataset = weighted(tmp_path / "a", {"almanac": 3.0, "letters": 1.0})
    samples = open_samples(dataset, 9)
    rows = dataset.rows("train")
    found = [int(dataset.store.source(rows[samples.sample(number)])[0]) for number in range(40)]
    assert np.bincount(found).tolist() == [30, 10]
    for number in range(40):
        assert len(set(dataset.store.source(rows[samples.sample(number)]))) == 1
    plain = Dataset.open(record(tmp_path / "a"))
    wanted = Samples(documents_of(plain, "train"), plain.seq_length // plain.chunk_length, 9)
    assert np.array_equal(open_samples(plain, 9).samples(np.arange(30)), wanted.samples(np.arange(30)))


def config(**sources):
    return parse({"dataset": {"sources": {name: {"path": "x.jsonl", **more} for name, more in sources.items()}}})


def test_weights_are_for_all_trained_sources_or_none_and_leave_no_trace_where_there_are_none():
    with pytest.raises(UserError, match=r"\['a'\] have a weight, \['b'\] none"):
        config(a={"weight": 1}, b={})
    with pytest.raises(UserError, match="train: false has none"):
        config(a={}, b={"train": False, "weight": 1})
    facts = config(a={}, b={"train": False}).dataset.facts()
    assert "weight" not in facts["sources"]["a"] and "type" not in facts["sources"]["a"] and "duplicates" not in facts
    assert config(a={"weight": 2}).dataset.facts()["sources"]["a"]["weight"] == 2
