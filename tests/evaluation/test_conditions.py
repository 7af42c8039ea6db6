"""Conditions: their names, what they show, and that the controls are controls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.base.artifacts import read_manifest, write_array, write_manifest
from retro.base.stage import UserError
from retro.evaluation.conditions import BUILT_IN, Condition, ordered, usual
from retro.evaluation.losses import score
from retro.evaluation.shown import Shown, shuffled
from tests.evaluation.built import LENGTH, M, make_model, stage

CHUNKS = np.arange(4)


def shown(dataset, name, used=2, **more):
    return Shown(dataset, "test", Condition.parse(name), used=used, retrieved_chunks=2, **more)


def losses(dataset, batcher):
    found = np.empty((len(dataset.rows("test")), M), np.float32)
    score(make_model(dataset, "retro"), batcher, found, LENGTH, 0, 8)
    return found


COPIED = {  # condition → what the model is shown, what the copier reads
    "none+k2+copy": ("none", "on+k2"),
    "none+k2+knn+copy": ("none+knn", "on+k2"),
    "in-context+k2+copy": ("in-context+k2", "in-context+k2"),
    "off+k20+continuation+copy": ("off", "on+k20+continuation"),
    "on+copy": ("on", "on"),
    "on+k20+copy": ("on+k20", "on+k20"),
    "bm25+k5+neighbour+copy": ("bm25+k5+neighbour", "bm25+k5+neighbour"),
}
NAMES = [
    "none+knn",
    "none+k64+knn",
    "in-context+k2",
    "none",
    "on",
    "on+k5",
    "random",
    "shuffled+k1+neighbour",
    "bm25",
    "a-b.c+k0",
    *COPIED,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_back(name):
    assert Condition.parse(name).name == name


@pytest.mark.parametrize(("name", "parts"), COPIED.items())
def test_a_copier_reads_what_the_model_is_shown_or_what_is_stored(name, parts):
    condition = Condition.parse(name)
    assert (condition.model.name, condition.copied.name) == parts and condition.shows.endswith(", and a copier")
    assert not condition.model.copy and not condition.copied.copy


def test_what_a_model_is_always_measured_under():
    assert usual("gpt") == usual("gpt", controls=True) == ["none"]
    assert usual("retro") == ["on", "off"] and usual("retro", controls=True) == ["on", "off", "random"]


def test_tables_have_the_usual_conditions_first_and_the_others_by_name():
    assert ordered({"shuffled", "random", "on+k5", "bm25", "off", "on"}) == [
        "on", "off", "random", "bm25", "on+k5", "shuffled",
    ]  # fmt: skip


def test_controls_are_what_was_not_looked_up():
    assert [name for name in BUILT_IN if Condition.parse(name).control] == ["random", "shuffled"]
    assert Condition.parse("shuffled+k1+neighbour").control and not Condition.parse("bm25").control


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("on", None),
        ("off", None),
        ("shuffled+k5", None),
        ("nobody", None),
        ("bm25+k5+neighbour", "retrievals/bm25/neighbours/test/manifest.json"),
        ("database-0.05-s1+k5", "fractions/database-0.05-s1/test/manifest.json"),
    ],
)
def test_other_neighbours_lie_where_their_condition_says(name, manifest):
    assert Condition.parse(name).manifest("test", ["bm25"]) == manifest


WRONG = ["", "on+", "on+5", "on+neighbour+k2", "off+k2", "none+continuation", "a/b", "on+copy+k2", "none+copy", "copy+"]
WRONG += [
    "on+knn",
    "off+k5+knn",
    "none+k0+knn",
    "none+k5+copy+knn",
    "none+knn+copy",
    "on+knn+copy",
    "none+k0+knn+copy",
    "none+continuation+knn",
    "in-context+knn",
]


@pytest.mark.parametrize("name", WRONG)
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="condition"):
        Condition.parse(name)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(0, 9))
def test_shuffling_moves_every_chunk_and_out_of_its_group_where_possible(groups, seed):
    groups = np.array(groups)
    order = shuffled(groups, seed)
    assert sorted(order) == list(range(len(groups)))
    assert (order != np.arange(len(groups))).all()
    if np.bincount(groups).max() * 2 <= len(groups):
        assert (groups[order] != groups).all()
    assert np.array_equal(order, shuffled(groups, seed))


def test_a_single_chunk_cannot_be_shuffled():
    with pytest.raises(UserError, match="at least 2"):
        shuffled(np.zeros(1), 0)


def test_parts_hide_the_other_half(dataset):
    whole, first, rest = (
        shown(dataset, f"on{part}").batch(CHUNKS[None]) for part in ("", "+neighbour", "+continuation")
    )
    assert not first.mask[..., M:].any() and not rest.mask[..., :M].any()
    assert ((first.mask | rest.mask) == whole.mask).all()
    assert (first.neighbours[..., :M] == whole.neighbours[..., :M]).all()
    assert (rest.neighbours[..., M:] == whole.neighbours[..., M:]).all()


def test_what_is_hidden_is_not_read(dataset):
    """Other tokens behind the mask change no loss."""

    class Noisy(Shown):
        def _neighbours(self, *given):
            tokens, mask = super()._neighbours(*given)
            return tokens.masked_fill(~mask, 7), mask

    condition = Condition.parse("on+continuation")
    noisy = Noisy(dataset, "test", condition, used=2, retrieved_chunks=2)
    assert np.array_equal(losses(dataset, noisy), losses(dataset, shown(dataset, "on+continuation")), equal_nan=True)


def test_on_with_no_neighbour_is_off(dataset):
    none = losses(dataset, shown(dataset, "on+k0", used=0))
    assert np.array_equal(none, losses(dataset, shown(dataset, "off", used=0)), equal_nan=True)


def test_the_order_of_a_chunks_neighbours_changes_nothing_beyond_rounding(dataset):
    ids = np.array(dataset.neighbour_ids("test"))
    there = losses(dataset, shown(dataset, "on", used=ids.shape[1], ids=ids))
    back = losses(dataset, shown(dataset, "on", used=ids.shape[1], ids=ids[:, ::-1].copy()))
    np.testing.assert_allclose(there, back, rtol=2e-4, atol=2e-5)
    other = losses(dataset, shown(dataset, "shuffled", used=ids.shape[1]))
    assert np.nanmax(np.abs(there - other)) > 1e-2, "losses do depend on neighbours"


def test_shuffled_shows_the_neighbours_of_chunks_of_other_groups(dataset):
    ids, batcher = np.array(dataset.neighbour_ids("test")), shown(dataset, "shuffled")
    rows = dataset.rows("test")
    groups = dataset.store.chunks(rows)["group"]
    assert sorted(map(tuple, batcher.ids.tolist())) == sorted(map(tuple, ids.tolist()))
    for position in range(len(rows)):
        owners = np.flatnonzero((ids == batcher.ids[position]).all(1))
        assert (groups[owners] != groups[position]).any()


def test_another_dataset_of_the_same_text_is_a_book(dataset):
    same = shown(dataset, "on", book=type(dataset).open(dataset.path))
    assert np.array_equal(losses(dataset, same), losses(dataset, shown(dataset, "on")), equal_nan=True)


def test_a_book_of_other_text_is_refused(dataset, monkeypatch):
    book = type(dataset).open(dataset.path)
    rows = dataset.rows("test")
    monkeypatch.setattr(type(book), "rows", lambda self, split: rows[: 3 if self is book else None])
    with pytest.raises(UserError, match="is not that of"):
        shown(dataset, "on", book=book)


def test_a_book_cut_otherwise_is_refused(dataset):
    book = type(dataset)(dataset.path, {**dataset.facts, "chunk_length": 2 * M})
    with pytest.raises(UserError, match="chunk_length"):
        shown(dataset, "on", book=book)


def other_neighbours(dataset, folder, ids):
    write_array(folder / "ids.npy", ids)
    write_manifest(
        folder / "manifest.json", kind="neighbours", stage="retro.retrieval.neighbours", files=[folder / "ids.npy"]
    )
    return folder / "manifest.json"


def measured(dataset, folder, mode, *more):
    given = ("--config", dataset.path, "--model", dataset.folder / "runs/retro-s1/model.json", "--settings", "{}")
    stage(
        "retro.evaluation.losses",
        *given,
        "--split",
        "test",
        "--mode",
        mode,
        *more,
        "--output",
        folder / "manifest.json",
    )
    return read_manifest(folder / "manifest.json", "losses")


def test_the_stage_reads_another_retrieval(dataset, tmp_path):
    ids = np.array(dataset.neighbour_ids("test"))[:, ::-1].copy()
    path = other_neighbours(dataset, tmp_path / "other", ids)
    found = measured(dataset, tmp_path / "found", "reversed+k3", "--neighbours", path)
    assert found.settings["mode"] == "reversed+k3" and found.settings["neighbours_used"] == 3
    wanted = losses(dataset, shown(dataset, "on+k3", used=3, ids=ids))
    np.testing.assert_allclose(found.array("losses.npy"), wanted, atol=1e-5)


def test_a_retrieval_without_its_neighbours_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="--neighbours"):
        measured(dataset, tmp_path / "found", "bm25")


def test_neighbours_of_another_database_are_refused(dataset, tmp_path):
    path = other_neighbours(
        dataset, tmp_path / "other", np.array(dataset.neighbour_ids("test")) + len(dataset.database)
    )
    with pytest.raises(UserError, match="--database"):
        measured(dataset, tmp_path / "found", "larger", "--neighbours", path)
