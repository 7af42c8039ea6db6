"""The documents of a source: the split each belongs to, their table, their spelling, and the stores of shards, joined.

The split is a function of seed and group (or id), so adding documents moves none. The table is documents.npy, which
points into the lines of documents.jsonl.

Shard i of N tokenizes every N-th block of records, so its store lacks what lies between. A ledger, one row a block,
says how much of each of its files belongs to the block; joining takes the blocks of all shards in turn, and makes the
store that a single job would have made.

`Spelling` compares what the tokenizer gives back with the text.
"""

import json
from array import array
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from retro.base.artifacts import release
from retro.base.names import BOOK, DOCUMENT, SPLITS, TEST, TRAIN, UNDATED, VALID, dated
from retro.base.shards import read_notes
from retro.base.stage import UserError
from retro.corpus.dates import told
from retro.corpus.mmididx import TokenStore, TokenWriter
from retro.corpus.readers import Document
from retro.corpus.settings import SplitSettings
from retro.corpus.tokenizers import Tokenizer


def key_hash(key: str) -> int:
    """64-bit hash of a group or id, as stored in DOCUMENT.group: blake2b, little-endian."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def fraction(key: str, seed: int) -> float:
    """A number in [0, 1) that looks drawn at random, always the same for a key and a seed."""
    digest = blake2b(key.encode(), digest_size=8, key=f"split {seed}".encode()).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def split_of(group: str, document: str, train: bool, settings: SplitSettings, seed: int) -> int:
    """Index into SPLITS. A group (or id) falls into the same split in every source; `train: false` is book.

    Test is cut from one end and validation from the other: changing one share leaves the other as it was.
    """
    if not train:
        return BOOK
    where = fraction(group if settings.by == "group" else document, seed)
    if where < settings.test:
        return TEST
    return VALID if where >= 1 - settings.valid else TRAIN


class Table:
    """Collects documents.npy and documents.jsonl; holds some forty bytes a document in memory."""

    def __init__(self, lines: BinaryIO, dates: bool = False):
        """`dates`: whether the documents have dates, some of them at least."""
        self.lines, self.offset = lines, 0
        self.columns = {"group": array("Q"), "bytes": array("q"), "split": array("B"), "offset": array("q")}
        self.dtype = DOCUMENT
        if dates:
            self.columns["date"], self.dtype = array("q"), dated(DOCUMENT)
        self.ids, self.lengths = array("Q"), array("q")

    def add(self, document: Document, split: int, tokens: int) -> None:
        facts = {"id": document.id, "group": document.group, "title": document.title}
        facts |= {} if document.date is None else {"date": told(document.date)}
        line = (json.dumps(facts, ensure_ascii=False) + "\n").encode()
        row = {
            "group": key_hash(document.group),
            "bytes": document.bytes,
            "split": split,
            "offset": self.offset,
            "date": UNDATED if document.date is None else document.date,
        }
        for name, values in self.columns.items():
            values.append(row[name])
        self.ids.append(key_hash(document.id))
        self.lengths.append(tokens)
        self.lines.write(line)
        self.offset += len(line)

    def extend(self, rows: np.ndarray, ids: np.ndarray, lengths: np.ndarray, lines: bytes) -> None:
        """Append rows (of the same columns) of another table, with their documents' hashed ids, tokens and lines."""
        for name, values in self.columns.items():
            column = rows[name] + (self.offset - rows[name][:1]) if name == "offset" else rows[name]
            values.frombytes(np.ascontiguousarray(column).tobytes())
        self.ids.frombytes(ids.tobytes())
        self.lengths.frombytes(lengths.tobytes())
        self.lines.write(lines)
        self.offset += len(lines)

    def array(self) -> np.ndarray:
        """The table, dtype DOCUMENT, dated or not, one row a document."""
        table = np.empty(len(self.ids), self.dtype)
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


COLUMNS = ("documents", "lines", "remarks")  # documents; bytes of documents.jsonl; bytes of skipped.jsonl


class Ledger:
    """Collects what each block of records came to."""

    def __init__(self) -> None:
        self._rows: dict[int, list[int]] = {}

    def add(self, block: int, **more: int) -> None:
        row = self._rows.setdefault(block, [0] * len(COLUMNS))
        for name, count in more.items():
            row[COLUMNS.index(name)] += count

    def array(self) -> np.ndarray:
        """int64 [blocks, 1 + COLUMNS]: number of the block, and the columns."""
        rows = [[block, *row] for block, row in sorted(self._rows.items())]
        return np.array(rows, np.int64).reshape(-1, 1 + len(COLUMNS))


class _Shard:
    """The files of one shard, read from beginning to end."""

    def __init__(self, note: Path):
        folder = note.with_suffix("")
        if not folder.is_dir():
            raise UserError(f"{folder}: missing. Delete {note} and run snakemake again: the shard makes it again.")
        self.store, self.documents = TokenStore(folder / "tokens"), np.load(folder / "documents.npy")
        self.ids, self.ledger = np.load(folder / "ids.npy"), np.load(folder / "ledger.npy")
        self.lengths = np.diff(self.store.offsets)
        self.lines = open(folder / "documents.jsonl", "rb")  # noqa: SIM115 (closed by `close`)
        self.remarks = open(folder / "skipped.jsonl", "rb")  # noqa: SIM115
        self.at = 0

    def take(
        self, documents: int, lines: int, remarks: int, writer: TokenWriter, table: Table, notes: BinaryIO
    ) -> None:
        """Append the next block's share of each file."""
        here = slice(self.at, self.at + documents)
        self.at += documents
        for number in range(here.start, here.stop):
            writer.add(self.store[number])
        table.extend(self.documents[here], self.ids[here], self.lengths[here], self.lines.read(lines))
        notes.write(self.remarks.read(remarks))
        release(self.store.tokens)

    def close(self) -> None:
        self.lines.close()
        self.remarks.close()


def join(notes: list[Path], writer: TokenWriter, table: Table, remarks: BinaryIO) -> dict[str, int]:
    """Append all blocks of all shards in order; what the shards counted, summed up."""
    counts = [found["counts"] for found in read_notes(notes, but=("counts", "fields", "files"))]
    shards = [_Shard(note) for note in notes]
    order = sorted((*row, number) for number, shard in enumerate(shards) for row in shard.ledger.tolist())
    for _, *shares, number in order:
        shards[number].take(*shares, writer, table, remarks)
    for shard in shards:
        shard.close()
    return {name: sum(found[name] for found in counts) for name in counts[0]}


SHARE = 1 / 64  # of the documents, decoded and compared,
FIRST = 256  # besides the first ones
LENGTH = 100_000  # characters of a document that are compared
AROUND = 20  # characters shown of a difference


class Spelling:
    """Compares documents with what their ids stand for. Counts those that differ, where the tokenizer may be lossy."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        self.tokenizer, self.seed = tokenizer, seed
        self.seen = self.changed = self.unknown = 0

    def counts(self) -> dict[str, int]:
        """For the manifest: nothing unless texts may change."""
        return {"changed": self.changed, "unknown": self.unknown} if self.tokenizer.lossy else {}

    def check(self, document: Document, ids: np.ndarray) -> Document:
        """The document, its bytes those of the text that its ids stand for. Raises `UserError` where a text changes
        and may not, and where nothing is left of it.
        """
        self.seen += 1
        lossy, unknown = self.tokenizer.lossy, self.tokenizer.count_unknown(ids)
        if unknown and not lossy:
            self.tokenizer.refuse_unknown(document.text, f"{document.file}, line {document.line}: ")
        self.unknown += unknown
        if document.ids is not None:
            return document
        size = int(self.tokenizer.token_bytes[ids].sum())
        as_many = size in (document.bytes, document.bytes + self.tokenizer.leading)
        if lossy or not as_many or self._sampled(document):
            difference = self._difference(document.text, ids)
            if difference and not lossy:
                raise UserError(
                    f"{document.file}, line {document.line}: the tokenizer changes this text: {difference}. Take "
                    f"a tokenizer that normalizes nothing, or set dataset.tokenizer.lossy to allow: bits per byte are "
                    f"then of the text as the tokenizer gives it back."
                )
            if difference or unknown:
                self.changed += 1
                document = replace(document, bytes=size - self.tokenizer.leading)
                if document.bytes <= 0:
                    raise UserError(
                        f"{document.file}, line {document.line}: the tokenizer has no token for any of this text. "
                        f"Remove the document, or take another tokenizer."
                    )
        return document

    def _sampled(self, document: Document) -> bool:
        return self.seen <= FIRST or fraction(document.id, self.seed) < SHARE

    def _difference(self, text: str, ids: np.ndarray) -> str:
        """Where a text and what its ids stand for differ first; empty if they do not.

        A space before the text is no difference: many tokenizers put one there.
        """
        if len(text) > LENGTH:
            text = text[:LENGTH]
            ids = self.tokenizer.encode_batch([text], unknown=True)[0]
        found = self.tokenizer.decode(ids)
        if found == text or found == f" {text}":
            return ""
        if found.startswith(" ") and not text.startswith(" "):
            found = found[1:]
        at = next((at for at, pair in enumerate(zip(text, found, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(text), len(found)) if at is None else at
        before, after = (part[max(0, at - AROUND) : at + AROUND] for part in (text, found))
        return f"{before!r} becomes {after!r}"
