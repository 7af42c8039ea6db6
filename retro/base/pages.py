"""Mapped memory, handed back.

Pages of a mapped file stay in a process once they were touched, and count as its memory, until the system needs them
elsewhere: a job that reads a whole file that way looks, to a scheduler with a memory limit, as big as the file.
"""

import ctypes
import mmap
from pathlib import Path

import numpy as np


def release(*arrays: np.ndarray) -> None:
    """Hand back the pages of mapped arrays; the next access reads them again. What was written stays written.

    Arrays in memory are left alone. Without effect where the system cannot do it.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for array in arrays:
        owner: np.ndarray | None = array
        while isinstance(owner, np.ndarray):
            if isinstance(mapped := getattr(owner, "_mmap", None), mmap.mmap):
                mapped.madvise(mmap.MADV_DONTNEED)
                break
            owner = owner.base


class MappedFile:
    """A file that a library has mapped, wherever it did, and keeps mapped."""

    def __init__(self, path: Path):
        self.size, self._places = path.stat().st_size, []
        maps, name = Path("/proc/self/maps"), str(path.resolve())
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.exists() else []
        for line in lines:
            place, *_, mapped = line.split(maxsplit=5)
            if mapped == name:
                start, stop = (int(part, 16) for part in place.split("-"))
                self._places.append((ctypes.c_void_p(start), ctypes.c_size_t(stop - start)))

    def release(self) -> None:
        """Hand back its pages, as `release` does."""
        for start, size in self._places:
            ctypes.CDLL(None).madvise(start, size, mmap.MADV_DONTNEED)
