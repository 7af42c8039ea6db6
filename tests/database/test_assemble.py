"""The database holds what is trained on and open books, never what is evaluated."""

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.names import CHUNK, SPLITS
from retro.base.stage import UserError
from retro.database import assemble
from retro.database.assemble import LISTS, check, select
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


def test_an_empty_evaluated_split_is_a_warning(capsys):
    check(counts([table(TRAIN, VALID)], [{"database": True}]), COUNTS)
    assert "warning: the test split has no chunk" in capsys.readouterr().err


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
