"""The files of a source and their bytes: found in sorted order, decompressed by blocks, cut into lines."""

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from retro.errors import UserError

JSON_LINES = (".jsonl", ".json", ".ndjson")
COMPRESSIONS = (".gz", ".zst")
KINDS = "JSON lines (.jsonl, .json, .ndjson; plain, .gz or .zst), .parquet or .txt"
BLOCK = 1 << 14  # bytes of a file read at once; what they decompress to is in memory together


class Damaged(Exception):
    """A file cannot be read to its end; the message says why."""


@dataclass(frozen=True)
class SourceFile:
    """A file to read. `name` is its path below the folder that the config names, in POSIX style."""

    path: Path
    name: str
    kind: str  # jsonl, parquet or txt
    bytes: int


def kind_of(name: str) -> str | None:
    """jsonl, parquet or txt, by the file's suffix; None for others."""
    name = name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(".txt"):
        return "txt"
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return "jsonl" if name.endswith(JSON_LINES) else None


def find(paths: str | list[str], source: str) -> tuple[list[SourceFile], list[Path]]:
    """Files to read, folders opened and sorted, and those in folders that are of no kind read here.

    Hidden files and folders (a name that begins with a dot) are left out. Raises `UserError` for a path that
    does not exist, a file of an unknown kind, a folder without any file to read.
    """
    found: list[SourceFile] = []
    ignored: list[Path] = []
    for given in [paths] if isinstance(paths, str) else paths:
        path = Path(given)
        if not path.exists():
            hint = " Patterns are not expanded: name the folder." if any(c in given for c in "*?[") else ""
            raise UserError(
                f"source {source}: no such file or folder: {given} (working folder {os.getcwd()}).{hint} "
                f"Correct the path."
            )
        before = len(found)
        for file in _walk(path) if path.is_dir() else [path]:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            kind = kind_of(file.name)
            if not _is_unicode(name):
                raise UserError(f"source {source}: the name of {file!s} is not valid UTF-8. Rename it.")
            if kind is None:
                ignored.append(file)
            else:
                found.append(SourceFile(file, name, kind, file.stat().st_size))
        if len(found) == before:
            holds = "holds no file to read" if path.is_dir() else "is of no kind that can be read"
            raise UserError(f"source {source}: {given} {holds}. Wanted: {KINDS}.")
    if not found:
        raise UserError(f"source {source}: its list of paths is empty. Name at least one.")
    return found, ignored


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _walk(folder: Path) -> list[Path]:
    """Files below a folder, without hidden ones, sorted by path; links followed, but not round in circles."""
    files: list[Path] = []
    above: dict[str, set[str]] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        parents = above.pop(place, set()) | {os.path.realpath(place)}
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in parents
        ]
        above.update({os.path.join(place, name): parents for name in folders})
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def blocks(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its suffix says so; `advance` is told of each byte read from disk.

    Raises `Damaged` when compressed data is broken or ends too early, after having yielded all before that.
    """
    compressed = path.suffix.lower() in COMPRESSIONS
    start = _gzip if path.suffix.lower() == ".gz" else _zstd
    with open(path, "rb") as file:
        engine = None
        while block := file.read(BLOCK):
            advance(len(block))
            while compressed and block:
                if engine is None and start is _gzip and not block.strip(b"\0"):
                    break  # zeros that fill up the last block of a tape
                engine = engine or start()
                try:
                    yield engine.decompress(block)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise Damaged(f"broken {path.suffix} data ({error})") from None
                block = engine.unused_data
                if engine.eof:
                    engine = None  # what follows is another member
            if not compressed:
                yield block
        if engine is not None:
            raise Damaged(f"the {path.suffix} data ends too early: the file is cut off")


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def lines(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Lines of a stream of blocks, without their line feeds; only a line feed ends a line."""
    waiting: list[bytes] = []
    for part in parts:
        first, *others = part.split(b"\n")
        waiting.append(first)
        for other in others:
            yield b"".join(waiting)
            waiting = [other]
    last = b"".join(waiting)
    if last:
        yield last
