"""Exact search finds what brute force in integers finds, whatever the block sizes and threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.retrieval import exact
from retro.retrieval.exact import GRID, ExactSearch, score_pairs, slack
from tests.retrieval.brute import Case, Plain, make_case, units


def search(case: Case, k: int, threads: int = 1, **constants) -> tuple[np.ndarray, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in constants.items():
            patch.setattr(exact, name, value)
        found = ExactSearch(Plain(case.vectors), np.arange(len(case.vectors)), threads)
        return found.search(case.queries, k, case.barred())


SHAPES = {
    "QUERIES": st.sampled_from([1, 3, 384]),
    "BLOCK": st.sampled_from([5, 64, 1 << 14]),
    "SLICE": st.sampled_from([32, 64, 1024]),  # multiples of GROUP
    "GROUP": st.sampled_from([1, 4, 32]),
    "SPAN": st.sampled_from([1, 2, 16]),
    "CROWD": st.sampled_from([0, 512]),
}
CASES = st.builds(
    make_case,
    seed=st.integers(0, 10**6),
    size=st.integers(1, 400),
    queries=st.integers(1, 12),
    width=st.sampled_from([1, 3, 32]),
    documents=st.sampled_from([1, 2, 20]),
    distinct=st.sampled_from([1, 2, 30, 400]),
    groups=st.sampled_from([1, 5, 1000]),
    dates=st.sampled_from([0, 1, 3, 1000]),
)


@settings(max_examples=150, deadline=None)
@given(case=CASES, k=st.sampled_from([1, 2, 7, 50, 500]), constants=st.fixed_dictionaries(SHAPES), data=st.data())
def test_ids_equal_brute_force(case, k, constants, data):
    """Documents of hundreds of chunks, duplicates, ties at the cut, k beyond what is admissible: ids are equal, holes
    only where nothing is left."""
    ids, scores = search(case, k, data.draw(st.sampled_from([1, 2])), **constants)
    assert ids.tolist() == case.best(k).tolist()
    taken = np.take_along_axis(case.scores(), np.maximum(ids, 0), 1)
    assert (np.where(ids < 0, -np.inf, taken / 2.0**50) == scores).all()


def test_neither_blocks_nor_threads_change_ids_or_scores():
    case = make_case(0, 3000, 700, 48, 30, 900, 1000)
    first = search(case, 20)
    for threads, constants in ((2, {}), (1, {"QUERIES": 37, "BLOCK": 999, "SLICE": 96}), (2, {"QUERIES": 5})):
        ids, scores = search(case, 20, threads, **constants)
        assert (ids == first[0]).all() and (scores == first[1]).all()


def test_a_near_duplicate_in_the_same_document_is_never_found():
    random = np.random.default_rng(1)
    vectors = units(random, 600, 16)
    document = np.arange(600, dtype=np.uint64) // np.uint64(60)
    vectors[60:120] = vectors[60] + 1e-4 * units(random, 60, 16)  # document 1 resembles nothing but itself
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    case = Case(vectors, vectors[60:120], [document], [document[60:120]])
    ids, _ = search(case, 10)
    assert (ids >= 0).all() and not ((ids >= 60) & (ids < 120)).any()


def test_thousands_of_equal_chunks_are_ordered_by_id():
    vectors = np.tile(units(np.random.default_rng(2), 1, 24), (5000, 1))
    case = Case(vectors, vectors[:3], [np.arange(5000, dtype=np.uint64)], [np.arange(3, dtype=np.uint64)])
    ids, scores = search(case, 4, CROWD=16)
    assert ids.tolist() == [[1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 3, 4]]
    assert len(np.unique(scores)) == 1


def test_an_empty_query_list_is_fine():
    case = make_case(0, 10, 4, 8, 2, 10, 3)
    ids, scores = ExactSearch(Plain(case.vectors), np.arange(10), 1).search(case.queries[:0], 3, case.barred()[:0])
    assert ids.shape == scores.shape == (0, 3)


def test_progress_adds_up_to_the_queries():
    case, told = make_case(0, 1000, 50, 8, 20, 500, 100), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "BLOCK", 100)
        patch.setattr(exact, "QUERIES", 7)
        ExactSearch(Plain(case.vectors), np.arange(1000), 2).search(case.queries, 3, case.barred(), told.append)
    assert sum(told) == 50


@pytest.mark.parametrize("width", [1, 7, 384, 1024])
def test_scores_do_not_depend_on_the_order_of_summation(width):
    random = np.random.default_rng(3)
    queries, found = units(random, 9, width), units(random, 9 * 5, width).reshape(9, 5, width)
    found[:, 0] = queries
    order = random.permutation(width)
    scores = score_pairs(queries, found)
    assert (scores == score_pairs(queries[:, order], found[:, :, order])).all()
    assert (scores[3:4, 2:4] == score_pairs(queries[3:4], found[3:4, 2:4])).all()
    np.testing.assert_allclose(scores, np.einsum("qd,qnd->qn", queries, found, dtype=np.float64), atol=width / GRID**1)


@pytest.mark.parametrize("width", [3, 384, 768])
def test_float32_products_are_within_the_slack_of_the_score(width):
    random = np.random.default_rng(4)
    vectors = units(random, 200, width)
    found = vectors @ vectors.T
    scores = score_pairs(vectors, np.broadcast_to(vectors, (200, 200, width)))
    assert np.abs(found - scores).max() < slack(width)
