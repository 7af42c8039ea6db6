"""The database holds what is trained on and open books, never what is evaluated."""

import re

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.names import CHUNK, SPLITS
from retro.base.stage import UserError
from retro.corpus.documents import fraction, split_of
from retro.corpus.settings import SplitSettings
from retro.database import assemble
from retro.database.assemble import LISTS, check, select, unfilled
from tests.database.stages import Corpus, stage

TRAIN, VALID, TEST, BOOK = range(4)


def table(*splits: int) -> np.ndarray:
    made = np.zeros(len(splits), CHUNK)
    made["split"] = splits
    return made


def lists(tables: list[np.ndarray], uses: list[dict[str, bool]]) -> dict[str, np.ndarray]:
    parts = list(select(tables, uses))
    return {name: np.concatenate([part[name] for part in parts]) for name in LISTS}


def counts(tables: list[np.ndarray], uses: list[dict[str, bool]]) -> dict[str, int]:
    return {name: len(found) for name, found in lists(tables, uses).items()}


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_rows_are_global_ascending_and_by_split(monkeypatch, block):
    monkeypatch.setattr(assemble, "BLOCK", block)
    book, main, outside = table(BOOK, BOOK), table(TRAIN, TEST, TRAIN, VALID), table(TRAIN, TEST)
    uses = [{"database": True}, {"database": True}, {"database": False}]
    rows = lists([book, main, outside], uses)
    assert rows["database"].tolist() == [0, 1, 2, 4]
    assert rows["train"].tolist() == [2, 4, 6]
    assert rows["valid"].tolist() == [5]
    assert rows["test"].tolist() == [3, 7]
    assert all(found.dtype == np.int64 for found in rows.values())


def test_nothing_evaluated_is_in_the_database(corpus):
    Corpus.assemble(corpus)
    manifest = read_manifest(corpus.manifest("database"), "database")
    rows = {name: set(manifest.array(f"{name}.npy").tolist()) for name in ("database", "train", "valid", "test")}
    assert rows["valid"] and rows["test"] and rows["train"]
    assert not rows["database"] & (rows["valid"] | rows["test"])
    book = read_manifest(corpus.manifest("chunks", "open")).counts["chunks"]
    assert len(rows["database"]) == len(rows["train"]) + book
    none = {"evaluated_in_database": {"ids": {}, "texts": {}}}
    assert manifest.counts == {name: len(found) for name, found in rows.items()} | none


COUNTS = {"main": dict.fromkeys(SPLITS, 3)}


def test_an_empty_train_split_is_refused_with_counts_and_a_way_out():
    rows = counts([table(TEST, VALID, BOOK)], [{"database": True}])
    with pytest.raises(UserError, match=r"the train split has no chunk.*main: train 3.*dataset\.split\.valid"):
        check(rows, COUNTS)


def test_an_empty_database_is_refused_with_a_way_out():
    rows = counts([table(TRAIN, TEST)], [{"database": False}])
    with pytest.raises(UserError, match=r"the retrieval database is empty.*database: true"):
        check(rows, COUNTS)


def test_an_evaluated_split_without_a_share_is_a_warning(capsys):
    check(counts([table(TRAIN, VALID)], [{"database": True}]), COUNTS)
    assert "warning: the test split has no chunk" in capsys.readouterr().err


FILLED = {"valid": 1, "test": 1}
PLACES = [0.0614, 0.2, 0.3, 0.4, 0.9123]


@pytest.mark.parametrize(
    ("rows", "places", "told"),
    [
        ({"test": 0}, PLACES, "split.test 0.05: .*none of the 5 documents .* Set dataset.split.test to 0.062 or"),
        ({"valid": 0}, PLACES, "dataset.split.valid 0.05: .* Set dataset.split.valid to 0.088 or more, cut long"),
        ({"valid": 0, "test": 0}, PLACES, "valid 0.05 and .*: .* Set .*valid to 0.088 or more and .*test to 0.062 or"),
        ({"valid": 0, "test": 0}, [0.3], "none of the 1 document falls .* Add documents, cut long documents .*cut"),
    ],
)
def test_an_evaluated_split_that_has_a_share_is_not_left_empty(rows, places, told):
    split = SplitSettings(by="document", valid=0.05, test=0.05)
    assert re.search(told, unfilled(FILLED | rows, split, places))
    assert not unfilled(FILLED, split, places)
    assert not unfilled(FILLED | rows, SplitSettings(by="document", valid=0, test=0), places)


@pytest.mark.parametrize("seed", range(20))
def test_the_shares_that_are_proposed_fill_the_splits(seed):
    keys = [str(number) for number in range(12)]
    places = sorted(fraction(key, seed) for key in keys)
    told = unfilled({"valid": 0, "test": 0}, SplitSettings(by="document", valid=0.001, test=0.001), places)
    valid, test = (float(re.search(rf"{name} to ([\d.]+) or more", told)[1]) for name in ("valid", "test"))
    split = SplitSettings(by="document", valid=valid, test=test)
    assert {split_of("", key, True, split, seed) for key in keys} == {TRAIN, VALID, TEST}


def test_documents_that_leave_a_split_empty_are_refused_when_their_chunks_are_listed(tmp_path):
    corpus = Corpus(tmp_path, documents=4).tokenize().chunk()
    with pytest.raises(UserError, match=r"dataset.split.\w+ 0.15.*: nothing is left to evaluate on, .*the 4 documents"):
        corpus.assemble()


def test_manifests_in_another_order_are_refused(corpus, tmp_path):
    uses = {name: {"train": name == "main", "database": True} for name in corpus.names}
    with pytest.raises(UserError, match="in this order"):
        stage(
            "retro.database.assemble",
            settings={"sources": uses},
            chunks=corpus.manifests("chunks")[::-1],
            output=tmp_path / "manifest.json",
        )


def test_a_split_of_what_is_now_an_open_book_is_refused(corpus, tmp_path):
    uses = {name: {"train": name != "main", "database": True} for name in corpus.names}
    with pytest.raises(UserError, match="although its source has train: false"):
        stage(
            "retro.database.assemble",
            settings={"sources": uses},
            chunks=corpus.manifests("chunks"),
            output=tmp_path / "manifest.json",
        )
