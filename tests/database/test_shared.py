"""Evaluated documents that stand in the database as well are counted and told."""

import json
from pathlib import Path

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.names import CHUNK
from retro.database import assemble
from retro.database.chunk import text_hashes
from tests.database.stages import Corpus, write_corpus


class Two(Corpus):
    """A source that is split, and another, made from the first one's records by `change`."""

    def __init__(self, folder: Path, change, train=False, database=True):
        self.folder, self.names = folder, ["book", "main"]
        write_corpus(folder / "main.jsonl", 60, seed=3)
        records = [json.loads(line) for line in (folder / "main.jsonl").read_text().splitlines()]
        with open(folder / "book.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(change(each)) + "\n" for each in records)
        self.sources = {
            "book": {"path": str(folder / "book.jsonl"), "train": train},
            "main": {"path": str(folder / "main.jsonl"), "train": True},
        }

    def counted(self) -> tuple[dict, int]:
        """What the manifest says, and how many documents are evaluated."""
        manifest = read_manifest(self.tokenize().chunk().assemble().manifest("database"))
        by_split = read_manifest(self.manifest("tokens", "main")).counts["by_split"]
        return manifest.counts["evaluated_in_database"], by_split["valid"]["documents"] + by_split["test"]["documents"]


def same(record: dict) -> dict:
    return record


def other_text(record: dict) -> dict:
    return record | {"text": f"other {record['text']}"}


def other_id(record: dict) -> dict:
    return record | {"id": f"book-{record['id']}"}


def other(record: dict) -> dict:
    return other_id(other_text(record))


@pytest.mark.parametrize(
    ("change", "what"),
    [(same, ("ids", "texts")), (other_text, ("ids",)), (other_id, ("texts",)), (other, ())],
)
def test_ids_and_texts_of_the_open_book_are_compared(tmp_path, capsys, change, what):
    found, evaluated = Two(tmp_path, change).counted()
    assert evaluated > 5
    assert found == {name: {"book": evaluated} if name in what else {} for name in ("ids", "texts")}
    said = capsys.readouterr().err
    assert ("warning: documents that are evaluated are in the database, too" in said) == bool(what)
    for name in what:
        assert f"{evaluated} of equal {name[:-1]} in book" in said


def test_a_trained_source_with_other_ids_of_the_same_texts_is_compared(tmp_path):
    """Ids decide the split here, so the same text falls into train here and into test there."""
    found, _ = Two(tmp_path, other_id, train=True).counted()
    assert found["texts"]["main"] > 0
    assert found["texts"]["book"] > 0
    assert found["ids"] == {}


def rows(*texts: list[int]) -> np.ndarray:
    """A chunk table of documents with chunks of these texts, the last document held out."""
    table = np.zeros(sum(map(len, texts)), CHUNK)
    table["document"] = np.repeat(np.arange(len(texts)), list(map(len, texts)))
    table["text"] = text_hashes(np.concatenate([np.array(each) for each in texts]), np.ones(len(table), np.int64))
    return table


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_documents_are_equal_where_all_chunks_are_in_the_same_order(monkeypatch, block):
    monkeypatch.setattr(assemble, "BLOCK", block)
    hashes, _, first = assemble.documents(rows([1, 2, 3], [1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 3, 3], [1, 1, 2]))
    assert hashes[0] == hashes[1]
    assert len(set(hashes.tolist())) == 5
    assert first.tolist() == [0, 3, 6, 9, 11, 15]


def test_no_document_is_in_common_with_nothing():
    hashes, split, first = assemble.documents(np.zeros(0, CHUNK))
    assert len(hashes) == len(split) == len(first) == 0
