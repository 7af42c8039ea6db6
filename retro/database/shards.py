"""Shards: the blocks of a long job, divided among jobs that a cluster runs side by side.

Shard i of N does a contiguous range of the blocks that one job would do, so what is made does not depend on N. It
leaves its finished blocks in a folder and, last, a note beside it, `<folder>.json`, that says what they were made
from. The job that joins them reads the notes and computes nothing.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retro.artifacts import read_json, write_json
from retro.database.blocks import Blocks
from retro.errors import UserError

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
