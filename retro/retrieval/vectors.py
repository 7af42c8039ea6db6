"""Embeddings of all sources, read by global row from their arrays' files.

They are read, not mapped: where single vectors are wanted, mapping costs a page fault each, for which the system puts
hundreds of its neighbours into the process's memory.
"""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from retro.artifacts import read_manifest
from retro.errors import UserError


class Vectors:
    """`width` dimensions, `len()` chunks. Raises `UserError` if sources were embedded by different
    encoders.
    """

    def __init__(self, manifests: list[Path]):
        """`manifests` are those of the embeddings, sources in order."""
        opened = [read_manifest(path, "embeddings") for path in manifests]
        self.encoder = opened[0].settings["encoder"]
        for manifest in opened[1:]:
            found, wanted = (facts["identity"] for facts in (manifest.settings["encoder"], self.encoder))
            if found != wanted:
                raise UserError(
                    f"{manifest.path}: embedded by an encoder of sha256 {found[:16]}…, but "
                    f"{opened[0].path} by {wanted[:16]}…. Vectors of different encoders cannot be "
                    f"compared: run snakemake again."
                )
        self._files = [_File(manifest.file("embeddings.npy"), manifest.array("embeddings.npy")) for manifest in opened]
        self.width = self._files[0].shape[1]
        self._offsets = np.cumsum([0, *(file.shape[0] for file in self._files)])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, width]: vectors of global rows. Rows that follow each other are read at once."""
        rows = np.asarray(rows, np.int64)
        source = np.searchsorted(self._offsets, rows, side="right") - 1
        found = np.empty((len(rows), self.width), np.float32)
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(source) != 0)) + 1
        starts = [0, *cuts.tolist(), len(rows)] if len(rows) else []
        within, files = (rows - self._offsets[source]).tolist(), source.tolist()
        for start, stop in pairwise(starts):
            self._files[files[start]].read(within[start], found[start:stop])
        return found


class _File:
    """The rows of a two-dimensional .npy file of float32 or float16."""

    def __init__(self, path: Path, array: np.ndarray):
        """`array` is the file, mapped."""
        self.path, self.shape, self._dtype = path, array.shape, array.dtype
        self._begin = getattr(array, "offset", 0)  # bytes before the first row; an array without rows is not mapped
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, row: int, found: np.ndarray) -> None:
        """Fill `found` float32 [n, width] with the rows from `row` on.

        Raises UserError if the file has become shorter.
        """
        stored = found if self._dtype == found.dtype else np.empty(found.shape, self._dtype)
        place, done = self._begin + row * stored.strides[0], 0
        while done < stored.nbytes:
            left = memoryview(stored.data).cast("B")[done:] if done else stored.data
            count = os.preadv(self._descriptor, [left], place + done)
            if not count:
                raise UserError(f"{self.path}: shorter than when it was opened. Delete it and run snakemake again.")
            done += count
        if stored is not found:
            found[...] = stored
