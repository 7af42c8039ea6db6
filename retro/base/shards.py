"""Finished blocks of a long job, kept in a folder until the whole is done: what survives a kill.

Shards are the blocks divided among jobs that a cluster runs side by side. One process at a time works in a folder
(`locked`).
"""

import argparse
import errno
import fcntl
import hashlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from retro.base.artifacts import canonical, open_array, read_json, write_array, write_json
from retro.base.stage import UserError

LOCK = ".lock"
# Another process holds it; where locks travel to a server (NFS), either number may say so.
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
# The file system carries no locks: NFS without a lock service, Lustre mounted without flock, some FUSE.
NONE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, for this process. The lock ends with the process, however it ends.

    Raises `UserError` if another process on this or, where the file system carries locks that far, another machine
    holds it, and if the folder cannot be written. Where the file system has no locks the log says so, and the
    work goes on without one: a lock file of our own would outlive a kill and stop the run that resumes.
    """
    path = folder / LOCK
    with opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise UserError(
                    f"{folder}: in use by {holder(path)}. Wait for it to end, or stop it, and run this again: it goes "
                    f"on from what is finished."
                ) from None
            if error.errno not in NONE:
                raise OSError(error.errno, error.strerror, str(path)) from None
            print(
                f"warning: {folder}: not locked against a second process, which its file system cannot do "
                f"({error.strerror}). See to it that no other run works here.",
                file=sys.stderr,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def opened(path: Path) -> TextIO:
    """A lock file, made if need be. Raises `UserError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(
            f"{path}: cannot be written ({error.strerror}). Unfinished work is kept there: make the folder writable, "
            f"or choose another results folder."
        ) from None


def holder(path: Path) -> str:
    """What the process that holds a lock wrote into it; some file systems keep others from reading that, too."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


BLOCK_NAME = re.compile(r"(\d+)-(\d+)\.([0-9a-f]{16})\.npy")
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
            elif match := BLOCK_NAME.fullmatch(path.name):
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
            if BLOCK_NAME.fullmatch(path.name):
                path.unlink()
        (self.folder / LOCK).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


NAME = re.compile(r"(\d+)-of-(\d+)")
Bounds = list[tuple[int, int]]


def shard_name(text: str) -> tuple[int, int]:
    """The value of a stage's `--shard`: `2-of-8` is (2, 8), shards being numbered from 0."""
    match = NAME.fullmatch(text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted <number>-of-<shards>, numbered from 0")
    return int(match[1]), int(match[2])


def bounds(rows: int, block: int, shard: tuple[int, int] | None = None) -> Bounds:
    """First row and end of each block of a shard; of all blocks by default."""
    starts, (number, shards) = range(0, rows, block), shard or (0, 1)
    mine = starts[len(starts) * number // shards : len(starts) * (number + 1) // shards]
    return [(start, min(start + block, rows)) for start in mine]


def compute(blocks: Blocks, wanted: Bounds, work: Callable[[int, int], np.ndarray], shown: Any) -> None:
    """Do the blocks that are not finished yet: `work(start, stop)` gives rows; `shown` is a progress bar."""
    for start, stop in wanted:
        if blocks.read(start, stop) is None:
            blocks.write(start, work(start, stop))
        else:
            shown.update(stop - start)
            shown.unpause()  # what was already there does not count in the rate


def write_note(path: Path, shard: tuple[int, int], blocks: Blocks, made_from: dict[str, Any], size: int) -> None:
    """Say that a shard is finished; `size` is the rows a block."""
    facts = {"made_from": made_from, "row_shape": blocks.row_shape, "dtype": np.lib.format.dtype_to_descr(blocks.dtype)}
    write_json(path, {"shard": list(shard), "block": size, **facts})


def read_notes(notes: list[Path], but: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What the notes say. Raises `UserError` if the shards are not all, or differ in more than the keys `but`."""
    facts = [read_json(path) for path in notes]
    for path, found in zip(notes, facts, strict=True):
        for key, wanted in facts[0].items():
            if key not in ("shard", *but) and found.get(key) != wanted:
                raise UserError(
                    f"{path}: {key} is {found.get(key)}, but that of {notes[0]} is {wanted}. Shards made by different "
                    f"versions, devices or inputs cannot be joined: delete both files and run snakemake again."
                )
    if [found["shard"] for found in facts] != [[number, len(notes)] for number in range(len(notes))]:
        raise UserError(f"{notes[0].parent}: shards {[found['shard'] for found in facts]}, wanted all, in order.")
    return facts


class Joined:
    """The finished blocks of all shards, in order. Raises `UserError` if the shards do not belong together."""

    def __init__(self, notes: list[Path], rows: int):
        first = read_notes(notes)[0]
        self.made_from, self.row_shape = first["made_from"], tuple(first["row_shape"])
        descr = first["dtype"]
        self.dtype = np.dtype(descr if isinstance(descr, str) else [tuple(field) for field in descr])
        self._folders = [path.with_suffix("") for path in notes]
        self._bounds = [bounds(rows, first["block"], (number, len(notes))) for number in range(len(notes))]

    def _open(self) -> Iterator[tuple[Blocks, Bounds]]:
        for folder, wanted in zip(self._folders, self._bounds, strict=True):
            with Blocks(folder, self.made_from, self.row_shape, self.dtype) as blocks:
                yield blocks, wanted

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row and rows of each block."""
        for blocks, wanted in self._open():
            for start, stop in wanted:
                found = blocks.read(start, stop)
                if found is None:
                    raise UserError(
                        f"{blocks.folder}: the block of rows {start} to {stop} is missing. Delete "
                        f"{blocks.folder}.json and run snakemake again: the shard makes it again."
                    )
                yield start, found

    def remove(self) -> None:
        """Remove the blocks: the whole is written."""
        for blocks, _ in self._open():
            blocks.remove()


class Alone(Joined):
    """The same for one job's own blocks, which it holds open."""

    def __init__(self, blocks: Blocks, made_from: dict[str, Any], wanted: Bounds):
        self.made_from, self.row_shape, self.dtype = made_from, blocks.row_shape, blocks.dtype
        self._held = [(blocks, wanted)]

    def _open(self) -> Iterator[tuple[Blocks, Bounds]]:
        yield from self._held
