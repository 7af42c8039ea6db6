"""Splits: stable, whole groups, the shares that were asked for."""

from hypothesis import given
from hypothesis import strategies as st

from retro.corpus.documents import BOOK, TEST, TRAIN, VALID, fraction, key_hash, split_of
from retro.corpus.settings import SplitSettings

HALVES = SplitSettings(valid=0.3, test=0.3)


def test_known_values_never_change():
    """A changed hash would silently move documents between splits of datasets made before."""
    assert key_hash("ag") == 16864319471073041862
    assert fraction("ag", 1234) == 0.40618746703679587


@given(key=st.text(), seed=st.integers(0, 2**63))
def test_a_fraction_is_in_range_and_repeats(key, seed):
    assert 0 <= fraction(key, seed) < 1
    assert fraction(key, seed) == fraction(key, seed)


@given(group=st.text(), ids=st.lists(st.text(), min_size=2), seed=st.integers(0, 99))
def test_a_group_stays_whole(group, ids, seed):
    assert len({split_of(group, document, True, HALVES, seed) for document in ids}) == 1


@given(groups=st.lists(st.text(), min_size=2), document=st.text(), seed=st.integers(0, 99))
def test_splitting_by_document_looks_at_the_id_alone(groups, document, seed):
    settings = SplitSettings(by="document", valid=0.3, test=0.3)
    assert len({split_of(group, document, True, settings, seed) for group in groups}) == 1


@given(key=st.text(), seed=st.integers(0, 99), valid=st.floats(0, 0.5), test=st.floats(0, 0.49))
def test_a_larger_share_moves_documents_out_of_train_only(key, seed, valid, test):
    before = split_of(key, key, True, SplitSettings(valid=valid / 2, test=test / 2), seed)
    after = split_of(key, key, True, SplitSettings(valid=valid, test=test), seed)
    assert after == before or before == TRAIN


@given(key=st.text(), seed=st.integers(0, 99))
def test_an_open_book_is_never_evaluated(key, seed):
    assert split_of(key, key, False, HALVES, seed) == BOOK


def test_shares_are_met():
    settings = SplitSettings(valid=0.1, test=0.2)
    found = [split_of(f"group {number}", "", True, settings, 7) for number in range(20_000)]
    assert abs(found.count(VALID) / 20_000 - 0.1) < 0.01
    assert abs(found.count(TEST) / 20_000 - 0.2) < 0.01


def test_no_share_means_none():
    settings = SplitSettings(valid=0, test=0)
    assert {split_of(f"group {number}", "", True, settings, 7) for number in range(1000)} == {TRAIN}


def test_seeds_differ():
    splits = [[split_of(str(key), "", True, HALVES, seed) for key in range(100)] for seed in (1, 2)]
    assert splits[0] != splits[1]
