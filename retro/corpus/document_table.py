"""The table of a source's documents, documents.npy, and the lines of documents.jsonl that it points into."""

import json
from array import array
from typing import BinaryIO

import numpy as np

from retro.corpus.readers import Document
from retro.corpus.split import key_hash
from retro.database.tables import DOCUMENT, SPLITS


class Table:
    """Collects documents.npy and documents.jsonl; holds some forty bytes a document in memory."""

    def __init__(self, lines: BinaryIO):
        self.lines, self.offset = lines, 0
        self.columns = {"group": array("Q"), "bytes": array("q"), "split": array("B"), "offset": array("q")}
        self.ids, self.lengths = array("Q"), array("q")

    def add(self, document: Document, split: int, tokens: int) -> None:
        facts = {"id": document.id, "group": document.group, "title": document.title}
        line = (json.dumps(facts, ensure_ascii=False) + "\n").encode()
        row = {
            "group": key_hash(document.group),
            "bytes": document.bytes,
            "split": split,
            "offset": self.offset,
        }
        for name, value in row.items():
            self.columns[name].append(value)
        self.ids.append(key_hash(document.id))
        self.lengths.append(tokens)
        self.lines.write(line)
        self.offset += len(line)

    def extend(self, rows: np.ndarray, ids: np.ndarray, lengths: np.ndarray, lines: bytes) -> None:
        """Append rows (DOCUMENT) of another table, with their documents' hashed ids, tokens and lines."""
        for name, values in self.columns.items():
            column = rows[name] + (self.offset - rows[name][:1]) if name == "offset" else rows[name]
            values.frombytes(np.ascontiguousarray(column).tobytes())
        self.ids.frombytes(ids.tobytes())
        self.lengths.frombytes(lengths.tobytes())
        self.lines.write(lines)
        self.offset += len(lines)

    def array(self) -> np.ndarray:
        """The table, dtype DOCUMENT, one row a document."""
        table = np.empty(len(self.ids), DOCUMENT)
        for name, values in self.columns.items():
            table[name] = values
        return table

    def counts(self) -> dict:
        """documents, tokens, bytes and duplicate ids, in all and by split."""
        table, lengths = self.array(), np.array(self.lengths, np.int64)

        def of(rows: np.ndarray) -> dict:
            return {
                "documents": int(rows.sum()),
                "tokens": int(lengths[rows].sum()),
                "bytes": int(table["bytes"][rows].sum()),
            }

        return {
            **of(np.ones(len(table), bool)),
            "duplicate_ids": len(table) - len(np.unique(np.array(self.ids, np.uint64))),
            "by_split": {name: of(table["split"] == number) for number, name in enumerate(SPLITS)},
        }
