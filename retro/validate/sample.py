"""What of an artifact is recomputed, and the first place where stored and recomputed are not the same bytes."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro.base.artifacts import Manifest, read_manifest
from retro.base.shards import Bounds


@dataclass(frozen=True)
class Difference:
    """A value of a stored file that the stage would not write again."""

    file: Path
    where: str
    stored: str
    recomputed: str

    def __str__(self) -> str:
        return f"{self.file}, {self.where}: stored {self.stored}, recomputed {self.recomputed}"


class Sample:
    """A seeded share of an artifact's blocks, at least one of them. `told` says what was chosen, `rows` how much."""

    def __init__(self, fraction: float, seed: int, manifest: Manifest):
        name = f"{manifest.facts['kind']}/{manifest.folder.name}"
        self.fraction, self.seed = fraction, [seed, *hashlib.sha256(name.encode()).digest()[:8]]
        self.rows, self.told = 0, "nothing"

    def choose(self, blocks: Bounds, unit: str) -> Bounds:
        """Some of the `blocks` (first row and end of each), in their order."""
        count = min(len(blocks), max(1, math.ceil(self.fraction * len(blocks))))
        chosen = np.sort(np.random.default_rng(self.seed).choice(len(blocks), count, replace=False))
        found = [blocks[number] for number in chosen] if blocks else []
        self.rows = sum(stop - start for start, stop in found)
        self.told = f"{count} of {len(blocks)} blocks, {self.rows:,} {unit}s"
        return found

    def all(self, rows: int, unit: str) -> None:
        """Nothing is left out."""
        self.rows, self.told = rows, f"all, {rows:,} {unit}s"


def inputs(manifest: Manifest) -> dict[str, list[Path]]:
    """The manifests that an artifact was made from, by kind; those of sources in the order that numbers sources."""
    found: dict[str, list[Path]] = {}
    for name in manifest.facts["inputs"]:
        path = Path(os.path.normpath(manifest.folder / name))
        if path.name == "manifest.json":
            found.setdefault(read_manifest(path).facts["kind"], []).append(path)
    return {kind: sorted(paths, key=lambda path: path.parent.name) for kind, paths in found.items()}


def compare(file: Path, unit: str, first: int, stored: np.ndarray, made: np.ndarray) -> Difference | None:
    """The first row of two arrays [n, …], whose rows are numbered from `first`, that is not the same bytes."""
    for what in ("dtype", "shape"):
        found, wanted = (getattr(array, what) for array in (stored, made))
        if what == "shape":
            found, wanted = found[1:], wanted[1:]
        if found != wanted:
            return Difference(file, f"{what} of a {unit}", str(found), str(wanted))
    count = min(len(stored), len(made))
    wrong = np.flatnonzero((_bytes(stored[:count]) != _bytes(made[:count])).any(axis=1))
    if len(wrong):
        return _at(file, f"{unit} {first + int(wrong[0])}", stored[wrong[0]], made[wrong[0]])
    if len(stored) == len(made):
        return None
    values = [str(array[count]) if len(array) > count else "nothing" for array in (stored, made)]
    return Difference(file, f"{unit} {first + count}", *values)


def _at(file: Path, where: str, stored: np.ndarray, made: np.ndarray) -> Difference:
    """The field or column in which two unequal rows differ."""
    for name in stored.dtype.names or ():
        if stored[name] != made[name]:
            return Difference(file, f"{where}, {name}", str(stored[name]), str(made[name]))
    if np.ndim(stored):
        flat = [np.ascontiguousarray(row).reshape(-1) for row in (stored, made)]
        column = int(np.flatnonzero((_bytes(flat[0]) != _bytes(flat[1])).any(axis=1))[0])
        return Difference(file, f"{where}, column {column}", str(flat[0][column]), str(flat[1][column]))
    return Difference(file, where, str(stored), str(made))


def _bytes(rows: np.ndarray) -> np.ndarray:
    """uint8 [n, bytes a row]."""
    rows = np.ascontiguousarray(rows)
    return rows.reshape(-1).view(np.uint8).reshape(len(rows), -1) if rows.size else np.empty((len(rows), 0), np.uint8)
