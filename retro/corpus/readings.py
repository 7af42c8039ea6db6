"""What was read of each file of a source, so that one that changes meanwhile is not vouched for.

And what files hold (`Contents`), remembered, so that a large corpus is not read again to see that it is the same.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retro.base.artifacts import canonical, read_manifest, sha256, write_text
from retro.base.stage import UserError


def stamp(path: Path) -> list[int]:
    """What tells that a file was written to or replaced: size, times (ns) of the last change, inode."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Reading:
    """A file being read. `update` is told every byte of it, `end` that there are no more; `failed`: it could not be."""

    def __init__(self, path: Path, digest: bool):
        self.path, self.stamp, self.failed = path, stamp(path), False
        self.sha256: str | None = None
        self._digest = hashlib.sha256() if digest else None

    def update(self, block: bytes) -> None:
        if self._digest:
            self._digest.update(block)

    def end(self) -> None:
        if self._digest:
            self.sha256 = self._digest.hexdigest()

    def check(self) -> None:
        """Refuse a file that is no longer what was read."""
        if self.failed:
            return
        try:
            found = stamp(self.path)
            same = found == self.stamp or (
                found[0] == self.stamp[0] and self.sha256 is not None and sha256(self.path) == self.sha256
            )
        except OSError as error:
            raise UserError(
                f"{self.path}: was read, and now cannot be ({error.strerror}). Put it back and run snakemake again."
            ) from None
        if not same:
            before, now = (f"{size:,} bytes" for size in (self.stamp[0], found[0]))
            raise UserError(
                f"{self.path}: changed while it was read (before: {before}, now: {now}). Wait until nothing writes "
                f"to it and run snakemake again."
            )


class Readings:
    """The files that a stage opened, each as it was when it was opened first.

    `digest`: take the sha256 of what is read. Of several shards that read the same files, one does.
    """

    def __init__(self, digest: bool = True):
        self._digest = digest
        self._opened: dict[str, Reading] = {}
        self._failed: set[str] = set()  # that other shards could not read; here they may never have been read at all

    def open(self, path: Path) -> Reading:
        reading = Reading(path, self._digest)
        first = self._opened.setdefault(str(path), reading)
        if first is not reading:
            first.check()
        return reading if reading.stamp != first.stamp else first

    def failed(self, path: Path) -> bool:
        """Whether a file was opened, or was to be, and could not be read."""
        return str(path) in self._opened and self._opened[str(path)].failed

    def facts(self) -> dict[str, Any]:
        """For the note of a shard."""
        return {
            path: {"failed": True} if each.failed else {"stamp": each.stamp, "sha256": each.sha256}
            for path, each in self._opened.items()
        }

    def add(self, facts: dict[str, Any]) -> None:
        """Take over what a shard read. Refuses a file that was another one when another shard read it."""
        for path, told in facts.items():
            if told.get("failed"):
                self._failed.add(path)
                continue
            reading = Reading(Path(path), digest=False)
            reading.stamp, reading.sha256 = told["stamp"], told["sha256"]
            known = self._opened.setdefault(path, reading)
            known.sha256 = known.sha256 or reading.sha256
            if known.stamp != reading.stamp:
                known.check()
                reading.check()

    def hashes(self) -> dict[str, str]:
        """sha256 of each file that could be read, for the manifest. Refuses files that changed since."""
        found = {}
        for path, reading in self._opened.items():
            if reading.failed or path in self._failed:
                continue
            reading.check()
            found[path] = reading.sha256 or sha256(path)
            reading.check()
        return found


YOUNG = 3.0  # seconds: a file written so lately may be written to again without its times telling
LARGE = 1 << 28  # bytes; to read more is said before it is done


class Contents:
    """sha256 of files, remembered in the file `path` for as long as their `stamp` is the same.

    Several processes may share `path`: it is replaced whole, and what one loses of another's is read again. Where it
    cannot be written, files are read each time. A file that cannot be read has the reason in place of its sha256.
    """

    def __init__(self, path: Path):
        self.path = path
        self._found: dict[str, str] = {}  # by this process
        self._known: dict[str, Any] | None = None

    def digest(self, files: Iterable[str]) -> str:
        """What files hold, in their order: 16 characters that change when one does."""
        return hashlib.sha256(canonical(list(self.hashes(files).values())).encode()).hexdigest()[:16]

    def hashes(self, files: Iterable[str]) -> dict[str, str]:
        """sha256 of each file, by its path; of each, this process looks once."""
        given = list(files)
        unknown: dict[str, list[int]] = {}
        for file in dict.fromkeys(given):
            if file in self._found:
                continue
            try:
                state = stamp(Path(file))
            except OSError as error:
                self._found[file] = str(error.strerror)
                continue
            kept = self._remembered().get(os.path.abspath(file))
            if kept is not None and kept["stamp"] == state:
                self._found[file] = kept["sha256"]
            else:
                unknown[file] = state
        if unknown:
            self._read(unknown)
        return {file: self._found[file] for file in given}

    def differ(self, files: Iterable[str], manifest: str) -> bool:
        """Whether a manifest names other contents of these files; not if it names none, or is not there."""
        path = Path(manifest)
        try:
            inputs = read_manifest(path).facts["inputs"]
        except (UserError, KeyError):
            return False
        return any(
            inputs.get(os.path.relpath(name, path.parent), found) != found for name, found in self.hashes(files).items()
        )

    def _read(self, files: dict[str, list[int]]) -> None:
        """Hash files, each with its stamp, and remember them; those that may still be written to are not."""
        size = sum(state[0] for state in files.values())
        if size > LARGE:
            print(
                f"Reading {size / 1e9:,.1f} GB of {len(files)} files to know their content; {self.path} remembers it.",
                file=sys.stderr,
            )
        settled = {}
        try:
            for file, state in files.items():
                begin = time.time()
                try:
                    self._found[file] = sha256(file)
                    same = stamp(Path(file)) == state
                except OSError as error:
                    self._found[file] = str(error.strerror)
                    continue
                if same and max(state[1], state[2]) / 1e9 < begin - YOUNG:
                    settled[os.path.abspath(file)] = {"stamp": state, "sha256": self._found[file]}
        finally:
            self._remember(settled)

    def _remembered(self) -> dict[str, Any]:
        """What the file says; nothing where it is damaged or of another form."""
        if self._known is None:
            try:
                known = json.loads(self.path.read_text(encoding="utf-8"))
                self._known = {
                    path: each for path, each in known.items() if isinstance(each["sha256"], str) and each["stamp"]
                }
            except (OSError, ValueError, AttributeError, TypeError, KeyError):
                self._known = {}
        return self._known

    def _remember(self, settled: dict[str, Any]) -> None:
        """Add to the file, which another process may have replaced meanwhile."""
        if settled:
            self._known = None
            self._known = self._remembered() | settled
            try:
                write_text(self.path, canonical(self._known) + "\n")
            except OSError as error:
                print(f"{self.path}: not written ({error.strerror}); files are read again next time", file=sys.stderr)
