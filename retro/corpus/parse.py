"""A line of JSON as a value; and what a file really holds, whatever its name says. `Damaged` says what is wrong."""

import json
from typing import Any

from retro.corpus.files import Damaged

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
