"""Token stores of the shards of a source, joined to the one that a single job would have made.

Shard i of N tokenizes every N-th block of records, so its store lacks what lies between. A ledger, one row a block,
says how much of each of its files belongs to the block; joining takes the blocks of all shards in turn.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np

from retro.corpus.document_table import Table
from retro.corpus.mmididx import TokenStore, TokenWriter
from retro.database.shards import read_notes
from retro.errors import UserError
from retro.paging import release

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
