"""Records of a source, whatever their file: rows of .parquet, lines of JSON, and the values of their fields.

Values are found by name, and become the text that they stand for. A field that the config names must be in the records.
What a file really holds, whatever its name says: `Damaged` tells what is wrong.
"""

import difflib
import json
import math
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from retro.base.stage import UserError
from retro.corpus.files import Damaged
from retro.corpus.readings import Reading
from retro.corpus.settings import SourceSettings

TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number",
         float: "a number", type(None): "null", bytes: "bytes"}  # fmt: skip
MISSING = object()  # what a record has that lacks a field
WHOLE = 2.0**63  # floats below it that are whole are written as integers


def find(record: dict[str, Any], field: str) -> Any:
    """A field's value, or `MISSING`. A name with dots that no field has leads into objects: `meta.lang`."""
    if field in record:
        return record[field]
    at: Any = record
    for part in field.split("."):
        if not isinstance(at, dict) or part not in at:
            return MISSING
        at = at[part]
    return at


def is_nothing(value: Any) -> bool:
    """Whether a record says nothing: no field, null, empty text, or NaN, which pandas writes for a missing value."""
    return value is MISSING or value is None or value == "" or (isinstance(value, float | Decimal) and value != value)


def plain(value: Any) -> str | None:
    """Text of text, a number or a truth value, as JSON writes it; None for anything else.

    A whole float is an integer: pandas writes 2003 as 2003.0 where a column has missing values.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(int(value)) if value.is_integer() and abs(value) < WHOLE else repr(value)
    if isinstance(value, Decimal) and value.is_finite():
        whole = value == value.to_integral_value()
        return str(int(value)) if whole else f"{value.normalize():f}"
    return None


def kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"a number that is not finite ({value})"
    return TYPES.get(type(value), f"of type {type(value).__name__}")


def names(given: Any) -> str:
    """Names in quotes, sorted, the first dozen of them."""
    quoted = sorted(map(repr, given))
    return ", ".join(quoted[:12]) + (", …" if len(quoted) > 12 else "") if quoted else "none"


def name_of(record: dict[str, Any], field: str) -> str:
    """Text of a field that may be absent, and may be a number; empty where there is none."""
    value = find(record, field)
    text = plain(value)
    if text is None and not is_nothing(value):
        raise Damaged(f"field {field!r} is {kind(value)}, wanted text or a number")
    return text or ""


def text_of(record: dict[str, Any], field: str) -> str:
    """The text of a field that a record must have. Blank text is none."""
    value = find(record, field)
    if value is MISSING:
        raise Damaged(f"no field {field!r}, only {names(record)}")
    return checked(value, f"field {field!r}")


def texts_of(record: dict[str, Any], field: str) -> tuple[str, ...]:
    """The texts of a field that is a list; none where it is absent."""
    value = find(record, field)
    if is_nothing(value):
        return ()
    if not isinstance(value, list):
        raise Damaged(f"field {field!r} is {kind(value)}, wanted a list of texts")
    return tuple(checked(each, f"field {field!r}, number {number},") for number, each in enumerate(value, start=1))


def checked(value: Any, what: str) -> str:
    """A value that must be text, with something on it that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Damaged(f"{what} is {kind(value)}, wanted text")
    if is_wide(value.count("\0"), len(value)):
        raise Damaged(f"{what} is full of null characters: wide text read as UTF-8")
    if not value.strip():
        raise Damaged(f"{what} is blank, wanted text")
    return value


def check_characters(text: str) -> None:
    """Refuse text that UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        raise Damaged(f"holds {code}, half of a character (a lone surrogate)") from None


EARLY = 1024  # records after which a field that none of them has is told of
THEN = {
    "id": "its number is its id",
    "group": "each is a group of its own",
    "title": "its id is its title",
    "date": "it has no date",
}  # what a document is given that lacks a field


class NamedFields:
    """Counts the records that lack a field which `fields` or `keep` of a source names.

    Fields that the config does not name may be absent: `id` is then `<source>-<number>`, group and title the id; there
    is no date.
    """

    def __init__(self, source: SourceSettings, name: str):
        self.name = name
        given = source.fields.model_fields_set
        fields = {what: getattr(source.fields, what) for what in THEN if what in given}
        self.named = {f"fields.{what}": field for what, field in fields.items() if field}
        self.wanted = {f"keep.{field}": field for field in source.keep}
        self.keep = source.keep
        keys = [*self.named, *self.wanted]
        self.examined, self.absent = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
        self.found: dict[str, set[str]] = {field: set() for field in source.keep}  # values of `keep` that records have
        self.known: list[str] = []  # fields of the first record

    def count(self, key: str, value: Any, record: dict[str, Any]) -> None:
        """Take note of what a record has for the field that the config names in `key`, such as fields.group."""
        self.known = self.known or sorted(record)
        self.examined[key] += 1
        self.absent[key] += is_nothing(value)
        if self.absent[key] == self.examined[key] == EARLY:
            field = {**self.named, **self.wanted}[key]
            print(f"warning: source {self.name}: none of the first {EARLY:,} records has {field!r} ({key})",
                  file=sys.stderr, flush=True)  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """What was counted, ready for JSON: what a shard tells the job that joins them."""
        found = {field: sorted(values) for field, values in self.found.items()}
        return {"examined": self.examined, "absent": self.absent, "found": found, "known": self.known}

    def add(self, facts: dict[str, Any]) -> None:
        """Add what another shard counted."""
        self.known = self.known or facts["known"]
        for key in self.examined:
            self.examined[key] += facts["examined"][key]
            self.absent[key] += facts["absent"][key]
        for field, values in facts["found"].items():
            self.found[field] |= set(values)

    def check(self) -> None:
        """Refuse a field that is named and in no record."""
        for key, field in {**self.named, **self.wanted}.items():
            if self.examined[key] and self.absent[key] == self.examined[key]:
                lower = {known.lower(): known for known in self.known}
                near = difflib.get_close_matches(field.lower(), lower, n=1)
                meant = f" Did you mean {lower[near[0]]!r}?" if near else ""
                raise UserError(
                    f"source {self.name}: {key} names the field {field!r}, which none of its "
                    f"{self.examined[key]} records has; the first has {names(self.known)}.{meant} Correct "
                    f"dataset.sources.{self.name}.{key}, or leave it out."
                )

    def counts(self) -> dict[str, dict[str, int]]:
        """For the manifest: records without each field that is named; nothing where none is."""
        fields = {**self.named, **self.wanted}
        return {"absent": {field: self.absent[key] for key, field in fields.items()}} if fields else {}

    def remarks(self) -> list[str]:
        """A line for each field that some records lack, and for values of `keep` that no record has."""
        told = []
        for key, field in {**self.wanted, **self.named}.items():
            if self.absent[key]:
                then = THEN.get(key.removeprefix("fields."), "they are left out")
                told.append(f"{field!r} ({key}) absent in {self.absent[key]} of {self.examined[key]} records: {then}")
        for field, values in self.keep.items():
            without = [value for value in values if value not in self.found[field]]
            if without:
                told.append(f"no record has {names(without)} in {field!r} (keep.{field})")
        return told


# What files begin with that are not the text that their name says: what it is, and what is to be done.
BEGINNINGS = {
    b"\x1f\x8b": ("gzip data", "Name the file .jsonl.gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "Name the file .jsonl.zst"),
    b"\xff\xfe": ("UTF-16 text", "Convert the file to UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "Convert the file to UTF-8"),
    b"PAR1": ("Parquet data", "Name the file .parquet"),
    b"\xfd7zXZ": ("xz data", "Decompress the file"),
    b"BZh": ("bzip2 data", "Decompress the file"),
    b"PK\x03\x04": ("a zip archive", "Unpack the file"),
}
HEAD = 4096  # bytes looked at


class Repeated(ValueError):
    """A key that stands twice in a JSON object: the first value would be lost."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The hook that makes a JSON object of its pairs. Raises `Repeated`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Repeated(next(key for key in keys if keys.count(key) > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=unique)


def parse(line: bytes) -> Any:
    """The value on a line of JSON."""
    try:
        return DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise Damaged(f"not valid UTF-8 (byte 0x{line[error.start]:02x} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise Damaged(f"not valid JSON ({error.msg} at character {error.pos + 1})") from None
    except Repeated as error:
        raise Damaged(f"the key {error} stands there twice; one value would be lost") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise Damaged(f"not JSON that can be read ({error})") from None


def check_beginning(head: bytes) -> None:
    """Refuse a file that begins with `head` if it is not text in UTF-8."""
    for start, (what, way_out) in BEGINNINGS.items():
        if head.startswith(start):
            byte = next((byte for byte in start if byte > 0x7F), start[0])
            raise Damaged(f"not valid UTF-8 (byte 0x{byte:02x}): this is {what}. {way_out}")
    if is_wide(head[:HEAD].count(0), len(head[:HEAD])):
        raise Damaged("full of null characters: this is UTF-16 or UTF-32 text. Convert the file to UTF-8")


def is_wide(nulls: int, size: int) -> bool:
    """Whether text of so many bytes or characters, so many of them null, was written two or four bytes a character."""
    return size >= 16 and 4 * nulls >= size


ROWS = 256  # in memory at once


def rows(
    path: Path, reading: Reading, text: str, fields: list[str], known: list[str], advance: Callable[[float], None]
) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and record of each row; a row that cannot be read, and a table that can be read no further, is
    `Damaged`.

    `fields` are read, `text` is the one that a table must have. `known` is given the names of the columns, `advance`
    the share of the rows that were read.
    """
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as table:
            have, count = table.schema_arrow.names, table.metadata.num_rows
            known[:] = known or sorted(have)
            wanted = {field if field in have else field.split(".")[0] for field in fields} & set(have)
            _check(text, have, wanted, count)
            for batch in table.iter_batches(batch_size=ROWS, columns=sorted(wanted), use_threads=False):
                for values in zip(*(_cells(column) for column in batch.columns), strict=True):
                    row += 1
                    wrong = any(isinstance(value, UnicodeError) for value in values)
                    record = dict(zip(batch.schema.names, values, strict=True))
                    yield row, Damaged("not valid UTF-8") if wrong else record
                advance(row / count)
    except Damaged as error:
        yield 1, error
    except (pyarrow.ArrowException, OSError) as error:
        reading.failed = getattr(error, "errno", None) is not None
        yield row + 1, Damaged(f"broken .parquet data ({' '.join(str(error).split())})")


def _check(text: str, have: list[str], wanted: set[str], count: int) -> None:
    """Refuse a table that lacks the text, or has a column twice, or no row."""
    if text not in have and text.split(".")[0] not in have:
        raise Damaged(f"no column {text!r}, only {names(set(have))}")
    twice = sorted(column for column in wanted if have.count(column) > 1)
    if twice:
        raise Damaged(f"the column {twice[0]!r} stands there twice; one value would be lost")
    if not count:
        raise Damaged("the file is empty")


def _cells(column: Any) -> list[Any]:
    """Python values of a column; a cell that is not valid UTF-8 is a `UnicodeError`. Times are UTC, in microseconds."""
    import pyarrow

    if pyarrow.types.is_timestamp(column.type):
        column = column.cast(pyarrow.timestamp("us", column.type.tz and "UTC"), safe=False)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error
