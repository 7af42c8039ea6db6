"""What a chunk shares with its neighbours: never its document, and what else the config names."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.artifacts import read_manifest
from retro.retrieval.exclusion import Exclusion, Rule, read_keys, rules_of

KEYS = st.lists(st.integers(0, 6).map(lambda key: key * 2**61), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(KEYS, st.lists(st.integers(0, 9).map(lambda key: key * 2**60), min_size=1, max_size=10), st.data())
def test_members_are_the_positions_with_the_same_key(keys, asked, data):
    start = data.draw(st.integers(0, len(keys)))
    stop = data.draw(st.integers(start, len(keys)))
    rule = Rule(np.array(keys, np.uint64))
    rows, positions = rule.members(rule.look_up(np.array(asked, np.uint64)), start, stop)
    wanted = {(row, at) for row, key in enumerate(asked) for at in range(start, stop) if keys[at] == key}
    assert set(zip(rows.tolist(), positions.tolist(), strict=True)) == wanted and len(rows) == len(wanted)


def test_the_document_is_always_excluded():
    assert rules_of([]) == ["document"]
    assert rules_of(["group", "document", "group"]) == ["document", "group"]


@pytest.mark.parametrize("rule", ["document", "group", "group_of_any_source", "text"])
def test_keys_are_equal_exactly_where_chunks_share_what_the_rule_names(corpus, rule):
    """Groups of the two sources have the same names: they are one group only under group_of_any_source."""
    parts = []
    for number, path in enumerate(corpus.manifests("chunks")):
        table = read_manifest(path).array("chunks.npy")
        parts += [
            {
                "document": (number, row["document"]),
                "group": (number, row["group"]),
                "group_of_any_source": row["group"],
                "text": row["text"],
            }[rule]
            for row in table
        ]
    keys = read_keys(rule, corpus.manifests("chunks"))
    pairs = set(zip(parts, keys.tolist(), strict=True))
    assert len(pairs) == len(set(parts)) == len(set(keys.tolist()))


def test_excluded_pairs_are_the_same_from_both_sides(corpus):
    database = read_manifest(corpus.manifest("database")).array("database.npy")
    exclusion = Exclusion(["document", "group", "text"], corpus.manifests("chunks"), database)
    rows = database[::3]
    barred, ids = exclusion.of(rows), np.broadcast_to(np.arange(len(database)), (len(rows), len(database)))
    mask = np.zeros(ids.shape, bool)
    found = barred.within(0, len(database))
    mask[found] = True
    assert (mask == barred.among(ids)).all() and mask.any() and not mask.all()
    assert barred.among(np.full((len(rows), 1), -1)).all()
