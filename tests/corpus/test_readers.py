"""Readers: every kind of file and folder, in order, with the names and places of what was read."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from retro.base.stage import UserError
from retro.corpus.readers import Reader
from retro.corpus.settings import SourceSettings

RECORDS = [
    {"id": "a", "text": "first", "group": "x", "title": "A"},
    {"id": "b", "text": "zweiter: ä 中", "group": "y"},
    {"text": "third"},
]


def lines(records, end="\n") -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + end for record in records).encode()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(path, **settings) -> list:
    paths = [str(item) for item in path] if isinstance(path, list) else str(path)
    return list(Reader(SourceSettings(path=paths, **settings), "source"))


def texts(path, **settings) -> list[str]:
    return [document.text for document in read(path, **settings)]


PACKED = {
    "a.jsonl": lambda data: data,
    "a.json": lambda data: data,
    "a.ndjson": lambda data: data,
    "A.JSONL": lambda data: data,
    "a.jsonl.gz": gzip.compress,
    "a.json.zst": zstandard.ZstdCompressor().compress,
    "members.jsonl.gz": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]) + bytes(100),
    "frames.jsonl.zst": lambda data: b"".join(map(zstandard.compress, (data[:40], data[40:]))),
}


@pytest.mark.parametrize("name", PACKED)
def test_json_lines_are_read_however_packed(tmp_path, name):
    found = read(write(tmp_path / name, PACKED[name](lines(RECORDS))))
    assert [(d.id, d.text, d.group, d.title, d.line) for d in found] == [
        ("a", "first", "x", "A", 1),
        ("b", "zweiter: ä 中", "y", "b", 2),
        ("source-2", "third", "source-2", "source-2", 3),
    ]
    assert [d.bytes for d in found] == [len(record["text"].encode()) for record in RECORDS]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("tail", [b"", b"\n", b"\n \r\n\n"])
def test_byte_order_marks_line_ends_and_blank_lines_change_nothing(tmp_path, end, mark, tail):
    data = mark + lines(RECORDS[:1], end) + end.encode() + lines(RECORDS[1:], end).rstrip() + tail
    found = read(write(tmp_path / "a.jsonl", data))
    assert [(d.text, d.line) for d in found] == [("first", 1), ("zweiter: ä 中", 3), ("third", 4)]
    assert [d.id for d in found] == ["a", "b", "source-2"]


def test_only_a_line_feed_ends_a_line(tmp_path):
    text = "a\u2028b\u2029c\x85d\x0be"
    assert texts(write(tmp_path / "a.jsonl", lines([{"text": text}] * 2))) == [text, text]


def test_lines_longer_than_a_block_are_whole(tmp_path):
    long = ["ä" * 100_000, "b", "中" * 150_000, ""]
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(lines([{"text": text} for text in long])))
    assert texts(path) == long


def test_numbers_become_text(tmp_path):
    record = {"id": 7, "group": 1999, "title": 2.5, "text": "t"}
    (document,) = read(write(tmp_path / "a.jsonl", lines([record])))
    assert (document.id, document.group, document.title) == ("7", "1999", "2.5")


@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_empty_names_take_the_default(tmp_path, nothing):
    record = {"id": nothing, "group": nothing, "title": nothing, "text": "t"}
    (document,) = read(write(tmp_path / "a.jsonl", lines([record])))
    assert (document.id, document.group, document.title) == ("source-0", "source-0", "source-0")


def test_fields_may_have_other_names(tmp_path):
    record = {"name": "n", "body": "b", "year": 1999, "head": "h", "text": 5}
    fields = {"id": "name", "text": "body", "group": "year", "title": "head"}
    (document,) = read(write(tmp_path / "a.jsonl", lines([record])), fields=fields)
    assert (document.id, document.text, document.group, document.title) == ("n", "b", "1999", "h")


def test_keep_filters_and_counts_and_moves_no_number(tmp_path):
    records = [{"text": str(number), "year": number, "ok": number % 2 == 0} for number in range(5)]
    path = write(tmp_path / "a.jsonl", lines([*records, {"text": "no year"}]))
    reader = Reader(SourceSettings(path=str(path), keep={"year": ["2", "3", "4"], "ok": ["true"]}), "source")
    assert [(d.text, d.id) for d in reader] == [("2", "source-2"), ("4", "source-4")]
    assert reader.filtered == 4


def test_parquet_is_read_in_batches(tmp_path):
    table = pyarrow.table(
        {
            "id": list(range(700)),
            "text": [f"text ä {number}" for number in range(700)],
            "group": pyarrow.array(["g"] * 700).dictionary_encode(),
            "year": [number % 7 for number in range(700)],
            "other": [[number] for number in range(700)],
        }
    )
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=300)
    found = read(path)
    assert [(d.id, d.text, d.group, d.line) for d in found] == [
        (str(number), f"text ä {number}", "g", number + 1) for number in range(700)
    ]
    assert [d.id for d in read(path, keep={"year": ["3"]})] == [str(n) for n in range(700) if n % 7 == 3]


def test_a_text_file_is_a_document(tmp_path):
    path = write(tmp_path / "note.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n\xc3\xa4")
    (document,) = read(path)
    assert (document.id, document.title, document.text) == ("note.txt", "note.txt", "one\ntwo\rthree\nä")


PARAGRAPH = "Fish live in water and birds in the air. " * 4


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("\n\n".join([PARAGRAPH] * 20), "\n\n"),
        ("\n".join([PARAGRAPH] * 20), "\n"),
        (PARAGRAPH * 20, " "),
        ("ö" * 3000, "ö"),
    ],
    ids=["blank lines", "lines", "words", "no place to cut"],
)
def test_a_long_text_is_cut_into_documents_of_one_group(tmp_path, text, ends):
    write(tmp_path / "book.txt", text.encode())
    found = read(tmp_path / "book.txt", cut=600)
    assert "".join(part.text for part in found) == text
    assert all(300 <= len(part.text) <= 600 and part.text.endswith(ends) for part in found[:-1])
    assert [part.id for part in found] == [f"book.txt#{number}" for number in range(1, len(found) + 1)]
    assert {part.group for part in found} == {"book.txt"} and found[1].title == "book.txt, part 2"
    assert all(part.bytes == len(part.text.encode()) for part in found)


def test_a_text_that_is_short_enough_stays_as_it_is(tmp_path):
    write(tmp_path / "page.txt", b"x" * 600)
    assert read(tmp_path / "page.txt", cut=600) == read(tmp_path / "page.txt")


def test_tokens_are_not_cut():
    with pytest.raises(ValueError, match="cut cuts text; tokens of type megatron"):
        SourceSettings(type="megatron", path="x", cut=600)


def test_a_folder_is_read_in_sorted_order_without_hidden_files(tmp_path):
    for name in ("b/2.txt", "b/10.txt", "a.txt", "ä.txt", "Z.txt", ".hidden.txt", ".git/x.txt", "b/.y.txt"):
        write(tmp_path / name, name.encode())
    write(tmp_path / "c.jsonl", lines(RECORDS))
    write(tmp_path / "README.md", b"no document")
    reader = Reader(SourceSettings(path=str(tmp_path)), "source")
    assert [d.id for d in reader] == ["Z.txt", "a.txt", "b/10.txt", "b/2.txt", "a", "b", "source-6", "ä.txt"]
    assert [path.name for path in reader.ignored] == ["README.md"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "corpus/a.txt", b"a")
    write(tmp_path / "elsewhere/b.txt", b"b")
    os.symlink(tmp_path / "elsewhere", tmp_path / "corpus/linked")
    os.symlink(tmp_path / "corpus", tmp_path / "corpus/linked/back")
    assert texts(tmp_path / "corpus") == ["a", "b"]


def test_a_list_of_paths_is_read_in_its_order(tmp_path):
    write(tmp_path / "folder/x.txt", b"x")
    b = write(tmp_path / "b.jsonl", lines([{"text": "b"}]))
    a = write(tmp_path / "a.jsonl", lines([{"text": "a"}]))
    found = read([b, tmp_path / "folder", a])
    assert [(d.text, d.id) for d in found] == [("b", "source-0"), ("x", "x.txt"), ("a", "source-2")]


def test_progress_ends_at_the_size_on_disk(tmp_path):
    write(tmp_path / "a.jsonl.gz", gzip.compress(lines(RECORDS)))
    write(tmp_path / "b.txt", b"text")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "c.parquet")
    reader = Reader(SourceSettings(path=str(tmp_path)), "source")
    list(reader)
    assert reader.done == reader.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    records = [{"id": str(number), "text": f"{number} " * 500} for number in range(8_000)]  # some 20 MB
    path = tmp_path / name
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=500)
    else:
        write(path, gzip.compress(lines(records), 1) if name.endswith("gz") else lines(records))
    del records
    tracemalloc.start()
    count = sum(1 for _ in Reader(SourceSettings(path=str(path)), "source"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000
    assert peak < 12_000_000


def test_a_missing_path_is_named_with_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"source source: no such file or folder: no/where.*{tmp_path}"):
        read("no/where")


PATTERNS = {
    "*.jsonl": ["b"],
    "**/*.jsonl": ["a/x", "a/c/y", "b"],
    "a/**/*.jsonl": ["a/x", "a/c/y"],
    "[ab]/*.jsonl": ["a/x"],
    "?": ["a/x", "a/c/y"],
    "**/c": ["a/c/y"],
    "a/*/y.*": ["a/c/y"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_names_what_matches_in_the_order_of_names(tmp_path, pattern):
    for name in ("a/x", "a/c/y", "b", ".hidden/z", "a/.z"):
        write(tmp_path / f"{name}.jsonl", lines([{"text": name}]))
    write(tmp_path / "notes.md", b"of no kind")
    assert sorted(texts(tmp_path / pattern)) == sorted(PATTERNS[pattern])
    assert texts(tmp_path / pattern) == [d.text for d in sorted(read(tmp_path / pattern), key=lambda d: d.file)]


@pytest.mark.parametrize("pattern", ["*.json", "*/b.jsonl", "*.md", "[.]hidden/*"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path, pattern):
    for name in ("b.jsonl", ".hidden/z.jsonl", "notes.md"):
        write(tmp_path / name, lines(RECORDS))
    with pytest.raises(UserError, match="matches no file to read"):
        read(tmp_path / pattern)


def test_a_path_that_exists_is_no_pattern(tmp_path):
    for name in ("a[1].jsonl", "a1.jsonl"):
        write(tmp_path / name, lines([{"text": name}]))
    assert texts(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_texts_of_a_pattern_are_called_by_their_place_below_its_folder(tmp_path):
    for name in ("a/x.txt", "b/x.txt"):
        write(tmp_path / name, name.encode())
    assert [document.id for document in read(tmp_path / "*/x.txt")] == ["a/x.txt", "b/x.txt"]


def test_a_folder_without_anything_to_read_is_refused(tmp_path):
    write(tmp_path / "a.md", b"text")
    with pytest.raises(UserError, match=r"holds no file to read\. Wanted: JSON lines"):
        read(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv is of no kind that can be read"):
        read(write(tmp_path / "a.csv", b"a,b"))


TWICE = {
    "listed twice": lambda folder: [folder / "c" / "a.jsonl", folder / "c" / "a.jsonl"],
    "a folder and a file in it": lambda folder: [folder / "c", folder / "c" / "a.jsonl"],
    "a file and its folder": lambda folder: [folder / "c" / "a.jsonl", folder / "c"],
    "spelt otherwise": lambda folder: [folder / "c" / "a.jsonl", folder / "c" / ".." / "c" / "a.jsonl"],
    "a link to the file": lambda folder: [folder / "c", folder / "link.jsonl"],
    "a link to the folder": lambda folder: [folder / "c", folder / "linked"],
}


@pytest.mark.parametrize("case", TWICE)
def test_a_file_that_several_paths_lead_to_is_read_once(tmp_path, case):
    write(tmp_path / "c" / "a.jsonl", lines(RECORDS))
    os.symlink(tmp_path / "c" / "a.jsonl", tmp_path / "link.jsonl")
    os.symlink(tmp_path / "c", tmp_path / "linked")
    paths = [str(path) for path in TWICE[case](tmp_path)]
    reader = Reader(SourceSettings(path=paths), "source")
    assert [document.id for document in reader] == ["a", "b", "source-2"]
    assert len(reader.again) == 1


def test_a_link_beside_its_file_is_read_once(tmp_path):
    write(tmp_path / "b.jsonl", lines(RECORDS))
    os.symlink("b.jsonl", tmp_path / "a.jsonl")
    reader = Reader(SourceSettings(path=str(tmp_path)), "source")
    assert len(list(reader)) == 3
    assert [path.name for path in reader.again] == ["b.jsonl"]
