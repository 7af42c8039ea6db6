"""Arrays and facts on disk: written under a temporary name, renamed when whole, described by a manifest.

A manifest is the last file of an artifact to appear. It holds what the artifact's files are (sha256, size,
shape, dtype), what they were made from (sha256 of each input's manifest), and with what (settings, counts,
seeds, threads, versions, fingerprint of the code). It holds no time and no absolute path, so that the same
inputs give the same manifest.
"""

import hashlib
import json
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retro.base import provenance
from retro.base.stage import UserError

FORMAT = 1
OF_WHOM = "Delete it and run snakemake again, if that made it; a file of your own, correct."


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """JSON with sorted keys and no optional white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path`, durably, if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


class Recorded(dict):
    """An object of a JSON file in which a key that is not there is a `UserError` that names it, and the file."""

    path: str | Path = ""

    def __missing__(self, key: str) -> Any:
        found = ", ".join(map(str, self)) or "nothing"
        raise UserError(f"{self.path}: lacks {key!r}, has {found}. {OF_WHOM}")


def read_json(path: str | Path) -> Any:
    """Read JSON, its objects as `Recorded`; a missing or broken file is a `UserError` that names it."""

    def recorded(facts: dict[str, Any]) -> Recorded:
        found = Recorded(facts)
        found.path = path
        return found

    try:
        return json.loads(read_text(path), object_hook=recorded)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). {OF_WHOM}") from None


def read_text(path: str | Path) -> str:
    """Text of a file in UTF-8; a `UserError` names one that is missing, or is something else. A named pipe is not
    waited for.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "no plain file"
            raise UserError(f"{path}: is {what}. Give a file.")
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Run snakemake to make it. If it is a file of your own, put it there."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}). {OF_WHOM}") from None


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write an .npy file, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        _write(file, np.asarray(array))


def _write(file: BinaryIO, array: np.ndarray) -> None:
    """The .npy form of an array. NumPy's own writer does not say why a disk took less than it was given."""
    array = np.ascontiguousarray(array)
    if array.dtype.hasobject:
        raise TypeError(f"an array of {array.dtype} would need a pickle")
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.reshape(-1).view(np.uint8).data)


@contextmanager
def growing_array(path: str | Path, shape: tuple[int, ...], dtype: Any) -> Iterator[np.ndarray]:
    """A writable memory-mapped array that becomes the .npy file `path` if the block ends well."""
    with replacing(path) as temporary:
        if 0 in shape:  # a file of no bytes cannot be mapped
            with open(temporary, "wb") as file:
                _write(file, np.empty(shape, dtype))
            yield np.empty(shape, dtype)
        else:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            with open(temporary, "r+b") as file:  # a mapped page without room behind it would end the process
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
            yield array
            array.flush()
            del array


def open_array(path: str | Path) -> np.ndarray:
    """Map an .npy file read-only; pickles are refused."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "empty file" in str(error):
            return np.load(path, allow_pickle=False)
        raise UserError(f"{path}: not a plain .npy array ({error}). Delete it and run snakemake.") from None


def release(*arrays: np.ndarray) -> None:
    """Hand back the pages of mapped arrays; the next access reads them again. What was written stays written.

    Pages of a mapped file stay in a process once they were touched, and count as its memory, until the system needs
    them elsewhere: to a scheduler with a memory limit, a job that reads a whole file that way looks as big as the file.
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


@dataclass(frozen=True)
class Manifest:
    """What a manifest.json says; `folder` is where the artifact's files lie."""

    path: Path
    facts: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def counts(self) -> dict[str, Any]:
        return self.facts["counts"]

    @property
    def settings(self) -> dict[str, Any]:
        return self.facts["settings"]

    def file(self, name: str) -> Path:
        """The path of one of the artifact's files; it must be listed and have the recorded size."""
        if name not in self.facts["files"]:
            raise UserError(
                f"{self.path}: lists no file {name!r}, only {sorted(self.facts['files'])}. Run snakemake again."
            )
        path, wanted = self.folder / name, self.facts["files"][name]["bytes"]
        found = path.stat().st_size if path.exists() else None
        if found != wanted:
            state = "is missing" if found is None else f"has {found} bytes"
            raise UserError(f"{path}: {state}, its manifest says {wanted}. {WAY_OUT.format(path=path)}")
        return path

    def array(self, name: str) -> np.ndarray:
        """Map one of the artifact's arrays read-only."""
        return open_array(self.file(name))

    def check(self) -> None:
        """Compare every file's sha256 with what was recorded; a `UserError` names the first that differs."""
        for name, facts in self.facts["files"].items():
            found = sha256(self.file(name))
            if found != facts["sha256"]:
                path = self.folder / name
                raise UserError(
                    f"{path}: content changed since it was made (sha256 {found[:16]}…, its manifest says "
                    f"{facts['sha256'][:16]}…). {WAY_OUT.format(path=path)}"
                )


WAY_OUT = "Delete {path} and run snakemake again to rebuild it. If its dataset was opened from a pack, open one again."


def _describe(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    if path.suffix == ".npy":
        array = open_array(path)
        dtype = array.dtype.descr if array.dtype.names else array.dtype.str
        facts |= {"shape": list(array.shape), "dtype": dtype}
    return facts


def write_manifest(
    path: str | Path,
    *,
    kind: str,
    stage: str,
    files: Sequence[str | Path],
    inputs: Sequence[str | Path] = (),
    hashes: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    counts: dict[str, Any] | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Describe `files` (all in or below the manifest's folder), made by module `stage` from `inputs`.

    `inputs` are manifests of other artifacts or raw files; each is recorded by relative path and sha256. `hashes`:
    sha256 of inputs, by path as in `inputs`, that was taken while they were read.
    """
    path, known = Path(path), hashes or {}
    facts = {
        "format": FORMAT,
        "kind": kind,
        "stage": stage,
        "fingerprint": provenance.digest(stage),
        "files": {os.path.relpath(file, path.parent): _describe(Path(file)) for file in files},
        "inputs": {os.path.relpath(file, path.parent): known.get(str(file)) or sha256(file) for file in inputs},
        "settings": settings or {},
        "counts": counts or {},
        "seed": seed,
        "threads": threads,
        "versions": provenance.versions(),
    }
    write_json(path, facts)
    return facts


def read_manifest(path: str | Path, kind: str | None = None) -> Manifest:
    """Read a manifest and check that it is one, and of the wanted kind."""
    facts = read_json(path)
    objects = ("files", "inputs", "settings", "counts")
    if (
        not isinstance(facts, dict)
        or "kind" not in facts
        or not all(isinstance(facts.get(key), dict) for key in objects)
    ):
        raise UserError(f"{path}: not a manifest. Delete it and run snakemake again.")
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{path}: manifest format {facts.get('format')}, this version reads {FORMAT}. Delete it and run "
            "snakemake again."
        )
    if kind is not None and facts["kind"] != kind:
        raise UserError(f"{path}: describes {facts['kind']!r}, wanted {kind!r}.")
    return Manifest(Path(path), facts)
