"""Documents of a source, one after another: validated, counted, with the file and line they come from."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from retro.corpus import files
from retro.corpus.files import Damaged, SourceFile
from retro.corpus.settings import SourceSettings
from retro.errors import UserError

RECORDS = 1024  # consecutive records, a block: what one shard of a source reads before the next one's turn
BOM = b"\xef\xbb\xbf"
ROWS = 256  # rows of a parquet file in memory at once
TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number",
         float: "a number", type(None): "null", bytes: "bytes"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """A document; `bytes` is the length of its text in UTF-8, `line` the line (or row) of `file`, from 1.

    `ids`: its tokens, int64, where they are given instead of text.
    """

    id: str
    text: str
    group: str
    title: str
    bytes: int
    file: str
    line: int
    ids: np.ndarray | None = None


class Malformed(UserError):
    """A record, or the rest of a file, that cannot be used."""

    def __init__(self, file: SourceFile, line: int, reason: str):
        place = {"parquet": "row", "megatron": "document"}.get(file.kind, "line")
        super().__init__(
            f"{file.path}, {place} {line}: {reason}. Correct it, or set dataset.on_error to skip: such "
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
    told to `note` as {file, line, reason} (`"skip"`). `filtered` counts records that `keep` leaves out.
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
        self.files, self.ignored = files.find(source.path, name)
        self.bytes = sum(file.bytes for file in self.files)
        self.done = self.filtered = self.skipped = 0
        self._note = note or (lambda facts: None)

    def __iter__(self) -> Iterator[Document]:
        for file in self.files:
            read = {"jsonl": self._read_json_lines, "parquet": self._read_parquet, "txt": self._read_text}
            start = self.done
            for line, record in read[file.kind](file):
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
                    self._note(error.facts)
                    continue
                if document is None:
                    self.filtered += 1
                else:
                    yield document
            self.done = start + file.bytes

    def _advance(self, count: int) -> None:
        self.done += count

    def _document(self, file: SourceFile, line: int, record: Any) -> Document | None:
        """A record's document, None if `keep` leaves it out."""
        if not isinstance(record, dict):
            raise Malformed(file, line, f"wanted a JSON object, found {_kind(record)}")
        for field, values in self.source.keep.items():
            if _plain(record.get(field)) not in values:
                return None
        fields = self.source.fields
        if fields.text not in record:
            raise Malformed(file, line, f"no field {fields.text!r}, only {_names(record)}")
        text = record[fields.text]
        if not isinstance(text, str):
            raise Malformed(file, line, f"field {fields.text!r} is {_kind(text)}, wanted text")
        number = self.records - 1
        found: dict[str, str] = {}
        for what, field, default in (
            ("id", fields.id, f"{self.name}-{number}"),
            ("group", fields.group, None),
            ("title", fields.title, None),
        ):
            value = record.get(field)
            plain = _plain(value)
            if plain is None and value is not None:
                raise Malformed(file, line, f"field {field!r} is {_kind(value)}, wanted text or a number")
            found[what] = plain or (found["id"] if default is None else default)
        try:
            size = len(text.encode())
            "".join(found.values()).encode()
        except UnicodeEncodeError as error:
            code = f"\\u{ord(error.object[error.start]):04x}"
            reason = f"holds {code}, half of a character (a lone surrogate)"
            raise Malformed(file, line, reason) from None
        return Document(found["id"], text, found["group"], found["title"], size, str(file.path), line)

    def _read_json_lines(self, file: SourceFile) -> Iterator[tuple[int, Any]]:
        number, empty = 0, True
        lines = files.lines(files.blocks(file.path, self._advance))
        while True:
            number += 1
            try:
                line = next(lines)
            except StopIteration:
                break
            except Damaged as error:
                yield number, Malformed(file, number, str(error))
                return
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                empty = False
                yield number, _parse(file, number, line) if self.mine() else None
        if empty:
            yield 1, Malformed(file, 1, "the file is empty")

    def _read_text(self, file: SourceFile) -> Iterator[tuple[int, Any]]:
        """One document; its line ends become line feeds."""
        if not self.mine():
            yield 1, None
            return
        fields = self.source.fields
        data = file.path.read_bytes().removeprefix(BOM)
        try:
            text = data.decode().replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            yield line, Malformed(file, line, f"not valid UTF-8 (byte 0x{data[error.start]:02x})")
        else:
            yield 1, {fields.id: file.name, fields.title: file.name, fields.text: text}

    def _read_parquet(self, file: SourceFile) -> Iterator[tuple[int, Any]]:
        import pyarrow
        import pyarrow.parquet

        fields, start, row = self.source.fields, self.done, 0
        try:
            with pyarrow.parquet.ParquetFile(file.path, pre_buffer=False) as table:
                names = set(table.schema_arrow.names)
                if fields.text not in names:
                    yield 1, Malformed(file, 1, f"no column {fields.text!r}, only {_names(names)}")
                    return
                if table.metadata.num_rows == 0:
                    yield 1, Malformed(file, 1, "the file is empty")
                    return
                wanted = {*fields.facts().values(), *self.source.keep} & names
                batches = table.iter_batches(batch_size=ROWS, columns=sorted(wanted), use_threads=False)
                for batch in batches:
                    for values in zip(*(_cells(column) for column in batch.columns), strict=True):
                        row += 1
                        record = dict(zip(batch.schema.names, values, strict=True))
                        wrong = next((value for value in values if isinstance(value, UnicodeError)), None)
                        yield row, record if wrong is None else Malformed(file, row, "not valid UTF-8")
                    self.done = start + file.bytes * row // table.metadata.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            yield row + 1, Malformed(file, row + 1, f"broken .parquet data ({reason})")


def _parse(file: SourceFile, number: int, line: bytes) -> Any:
    """The value on a line of JSON, or what is wrong with it."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Malformed(file, number, f"not valid UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start + 1})")
    except json.JSONDecodeError as error:
        hint = "; one JSON object a line is wanted" if number == 1 and line[:1] in b"[{" else ""
        return Malformed(file, number, f"not valid JSON ({error.msg} at character {error.pos + 1}{hint})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        return Malformed(file, number, f"not JSON that can be read ({error})")


def _cells(column: Any) -> list[Any]:
    """Python values of a parquet column; a cell that is not valid UTF-8 is a `UnicodeError`."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error


def _plain(value: Any) -> str | None:
    """Text of text, a number or a truth value, as JSON writes it; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    return None


def _kind(value: Any) -> str:
    return TYPES.get(type(value), f"of type {type(value).__name__}")


def _names(names: Any) -> str:
    names = sorted(map(repr, names))
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") if names else "none"
