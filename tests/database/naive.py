"""What should come of a corpus, worked out in the plainest way from what the documentation says.

Nothing of the package is used here, so that a mistake of its is not repeated.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.database.corpora import Corpus, File, Folder, Link, Pipe, Source


class Bad(Exception):
    """A record, or a file, that cannot be used."""


@dataclass
class Stored:
    """A document, with the name of its source and its place there."""

    source: str
    number: int
    id: str
    group: str
    title: str
    text: str
    split: str


@dataclass
class Outcome:
    """What becomes of a source. `refused`: words one of which the message must have; none where it goes through."""

    documents: list[Stored] = field(default_factory=list)
    empty: int = 0
    filtered: int = 0
    bad: list[Path] = field(default_factory=list)  # files of what is skipped, in order
    absent: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def says(value: Any) -> str:
    """A value as text, empty where it says nothing."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, list | dict) or math.isinf(value):
        raise Bad
    return str(int(value)) if value == int(value) else str(value)


def look_up(record: dict, name: str) -> Any:
    """A field's value; a dot leads into an object. None where there is none."""
    if name in record:
        return record[name]
    first, _, rest = name.partition(".")
    inside = record.get(first)
    return look_up(inside, rest) if rest and isinstance(inside, dict) else None


def split_of(corpus: Corpus, source: Source, id: str, group: str) -> str:
    """A hash of the group (or id) between 0 and 1: test from below, valid from above."""
    if not source.train:
        return "book"
    key = (group if corpus.split["by"] == "group" else id).encode()
    digest = hashlib.blake2b(key, digest_size=8, key=b"split %d" % corpus.seed).digest()
    place = Fraction(int.from_bytes(digest, "little") // 2**11, 2**53)
    if place < Fraction(corpus.split["test"]):
        return "test"
    return "valid" if place >= Fraction(1 - corpus.split["valid"]) else "train"


def parents(tree: Folder) -> dict[Any, Folder]:
    """The folder of everything in a tree."""
    found: dict[Any, Folder] = {}
    for child in tree.children.values():
        found[child] = tree
        if isinstance(child, Folder):
            found |= parents(child)
    return found


def walk(node: Any, name: str, seen: tuple, above: dict[Any, Folder]) -> Iterator[tuple[str, Any, str]]:
    """Name below where the walk began, what is there, and why it cannot be read, if it cannot."""
    found = node.to if isinstance(node, Link) else node
    if isinstance(node, Link) and (found is None or found is node):
        yield name, node, "link"
        return
    inside = above.get(found)
    while isinstance(node, Link) and inside is not None:
        if inside.locked:
            yield name, found, "locked"
            return
        inside = above.get(inside)
    if not isinstance(found, Folder):
        yield name, found, "pipe" if isinstance(found, Pipe) else ""
    elif found not in seen:
        if found.locked:
            yield name, found, "locked"
            return
        for child, inner in found.children.items():
            if not child.startswith("."):
                yield from walk(inner, f"{name}/{child}" if name else child, (*seen, found), above)


def suffix_of(name: str) -> str:
    """What a file is read as: .jsonl, .parquet, .txt, or nothing."""
    name = name.removesuffix(".gz").removesuffix(".zst")
    for kind, suffixes in {
        ".jsonl": (".jsonl", ".json", ".ndjson"),
        ".parquet": (".parquet",),
        ".txt": (".txt",),
    }.items():
        if name.endswith(suffixes):
            return kind
    return ""


def items(file: File, name: str, source: Source) -> list[dict | None]:
    """The records of a file, None for what is none."""
    if file.locked:
        return [None]
    fields = {"text": "text", "id": "id", "title": "title"} | source.fields
    if file.suffix == ".txt":
        return [
            None if file.spoilt else {fields["id"]: name, fields["title"]: name, fields["text"]: file.items[0]["text"]}
        ]
    if file.spoilt and file.spoilt != "cut":
        return [None]
    if file.suffix == ".parquet" and (file.spoilt or not file.items or fields["text"] not in file.items[0]):
        return [None]
    found = [item if isinstance(item, dict) else None for item in file.items if item is not None]
    found += [None] if file.spoilt == "cut" else []
    return found or [None]


def outcome(corpus: Corpus, source: Source, places: dict[Any, Path]) -> Outcome:
    """What becomes of a source whose tree was written to `places`."""
    found = Outcome()
    above, seen, number = parents(source.tree), set(), -1
    fields = {"text": "text", "id": "id", "group": "group", "title": "title"} | source.fields
    records: list[tuple[dict | None, Path]] = []
    for top in source.listed:
        entries = sorted(walk(top, "", (), above), key=lambda entry: entry[0])
        known = 0
        for name, node, reason in entries:
            path = places[top] / name
            kind = suffix_of(path.name)
            if not kind and reason not in ("link", "locked"):
                continue
            known += 1
            if node in seen:
                continue
            seen.add(node)
            if reason:
                records.append((None, path))
            else:
                records += [(item, path) for item in items(node, name or path.name, source)]
        if not known:
            found.refused.append(str(places[top]))
    named = {name: source.fields[name] for name in ("id", "group", "title") if name in source.fields}
    lacking = dict.fromkeys([*named.values(), *source.keep], 0)
    objects = made = 0
    lacking_keep, lacking_named = dict.fromkeys(source.keep, 0), dict.fromkeys(named, 0)
    for record, path in records:
        number += 1
        if record is None:
            found.bad.append(path)
            continue
        objects += 1
        kept = True
        for name, values in source.keep.items():
            value = look_up(record, name)
            try:
                text = says(value)
            except Bad:
                text = "not text"
            lacking_keep[name] += text == ""
            kept = kept and text in values
        if not kept:
            found.filtered += 1
            continue
        text = look_up(record, fields["text"])
        try:
            if not isinstance(text, str):
                raise Bad
            id, group, title = (says(look_up(record, fields[name])) for name in ("id", "group", "title"))
            (text + id + group + title).encode()
        except (Bad, UnicodeEncodeError):
            found.bad.append(path)
            continue
        made += 1
        for name in named:
            lacking_named[name] += says(look_up(record, fields[name])) == ""
        id = id or f"{source.name}-{number}"
        group, title = group or id, title or id
        if not text.strip():
            found.empty += 1
            continue
        split = split_of(corpus, source, id, group)
        found.documents.append(Stored(source.name, len(found.documents), id, group, title, text, split))
    for name, count in lacking_named.items():
        lacking[named[name]] = count
        if made and count == made:
            found.refused.append(repr(named[name]))
    for name, count in lacking_keep.items():
        lacking[name] = count
        if objects and count == objects:
            found.refused.append(repr(name))
    found.absent = lacking
    if found.bad and corpus.on_error == "stop":
        found.refused += [str(path) for path in found.bad]
    if not found.documents:
        found.refused.append("no documents left")
    return found


def chunks(documents: list[Stored], encode: Callable[[str], list[int]], length: int) -> list[tuple[Stored, tuple]]:
    """Every chunk of every document in order: the document, and its tokens."""
    found = []
    for document in documents:
        tokens = encode(document.text)
        found += [(document, tuple(tokens[at : at + length])) for at in range(0, len(tokens), length)]
    return found


def excluded(one: tuple[Stored, tuple], other: tuple[Stored, tuple], rules: list[str]) -> bool:
    """Whether a chunk may not be the neighbour of another."""
    (here, tokens), (there, others) = one, other
    same = here.source == there.source
    return (
        (same and here.number == there.number)
        or ("group" in rules and same and here.group == there.group)
        or ("group_of_any_source" in rules and here.group == there.group)
        or ("text" in rules and tokens == others)
    )


def in_database(source: Source, document: Stored) -> bool:
    """Whether a document's chunks are in the database."""
    return document.split == "book" or (document.split == "train" and source.database)
