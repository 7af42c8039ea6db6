"""The files of a source and their bytes: found in sorted order, decompressed by blocks, cut into lines."""

import fnmatch
import glob
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from retro.base.stage import UserError
from retro.corpus.readings import Reading

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
    kind: str  # jsonl, parquet, txt, or unreadable
    bytes: int
    reason: str = ""  # why it is unreadable


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


def find(
    paths: str | list[str], source: str, on_error: str = "stop"
) -> tuple[list[SourceFile], list[Path], list[Path]]:
    """Files to read, folders opened and sorted; those in folders that are of no kind read here; those named again.

    A path that does not exist and holds `*`, `?` or `[` is a pattern of files and folders below its first parts, in
    which `**` is any number of folders. What matches is read in the order of its names. Hidden files
    and folders (a name that begins with a dot) are left out. A file that several names lead to is read once. What
    cannot be read (a folder that cannot be listed, a link to nothing, a named pipe) is refused or, with
    `on_error="skip"`, a file of kind unreadable. Raises `UserError` for a path that does not exist, a file of an
    unknown kind, a folder without any file to read, a pattern that matches none.
    """
    found: list[SourceFile] = []
    ignored: list[Path] = []
    again: list[Path] = []
    real: set[str] = set()
    for given in [paths] if isinstance(paths, str) else paths:
        path, pattern = _parted(given) if is_pattern(given) else (Path(given), ())
        if not os.path.lexists(path) and _is_missing(path):
            raise UserError(
                f"source {source}: no such file or folder: {given} (working folder {os.getcwd()}). Correct the path."
            )
        before = len(found) + len(again)
        for file, state in walk(path, pattern):
            name = file.relative_to(path).as_posix() if file != path else file.name
            kind = kind_of(file.name)
            if not _is_unicode(name):
                raise UserError(f"source {source}: the name of {file!s} is not valid UTF-8. Rename it.")
            if kind is None and not isinstance(state, str):
                ignored.append(file)
            elif (place := os.path.realpath(file)) in real:
                again.append(file)
            else:
                real.add(place)
                reason = state if isinstance(state, str) else odd(state.st_mode)
                if reason and on_error == "stop":
                    raise UserError(
                        f"source {source}: {file}: {reason}. Correct it, or set dataset.on_error to skip: it is then "
                        f"left out and listed in skipped.jsonl."
                    )
                size = 0 if isinstance(state, str) or reason else state.st_size
                found.append(SourceFile(file, name, "unreadable" if reason or kind is None else kind, size, reason))
        if len(found) + len(again) == before:
            if pattern:
                raise UserError(
                    f"source {source}: the pattern {given} matches no file to read (working folder {os.getcwd()}; `*` "
                    f"stays within a folder, `**` does not; hidden files are left out). Correct it. Wanted: {KINDS}."
                )
            holds = "holds no file to read" if path.is_dir() else "is of no kind that can be read"
            raise UserError(f"source {source}: {given} {holds}. Wanted: {KINDS}.")
    if not found:
        raise UserError(f"source {source}: its list of paths is empty. Name at least one.")
    return found, ignored, again


def is_pattern(given: str) -> bool:
    """Whether a path of a source is a pattern: what lies on disk is meant as it is called."""
    return glob.has_magic(given) and not os.path.lexists(given) and _is_missing(Path(given))


def _parted(given: str) -> tuple[Path, tuple[str, ...]]:
    """A pattern's folder, and its parts from the first on that is none."""
    parts = Path(given).parts
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first]), parts[first:]


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...], begun: bool = False) -> bool:
    """Whether a path, or a folder above it, matches a pattern; `begun`: or whether something below it may."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return begun or any(_fits(parts[number:], pattern[1:]) for number in range(len(parts) + 1))
    if not parts:
        return begun
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:], begun)


def twins(paths: list[Path]) -> list[tuple[Path, Path]]:
    """Files of which one has the name of another, compressed: a.jsonl and a.jsonl.gz."""
    known = set(map(str, paths))
    return [
        (Path(plain), path)
        for path in paths
        for plain in [str(path).removesuffix(path.suffix)]
        if path.suffix.lower() in COMPRESSIONS and plain in known
    ]


def _is_missing(path: Path) -> bool:
    """Whether nothing is there, as opposed to something that may not be looked at."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def odd(mode: int) -> str:
    """What something that is not a plain file is, in words; empty for a file."""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"


def walk(top: Path, pattern: tuple[str, ...] = ()) -> list[tuple[Path, os.stat_result | str]]:
    """A path, or the files below it if it is a folder, without hidden ones, sorted; links followed, but not round in
    circles. With each what the system says of it or, where it cannot be read, why. `pattern`: parts that the path of
    each below `top` matches, or a folder above it; folders in which nothing can are not looked at.
    """
    files: list[tuple[Path, os.stat_result | str]] = []
    waiting: list[tuple[Path, tuple[str, ...], frozenset[str]]] = [(top, (), frozenset())]
    while waiting:
        path, parts, above = waiting.pop()
        try:
            state = os.stat(path)
            if not stat.S_ISDIR(state.st_mode):
                if _fits(parts, pattern):
                    files.append((path, state))
                continue
            real = os.path.realpath(path)
            if real in above:
                continue
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            if isinstance(error, PermissionError) or _fits(parts, pattern):
                files.append((path, _why(path, error)))
            continue
        shown = [(path / name, (*parts, name)) for name in names if not name.startswith(".")]
        waiting += [(inner, below, above | {real}) for inner, below in shown if _fits(below, pattern, begun=True)]
    return sorted(files, key=lambda each: each[0].relative_to(top).as_posix())


def _why(path: Path, error: OSError) -> str:
    """Why a path cannot be read."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"is a link to nothing ({os.readlink(path)})"
    return f"cannot be read ({error.strerror})"


def blocks(path: Path, advance: Callable[[int], None], reading: Reading) -> Iterator[bytes]:
    """The bytes of a file, decompressed if its suffix says so; `advance` is told of each byte read from disk.

    Raises `Damaged` when the file cannot be read or compressed data is broken or ends too early, after having
    yielded all before that.
    """
    compressed = path.suffix.lower() in COMPRESSIONS
    start = _gzip if path.suffix.lower() == ".gz" else _zstd
    engine = None
    for block in raw(path, reading):
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


def raw(path: Path, reading: Reading) -> Iterator[bytes]:
    """The bytes of a file as they lie on disk."""
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                reading.update(block)
                yield block
    except OSError as error:
        reading.failed = True
        raise Damaged(f"the file cannot be read ({error.strerror})") from None
    reading.end()


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
