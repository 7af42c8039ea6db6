"""What is checked while a corpus is read and tokenized.

`Readings` notes what was read of each file, so that one that changes meanwhile is not vouched for. `Spelling` compares
what the tokenizer gives back with the text.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retro.base.artifacts import sha256
from retro.base.stage import UserError
from retro.corpus.documents import fraction
from retro.corpus.readers import Document
from retro.corpus.tokenizers import Tokenizer


def stamp(path: Path) -> list[int]:
    """What tells that a file was written to or replaced: size, times (ns) of the last change, inode."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class Reading:
    """A file being read. `update` is told every byte of it, `end` that there are no more; `failed`: it could not be."""

    def __init__(self, path: Path, digest: bool):
        self.path, self.stamp, self.sha256, self.failed = path, stamp(path), None, False
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
        self._digest, self._opened = digest, {}

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


SHARE = 1 / 64  # of the documents, decoded and compared,
FIRST = 256  # besides the first ones
LENGTH = 100_000  # characters of a document that are compared
AROUND = 20  # characters shown of a difference


class Spelling:
    """Compares documents with what their ids stand for. Counts those that differ, where the tokenizer may be lossy."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        self.tokenizer, self.seed = tokenizer, seed
        self.seen = self.changed = self.unknown = 0

    def counts(self) -> dict[str, int]:
        """For the manifest: nothing unless texts may change."""
        return {"changed": self.changed, "unknown": self.unknown} if self.tokenizer.lossy else {}

    def check(self, document: Document, ids: np.ndarray) -> Document:
        """The document, its bytes those of the text that its ids stand for. Raises `UserError` where a text changes
        and may not, and where nothing is left of it.
        """
        self.seen += 1
        lossy, unknown = self.tokenizer.lossy, self.tokenizer.count_unknown(ids)
        if unknown and not lossy:
            self.tokenizer.refuse_unknown(document.text, f"{document.file}, line {document.line}: ")
        self.unknown += unknown
        if document.ids is not None:
            return document
        size = int(self.tokenizer.token_bytes[ids].sum())
        as_many = size in (document.bytes, document.bytes + self.tokenizer.leading)
        if lossy or not as_many or self._sampled(document):
            difference = self._difference(document.text, ids)
            if difference and not lossy:
                raise UserError(
                    f"{document.file}, line {document.line}: the tokenizer changes this text: {difference}. Take "
                    f"a tokenizer that normalizes nothing, or set dataset.tokenizer.lossy to allow: bits per byte are "
                    f"then of the text as the tokenizer gives it back."
                )
            if difference or unknown:
                self.changed += 1
                document = replace(document, bytes=size - self.tokenizer.leading)
                if document.bytes <= 0:
                    raise UserError(
                        f"{document.file}, line {document.line}: the tokenizer has no token for any of this text. "
                        f"Remove the document, or take another tokenizer."
                    )
        return document

    def _sampled(self, document: Document) -> bool:
        return self.seen <= FIRST or fraction(document.id, self.seed) < SHARE

    def _difference(self, text: str, ids: np.ndarray) -> str:
        """Where a text and what its ids stand for differ first; empty if they do not.

        A space before the text is no difference: many tokenizers put one there.
        """
        if len(text) > LENGTH:
            text = text[:LENGTH]
            ids = self.tokenizer.encode_batch([text], unknown=True)[0]
        found = self.tokenizer.decode(ids)
        if found == text or found == f" {text}":
            return ""
        if found.startswith(" ") and not text.startswith(" "):
            found = found[1:]
        at = next((at for at, pair in enumerate(zip(text, found, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(text), len(found)) if at is None else at
        before, after = (part[max(0, at - AROUND) : at + AROUND] for part in (text, found))
        return f"{before!r} becomes {after!r}"
