"""Finished parts of a long job, kept in a folder until the whole is done: what survives a kill.

Each block is an .npy file written under a temporary name and renamed, called `<start>-<stop>.<key>.npy`.
The key is a digest of everything the block was computed from. Blocks with another key are of no use and are
removed, with a line saying so; files of other names are left alone. A lock keeps a second process out of
the folder.
"""

import hashlib
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts import canonical, open_array, write_array
from retro.errors import UserError
from retro.lock import FILE, locked

NAME = re.compile(r"(\d+)-(\d+)\.([0-9a-f]{16})\.npy")
LEFT_OVER = re.compile(r"\.(\d+)-(\d+)\.([0-9a-f]{16})\.npy\.\d+\.tmp")


class Blocks:
    """Blocks of rows of an array of `dtype`, `row_shape` each, made from `facts` (JSON values).

    A context manager: locks `folder` (created if need be) and discards blocks made from other facts. Raises
    `UserError` if another process holds the lock.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], row_shape: tuple[int, ...], dtype: Any):
        self.folder, self.row_shape, self.dtype = folder, row_shape, np.dtype(dtype)
        self.key = hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]
        self._lock = ExitStack()

    def __enter__(self) -> "Blocks":
        with ExitStack() as lock:
            lock.enter_context(locked(self.folder))
            kept = self._clean()
            self._lock = lock.pop_all()
        if kept:
            print(f"{self.folder}: going on after {kept} finished blocks", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _clean(self) -> int:
        """Remove half-written files and blocks made from something else; the number of blocks kept."""
        kept, stale = 0, 0
        for path in sorted(self.folder.iterdir()):
            if LEFT_OVER.fullmatch(path.name):
                path.unlink()
            elif match := NAME.fullmatch(path.name):
                if match[3] == self.key:
                    kept += 1
                else:
                    path.unlink()
                    stale += 1
        if stale:
            print(
                f"{self.folder}: discarded {stale} blocks made from other inputs, settings, code or versions",
                file=sys.stderr,
            )
        return kept

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"{start:012d}-{stop:012d}.{self.key}.npy"

    def read(self, start: int, stop: int) -> np.ndarray | None:
        """The finished block of rows start .. stop, mapped, or None if there is none or it is damaged."""
        path = self._path(start, stop)
        if not path.is_file():
            return None
        try:
            block = open_array(path)
        except (UserError, OSError, EOFError):
            block = None
        if block is None or block.shape != (stop - start, *self.row_shape) or block.dtype != self.dtype:
            print(f"{path}: damaged, computed again", file=sys.stderr)
            path.unlink()
            return None
        return block

    def write(self, start: int, block: np.ndarray) -> None:
        """Keep the finished rows from `start` on."""
        write_array(self._path(start, start + len(block)), block.astype(self.dtype, copy=False))

    def remove(self) -> None:
        """Remove the blocks, the lock and, if it is then empty, the folder: the whole is written."""
        for path in self.folder.iterdir():
            if NAME.fullmatch(path.name):
                path.unlink()
        (self.folder / FILE).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
