"""Documents of a source, one after another: validated, counted, with the file and line they come from."""

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retro.base.stage import UserError
from retro.corpus import files
from retro.corpus.dates import last_second
from retro.corpus.files import Damaged, SourceFile
from retro.corpus.readings import Reading, Readings
from retro.corpus.records import (
    MISSING,
    NamedFields,
    check_beginning,
    check_characters,
    find,
    is_nothing,
    is_wide,
    kind,
    name_of,
    names,
    parse,
    plain,
    rows,
)
from retro.corpus.settings import SourceSettings

RECORDS = 1024  # consecutive records, a block: what one shard of a source reads before the next one's turn
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """A document; `bytes` is the length of its text in UTF-8, `line` the line (or row) of `file`, from 1.

    `ids`: its tokens, int64, where they are given instead of text. `date`: as `retro.corpus.dates` has it, if known.
    """

    id: str
    text: str
    group: str
    title: str
    bytes: int
    file: str
    line: int
    ids: np.ndarray | None = None
    date: int | None = None


ENDS = ("\n\n", "\n", " ")  # where a text is cut, the best first


def parts(document: Document, most: int | None) -> Iterator[Document]:
    """A document, cut into documents of at most `most` characters and at least half of that; the last may have fewer.

    They are `<id>#1`, …, of one group, and together the text, character by character.
    """
    text = document.text
    if most is None or len(text) <= most:
        yield document
        return
    begin = number = 0
    while begin < len(text):
        end, number = begin + most, number + 1
        if end < len(text):
            places = ((text.rfind(mark, begin + most // 2, end), len(mark)) for mark in ENDS)
            end = next((place + length for place, length in places if place >= 0), end)
        part = text[begin:end]
        yield replace(
            document,
            id=f"{document.id}#{number}",
            text=part,
            title=f"{document.title}, part {number}",
            bytes=len(part.encode()),
        )
        begin = end


class Malformed(UserError):
    """A record, or the rest of a file, that cannot be used."""

    def __init__(self, file: SourceFile, line: int, reason: str):
        place = {"parquet": ", row {}", "megatron": ", document {}", "unreadable": ""}.get(file.kind, ", line {}")
        super().__init__(
            f"{file.path}{place.format(line)}: {reason}. Correct it, or set dataset.on_error to skip: such "
            f"records are then left out and listed in skipped.jsonl."
        )
        self.facts = {"file": str(file.path), "line": line, "reason": reason}


class Sharded:
    """Which records are looked at: with a shard (i, N) every N-th block of `RECORDS`, from the i-th on.

    `records` counts all records passed, `block` is the number of the last one's block.
    """

    def __init__(self, shard: tuple[int, int] | None):
        self.shard, self.records = shard or (0, 1), 0

    @property
    def block(self) -> int:
        return (self.records - 1) // RECORDS

    def mine(self) -> bool:
        """Whether the next record is this shard's."""
        number, shards = self.shard
        return self.records // RECORDS % shards == number


class Reader(Sharded):
    """Iterates over the documents of a source in a fixed order, one document in memory at a time.

    Malformed records raise `Malformed`, a `UserError` (`on_error="stop"`), or are counted in `skipped` and
    told to `note` as {file, line, reason} (`"skip"`); `first` is the first. `filtered` counts records that `keep`
    leaves out, `fields` those that lack a field which the config names.
    `bytes` and `done` are the bytes of all files, and of what was read of them, as they lie on disk.
    """

    def __init__(
        self,
        source: SourceSettings,
        name: str,
        on_error: str = "stop",
        note: Callable[[dict], None] | None = None,
        shard: tuple[int, int] | None = None,
    ):
        super().__init__(shard)
        self.source, self.name, self.on_error = source, name, on_error
        self.files, self.ignored, self.again = files.find(source.path, name, on_error)
        self.bytes = sum(file.bytes for file in self.files)
        self.done = self.filtered = self.skipped = 0
        self.first: dict | None = None
        self._left: list[SourceFile] = []
        self._begun: dict[SourceFile, int] = {}  # records before the file that is read
        self.fields, self.readings = NamedFields(source, name), Readings(digest=self.shard[0] == 0)
        self._note = note or (lambda facts: None)

    def __iter__(self) -> Iterator[Document]:
        for file in self.files:
            yield from self.read(file)

    def read(self, file: SourceFile) -> Generator[Document, None, None]:
        """The documents of one of the source's files."""
        start = self.done
        self._begun = {file: self.records}
        for line, record in self._records(file):
            mine = self.mine()
            self.records += 1
            if not mine:
                continue
            try:
                if isinstance(record, Malformed):
                    raise record
                document = self._document(file, line, record)
            except Malformed as error:
                if self.on_error == "stop":
                    raise
                self.skipped += 1
                self.first = self.first or error.facts
                self._note(error.facts)
                continue
            if document is None:
                self.filtered += 1
            else:
                yield from parts(document, self.source.cut)
        self.done = start + file.bytes

    def leave(self, file: SourceFile) -> None:
        """Go on to the next file, `file` not having been read to its end."""
        self.records = self._begun.get(file, self.records)
        self._left.append(file)

    def _number(self) -> int:
        """The last record's number. Records of files that were left are counted when it is asked for."""
        while self._left:
            nobody = Reader(self.source, self.name, "skip", shard=(-1, 1))
            passed = sum(1 for _ in nobody._records(self._left.pop()))
            self.records += passed
            self._begun = {file: records + passed for file, records in self._begun.items()}
        return self.records - 1

    def _records(self, file: SourceFile) -> Iterator[tuple[int, Any]]:
        """The records of a file with their lines: what is on them, `Malformed`, or None for another shard's."""
        if file.kind == "unreadable":
            yield 1, Malformed(file, 1, file.reason)
            return
        try:
            reading = self.readings.open(file.path)
        except OSError as error:
            yield 1, Malformed(file, 1, f"the file cannot be read ({error.strerror})")
            return
        read = {"jsonl": self._read_json_lines, "parquet": self._read_parquet, "txt": self._read_text}
        yield from read[file.kind](file, reading)
        reading.check()

    def _advance(self, count: int) -> None:
        self.done += count

    def _document(self, file: SourceFile, line: int, record: Any) -> Document | None:
        """A record's document, None if `keep` leaves it out."""
        if not isinstance(record, dict):
            raise Malformed(file, line, f"wanted a JSON object, found {kind(record)}; one a line is wanted")
        kept = True
        for field, values in self.source.keep.items():
            value = find(record, field)
            self.fields.count(f"keep.{field}", value, record)
            text = plain(value)
            if text in values:
                self.fields.found[field].add(text)
            else:
                kept = False
        if not kept:
            return None
        fields = self.source.fields
        text = find(record, fields.text)
        if text is MISSING:
            raise Malformed(file, line, f"no field {fields.text!r}, only {names(record)}")
        if not isinstance(text, str):
            raise Malformed(file, line, f"field {fields.text!r} is {kind(text)}, wanted text")
        if is_wide(text.count("\0"), len(text)):
            raise Malformed(file, line, f"field {fields.text!r} is full of null characters: wide text read as UTF-8")
        found = {what: self._name(what, record, file, line) for what in ("id", "group", "title")}
        found["id"] = found["id"] or f"{self.name}-{self._number()}"
        found["group"], found["title"] = found["group"] or found["id"], found["title"] or found["id"]
        try:
            check_characters(text)
            check_characters("".join(found.values()))
        except Damaged as error:
            raise Malformed(file, line, str(error)) from None
        date = self._date(record, file, line)
        for key, field in self.fields.named.items():
            self.fields.count(key, find(record, field), record)
        size = len(text.encode())
        return Document(found["id"], text, found["group"], found["title"], size, str(file.path), line, date=date)

    def _name(self, what: str, record: dict[str, Any], file: SourceFile, line: int) -> str:
        """A record's id, group or title, empty if it has none."""
        try:
            return name_of(record, getattr(self.source.fields, what))
        except Damaged as error:
            raise Malformed(file, line, str(error)) from None

    def _date(self, record: dict[str, Any], file: SourceFile, line: int) -> int | None:
        """A record's date, if the config names one and the record has it."""
        field = self.source.fields.date
        value = find(record, field) if field else MISSING
        try:
            return None if field is None or is_nothing(value) else last_second(value, field)
        except Damaged as error:
            raise Malformed(file, line, str(error)) from None

    def _read_json_lines(self, file: SourceFile, reading: Reading) -> Iterator[tuple[int, Any]]:
        return json_lines(file, reading, self._advance, self.mine)

    def _read_text(self, file: SourceFile, reading: Reading) -> Iterator[tuple[int, Any]]:
        """One document; its line ends become line feeds."""
        if not self.mine():
            yield 1, None
            return
        fields = self.source.fields
        try:
            data = b"".join(files.raw(file.path, reading)).removeprefix(BOM)
            check_beginning(data)
        except Damaged as error:
            yield 1, Malformed(file, 1, str(error))
            return
        try:
            text = data.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            yield line, Malformed(file, line, f"not valid UTF-8 (byte 0x{data[error.start]:02x})")
        else:
            yield 1, {fields.id: file.name, fields.title: file.name, fields.text: text}

    def _read_parquet(self, file: SourceFile, reading: Reading) -> Iterator[tuple[int, Any]]:
        start, fields = self.done, self.source.fields

        def advance(share: float) -> None:
            self.done = start + int(file.bytes * share)

        wanted = [fields.text, fields.id, fields.group, fields.title, *filter(None, [fields.date]), *self.source.keep]
        for row, record in rows(file.path, reading, fields.text, wanted, self.fields.known, advance):
            yield row, Malformed(file, row, str(record)) if isinstance(record, Damaged) else record


def json_lines(
    file: SourceFile,
    reading: Reading,
    advance: Callable[[int], None] = lambda count: None,
    mine: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[int, Any]]:
    """Number and value of each line that is not blank: `Malformed` for one that has none, None for one not `mine`.

    `advance` is told of each byte read.
    """
    number, empty = 0, True
    parts = files.lines(files.blocks(file.path, advance, reading))
    while True:
        number += 1
        try:
            line = next(parts).removeprefix(BOM if number == 1 else b"")
            if number == 1:
                check_beginning(line)
        except StopIteration:
            break
        except Damaged as error:
            yield number, Malformed(file, number, str(error))
            return
        if line.strip():
            record = _parsed(file, number, line) if mine() or empty else None
            yield number, record
            if empty and isinstance(record, Malformed) and (line[:1] == b"[" or line.strip() == b"{"):
                return  # a value of many lines, none of which is a record
            empty = False
    if empty:
        yield 1, Malformed(file, 1, "the file is empty")


def _parsed(file: SourceFile, number: int, line: bytes) -> Any:
    """The value on a line, or what is wrong with it."""
    try:
        return parse(line)
    except Damaged as error:
        hint = "; one JSON object a line is wanted" if number == 1 and line[:1] in b"[{" else ""
        return Malformed(file, number, f"{error}{hint}")


def lines_of(path: Path) -> Iterator[tuple[int, Any]]:
    """`json_lines` of a file that is no source's. Raises UserError for what is no such file."""
    try:
        state = os.stat(path)
        reason = files.odd(state.st_mode)
        if files.kind_of(path.name) == "parquet":
            reason = "is not JSON lines"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    if reason:
        raise UserError(f"{path}: {reason}. Give a file of JSON lines that exists, plain, .gz or .zst.")
    reading = Reading(path, digest=False)
    yield from json_lines(SourceFile(path, path.name, "jsonl", state.st_size), reading)
    reading.check()
