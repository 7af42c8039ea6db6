"""Corpora drawn at random, of every kind of input that went wrong for somebody, and how they lie on disk.

A corpus is drawn as a tree of `Folder`, `File`, `Link` and `Pipe` a source. What should come of it says
`tests.database.naive`, from the tree alone.
"""

import gzip
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard
from hypothesis import strategies as st

LINES = (".jsonl", ".json", ".ndjson", ".jsonl.gz", ".ndjson.zst")


@dataclass(eq=False)
class File:
    """A file. `items`: records, bad lines (bytes) and blank ones (None). `spoilt`: what is wrong with all of it."""

    suffix: str
    items: list[dict | bytes | None]
    spoilt: str = ""
    locked: bool = False


@dataclass(eq=False)
class Pipe:
    """A named pipe."""


@dataclass(eq=False)
class Folder:
    """A folder. Names of its folders begin with d, those of files with f, of links with l or, to folders, c."""

    children: dict[str, Any] = field(default_factory=dict)
    locked: bool = False


@dataclass(eq=False)
class Link:
    """A link: to a file or folder, to nothing (None), or to itself."""

    to: Any


@dataclass
class Source:
    """A source: what lies on disk, and what the config says of it. `listed`: its paths, as nodes of the tree."""

    name: str
    tree: Folder
    listed: list[Any]
    fields: dict[str, str]
    keep: dict[str, list[str]]
    train: bool
    database: bool


@dataclass
class Corpus:
    """What preprocessing is given."""

    sources: list[Source]
    split: dict[str, Any]
    seed: int
    on_error: str
    exclude: list[str]
    shards: int


# What can be drawn besides plain lines with id, group and title as text. A kind of corpus is a set of these.
KINDS = {
    "fields present, absent and null": {"absent"},
    "fields named in the config, nested ones too": {"absent", "named"},
    "misspelt fields": {"named", "misspelt"},
    "ids, groups and titles of every JSON type": {"types", "absent"},
    "equal ids and texts, in a source and between sources": {"equal"},
    "values to keep": {"keep", "types", "absent"},
    "folders in folders, hidden files, files of no kind": {"folders", "hidden"},
    "links to files and folders, in circles too": {"folders", "links"},
    "links to nothing and to themselves": {"folders", "links", "dangling"},
    "named pipes": {"folders", "pipes"},
    "files and folders that may not be read": {"folders", "links", "locked"},
    "paths named twice, and a file in a folder that is named": {"folders", "links", "listed"},
    ".json, .ndjson, .gz and .zst": {"formats"},
    ".parquet": {"parquet", "absent", "types"},
    ".txt": {"txt", "folders"},
    "lines that are no record": {"bad", "types"},
    "files that are not what their name says, cut off or empty": {"formats", "parquet", "txt", "spoilt"},
}
ANYTHING = "several of these together"
KINDS[ANYTHING] = set().union(*KINDS.values())

WORDS = re.findall(r"\S+", "the harbour of Norvik lies north of the mill, and Grüße aus Köln say so")
TEXTS = [" ".join(WORDS[number % 5 :] * (number % 4 + 1)) + f" {number}." for number in range(12)]
TEXTS += [" ".join(WORDS * 6), "x"]
BLANK = ["", "  \n\t"]
PLAIN = ["a", "b", "c", "2003"]
VALUES: list[Any] = [
    "a", "b", "2003", "true", "Ünïted", "", 2003, 7, -1, 2003.0, 0.5, -0.0, 7e3, True, False, None, float("nan"),
    10**20, float("inf"), ["a"], {"a": 1}, [],
]  # fmt: skip
BAD: list[Any] = [
    b'{"text": "a"', b'["a"]', b"5", b'{"text": "a", "text": "b"}', '{"text": "Grüße"}'.encode("latin-1"), None,
    {"text": None}, {"text": 5}, {"body": "a"}, {}, {"text": "a\ud800"}, {"text": "a", "id": "\udc00"},
]  # fmt: skip
PAGE = {"title": "a page", "country": "a", "meta": {"lang": "a"}}
SPOILT = ("array", "utf-16", "gzip", "empty", "cut")
COLUMNS = [
    ["a", "b", None, "2003"], [1, 2003, None, 7], [2003.0, None, 0.5, float("nan")], [True, False, None, True],
    [["a"], None, ["b"], None], [float("inf"), 1.0, 2.0, None],
]  # fmt: skip


def one_in(number: int) -> st.SearchStrategy[bool]:
    """True once in so many times."""
    return st.sampled_from([False] * (number - 1) + [True])


@st.composite
def records(draw, wanted: set[str], number: int) -> dict | bytes | None:
    """A line's record, a line that holds none, or a blank one."""
    if "bad" in wanted and draw(one_in(6)):
        return draw(st.sampled_from(BAD))
    record: dict[str, Any] = {"text": draw(st.sampled_from(BLANK if draw(one_in(8)) else TEXTS))}
    if "equal" not in wanted and record["text"].strip():
        record["text"] += f" Number {number}."
    for name in ("id", "group", "title", "country", "lang"):
        if "absent" in wanted and draw(one_in(3)):
            continue
        typed = "types" in wanted and draw(one_in(3))
        value = draw(st.sampled_from(VALUES if typed else PLAIN))
        if name == "id" and "equal" not in wanted and isinstance(value, str) and value:
            value = f"{value}-{number}"
        if name == "lang":
            record["meta"] = {"lang": value}
        else:
            record[name] = value
    return record


@st.composite
def tables(draw, wanted: set[str]) -> list[dict]:
    """Rows of a table: every column has values of one type."""
    count = draw(st.integers(0 if "spoilt" in wanted else 1, 4))
    columns = {"text": draw(st.lists(st.sampled_from([*TEXTS, None, ""]), min_size=count, max_size=count))}
    for name in ("id", "group", "country"):
        if draw(st.booleans()):
            columns[name] = draw(st.sampled_from(COLUMNS if "types" in wanted else COLUMNS[:1]))[:count]
    if "misspelt" in wanted and draw(one_in(10)):
        columns["body"] = columns.pop("text")
    return [{name: column[row] for name, column in columns.items()} for row in range(count)]


@st.composite
def files(draw, wanted: set[str], number: int) -> File:
    """A file, `number` of them before it in the corpus."""
    suffixes = [".jsonl", *(["parquet"] if "parquet" in wanted else []), *(["txt"] if "txt" in wanted else [])]
    suffixes += ["other"] if "hidden" in wanted else []
    suffixes += LINES[1:] if "formats" in wanted else []
    suffix = draw(st.sampled_from(suffixes))
    spoilt = draw(st.sampled_from(SPOILT)) if "spoilt" in wanted and draw(one_in(3)) else ""
    locked = "locked" in wanted and draw(one_in(4))
    if suffix == "parquet":
        return File(".parquet", draw(tables(wanted)), "cut" if spoilt else "", locked)
    if suffix == "txt":
        text = draw(st.sampled_from([*TEXTS, *BLANK]))
        return File(".txt", [{"text": text}], spoilt if spoilt in ("utf-16", "gzip") else "", locked)
    if suffix == "other":
        return File(draw(st.sampled_from([".md", ".csv", ".jsonl.xz", ""])), [b"of no kind"], "", locked)
    if spoilt == "cut" and not suffix.endswith(".gz"):
        spoilt = "empty"
    count = draw(st.integers(1, 8))
    items = [draw(records(wanted, 100 * number + each)) for each in range(count)]
    return File(suffix, items, spoilt, locked)


@st.composite
def trees(draw, wanted: set[str], first: int) -> tuple[Folder, list[Any]]:
    """A folder of a source, and everything in it with it."""
    top = Folder()
    folders = [top]
    for number in range(draw(st.integers(0, 3)) if "folders" in wanted else 0):
        hidden = "." if "hidden" in wanted and draw(one_in(4)) else ""
        made = Folder(locked="locked" in wanted and draw(one_in(4)))
        draw(st.sampled_from(folders)).children[f"{hidden}d{number}"] = made
        folders.append(made)
    made_files = []
    for number in range(draw(st.integers(1, 4 if "folders" in wanted else 2))):
        file = draw(files(wanted, first + number))
        hidden = "." if "hidden" in wanted and draw(one_in(4)) else ""
        draw(st.sampled_from(folders)).children[f"{hidden}f{number}{file.suffix}"] = file
        made_files.append(file)
    if not draw(one_in(10)):
        good = File(
            ".jsonl",
            [
                {"text": f"{text} Page {first + number}.", "group": f"g{number}"} | PAGE
                for number, text in enumerate(TEXTS[:6])
            ],
        )
        top.children["f9.jsonl"] = good
        made_files.append(good)
    for number in range(draw(st.integers(0, 3)) if "links" in wanted else 0):
        targets: list[Any] = [*made_files, *folders, *([None, "itself"] if "dangling" in wanted else [])]
        target = draw(st.sampled_from(targets))
        link = Link(target)
        suffix = target.suffix if isinstance(target, File) else ""
        if not isinstance(target, File | Folder):
            link.to = link if target == "itself" else None
            suffix = draw(st.sampled_from([".jsonl", ".txt", ""]))
        name = f"c{number}" if isinstance(target, Folder) else f"l{number}{suffix}"
        draw(st.sampled_from(folders)).children[name] = link
    for number in range(draw(st.integers(0, 2)) if "pipes" in wanted else 0):
        suffix = draw(st.sampled_from([".jsonl", ".txt", ".parquet", ".md", ".jsonl.gz"]))
        draw(st.sampled_from(folders)).children[f"p{number}{suffix}"] = Pipe()
    return top, reachable(top)


def reachable(top: Folder) -> list[Any]:
    """A folder and what is in it and may be looked at."""
    found: list[Any] = [top]
    for child in () if top.locked else top.children.values():
        found += reachable(child) if isinstance(child, Folder) else [child]
    return found


@st.composite
def sources(draw, wanted: set[str], name: str, first: int) -> Source:
    """A source of the name, its files numbered from `first` on."""
    tree, nodes = draw(trees(wanted, first))
    listed = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=3)) if "listed" in wanted else [tree]
    fields: dict[str, str] = {}
    if "named" in wanted:
        choices = {
            "group": ["group", "country", "meta.lang", "id"],
            "id": ["id", "title"],
            "title": ["title", "country"],
        }
        wrong = (
            {"group": ["contry"], "id": ["Id"], "title": ["name"]} if "misspelt" in wanted and draw(one_in(3)) else {}
        )
        for what in draw(st.lists(st.sampled_from(sorted(choices)), max_size=3, unique=True)):
            fields[what] = draw(st.sampled_from(choices[what] + wrong.get(what, [])))
        if "misspelt" in wanted and draw(one_in(10)):
            fields["text"] = draw(st.sampled_from(["body", "text"]))
    keep = {}
    if "keep" in wanted:
        names = ["meta.lang", "country", *(["contry"] if "misspelt" in wanted and draw(one_in(8)) else [])]
        for key in draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
            values = st.sampled_from(["a", "b", "c", "2003", "true", "0.5"])
            keep[key] = draw(st.lists(values, min_size=2, max_size=5, unique=True))
    train = draw(st.booleans()) if first else True
    return Source(name, tree, listed, fields, keep, train, draw(st.booleans()) if train else True)


@st.composite
def corpora(draw, kind: str) -> Corpus:
    """A corpus of a kind: one of `KINDS`."""
    wanted = KINDS[kind]
    if kind == ANYTHING:
        wanted = set(draw(st.lists(st.sampled_from(sorted(wanted)), min_size=3, max_size=6, unique=True)))
    names = ["a", "b", "c"][: draw(st.integers(1, 3))]
    return Corpus(
        [draw(sources(wanted, name, 10 * number)) for number, name in enumerate(names)],
        {
            "by": draw(st.sampled_from(["group", "document"])),
            "valid": draw(st.sampled_from([0.0, 0.1, 0.3])),
            "test": draw(st.sampled_from([0.0, 0.2, 0.3])),
        },
        draw(st.integers(0, 50)),
        draw(st.sampled_from(["skip", "skip", "skip", "stop"])),
        draw(st.lists(st.sampled_from(["document", "group", "group_of_any_source", "text"]), max_size=3)),
        draw(st.sampled_from([1, 1, 3])),
    )


def content(file: File) -> bytes:
    """The bytes of a file."""
    if file.suffix == ".parquet":
        if file.spoilt:
            return b"PAR1 and no more"
        sink = pyarrow.BufferOutputStream()
        names = list(file.items[0]) if file.items else ["text"]
        columns = {name: [row[name] for row in file.items] for name in names}
        text = {"text": pyarrow.array(columns["text"], pyarrow.string())} if "text" in columns else {}
        pyarrow.parquet.write_table(pyarrow.table({**columns, **text}), sink)
        return sink.getvalue().to_pybytes()
    if file.suffix == ".txt":
        plain = file.items[0]["text"].encode()
    elif file.spoilt == "array":
        plain = json.dumps([item for item in file.items if isinstance(item, dict)], indent=1).encode()
    else:
        lines = [
            item if isinstance(item, bytes) else b" " if item is None else json.dumps(item).encode()
            for item in file.items
        ]
        plain = b"".join(line + b"\n" for line in lines)
    if file.spoilt == "utf-16":
        plain = ("plain words " + plain.decode("latin-1")).encode("utf-16-le")
    if file.spoilt == "empty":
        plain = b""
    if file.spoilt == "gzip":
        plain = gzip.compress(plain)
    if file.suffix.endswith(".gz"):
        return gzip.compress(plain)[: -1 if file.spoilt == "cut" else None]
    return zstandard.compress(plain) if file.suffix.endswith(".zst") else plain


def write(source: Source, folder: Path) -> dict[Any, Path]:
    """Write a source's tree into a folder that is not there yet. Where each of its nodes lies."""
    places: dict[Any, Path] = {source.tree: folder}
    folder.mkdir(mode=0o755)
    waiting, links, locked = [source.tree], [], []
    while waiting:
        parent = waiting.pop()
        for name, node in parent.children.items():
            path = places[node] = places[parent] / name
            match node:
                case Folder():
                    path.mkdir(mode=0o755)
                    waiting.append(node)
                case File():
                    path.write_bytes(content(node))
                case Pipe():
                    os.mkfifo(path)
                case Link():
                    links.append(node)
            if getattr(node, "locked", False):
                locked.append(path)
    for link in links:
        to = places[link].name if link.to is link else f"nowhere-{places[link].name}"
        if link.to is not None and link.to is not link:
            to = os.path.relpath(places[link.to], places[link].parent)
        places[link].symlink_to(to)
    for path in locked:
        path.chmod(0)
    return places
