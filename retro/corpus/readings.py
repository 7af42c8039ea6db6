"""What was read of each file of a source, so that one that changes meanwhile is not vouched for."""

import hashlib
import os
from pathlib import Path
from typing import Any

from retro.base.artifacts import sha256
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
        read = {path: each for path, each in self._opened.items() if not each.failed}
        return {path: {"stamp": each.stamp, "sha256": each.sha256} for path, each in read.items()}

    def add(self, facts: dict[str, Any]) -> None:
        """Take over what a shard read. Refuses a file that was another one when another shard read it."""
        for path, told in facts.items():
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
            if reading.failed:
                continue
            reading.check()
            found[path] = reading.sha256 or sha256(path)
            reading.check()
        return found
