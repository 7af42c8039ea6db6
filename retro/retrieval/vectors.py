"""Embeddings of all sources, read by global row from the memory-mapped arrays."""

from pathlib import Path

import numpy as np

from retro.artifacts import read_manifest
from retro.errors import UserError
from retro.paging import release

AROUND = 1 << 18  # bytes that a system maps around a vector, as measured; more than Linux says (64 kB)
RESIDENT = 1 << 26  # bytes mapped before they are handed back
PIECE = RESIDENT // AROUND // 2  # vectors read before that is looked at


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
        self._arrays = [manifest.array("embeddings.npy") for manifest in opened]
        self.width = self._arrays[0].shape[1]
        self._touched = 0
        self._offsets = np.concatenate([[0], np.cumsum([len(array) for array in self._arrays])])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, width]: vectors of global rows."""
        rows = np.asarray(rows)
        found = np.empty((len(rows), self.width), np.float32)
        for start in range(0, len(rows), PIECE):
            self._read(rows[start : start + PIECE], found[start : start + PIECE])
        return found

    def _read(self, rows: np.ndarray, found: np.ndarray) -> None:
        source = np.searchsorted(self._offsets, rows, side="right") - 1
        for number in np.unique(source):
            here = source == number
            found[here] = self._arrays[number][rows[here] - self._offsets[number]]
        self._touched += min(int(rows.max() - rows.min() + 1) * self.width * 4, len(rows) * AROUND)
        if self._touched > RESIDENT:
            release(*self._arrays)
            self._touched = 0
