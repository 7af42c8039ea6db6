"""Inverted lists of several index files, joined to one file without holding them in memory.

What faiss writes for an IVF index ends in its lists: `ilar`, the number of lists and the bytes a code (u64 each),
`full` and the length of every list, or `sprs` and pairs of number and length of those that are not empty; then the
codes and the ids (int64) of each list that is not empty. A joined list holds those of the parts one after another, ids
moved on by the vectors of the parts before: the bytes that faiss would write had all vectors been added in one job.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np

from retro.artifacts import replacing

EMPTY = struct.Struct("<4sQQ4sQ")  # ilar, lists, bytes a code, sprs, 0: how an index without vectors ends


class _Part:
    """The lists of one file, in which they begin at byte `start`; read in the order of their numbers."""

    def __init__(self, path: Path, start: int):
        self.file: BinaryIO = open(path, "rb")  # noqa: SIM115 (closed by `join`)
        self.file.seek(start)
        kind, lists, self.code, form, count = EMPTY.unpack(self.file.read(EMPTY.size))
        assert kind == b"ilar" and form in (b"full", b"sprs"), path
        numbers = np.fromfile(self.file, "<u8", count).astype(np.int64)
        self.sizes = numbers
        if form == b"sprs":
            self.sizes = np.zeros(lists, np.int64)
            self.sizes[numbers[::2]] = numbers[1::2]

    def read(self, number: int) -> tuple[bytes, np.ndarray]:
        """Codes and ids of the next list."""
        size = int(self.sizes[number])
        codes = self.file.read(size * self.code)
        return codes, np.fromfile(self.file, "<i8", size)


def join(trained: Path, paths: list[Path], output: Path) -> int:
    """Write the index of all vectors of the parts; how many. `trained` is the empty index that all parts began as."""
    index = faiss.read_index(str(trained))
    start = faiss.serialize_index(index).nbytes - EMPTY.size
    parts = [_Part(path, start) for path in paths]
    counts = np.array([part.sizes.sum() for part in parts], np.int64)
    first, sizes = np.cumsum(counts) - counts, sum((part.sizes for part in parts), np.zeros_like(parts[0].sizes))
    layer = index
    while True:
        layer.ntotal = int(counts.sum())
        if not isinstance(layer, faiss.IndexPreTransform):
            break
        layer = faiss.downcast_index(layer.index)
    filled = np.flatnonzero(sizes)
    with replacing(output) as temporary, open(temporary, "wb") as file:
        file.write(faiss.serialize_index(index)[:start].tobytes())
        full = len(filled) > len(sizes) // 2
        table = sizes if full else np.stack([filled, sizes[filled]], axis=1).reshape(-1)
        file.write(EMPTY.pack(b"ilar", len(sizes), parts[0].code, b"full" if full else b"sprs", len(table)))
        file.write(table.astype("<u8").tobytes())
        for number in filled.tolist():
            read = [part.read(number) for part in parts]
            file.writelines(codes for codes, _ in read)
            file.writelines((ids + moved).tobytes() for (_, ids), moved in zip(read, first, strict=True))
    for part in parts:
        part.file.close()
    return int(counts.sum())
