"""Folders and files that cannot be read, or are not what their names say: named, or listed in skipped.jsonl."""

import bz2
import errno
import gzip
import json
import lzma
import os
import pickle
import shutil
import socket
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.config.schema import files_of
from retro.corpus import megatron, tokenize, train_tokenizer
from retro.corpus.readers import Malformed, Reader
from retro.corpus.settings import SourceSettings
from tests.corpus.test_corpus_stages import TINY, call, tokenize_settings, train_settings

NOBODY = 65534


def reader(path, on_error="stop", note=None) -> Reader:
    return Reader(SourceSettings(path=str(path)), "source", on_error, note)


def skipping(path) -> tuple[list[str], list[dict]]:
    """Texts read, and what was skipped."""
    notes: list[dict] = []
    return [document.text for document in reader(path, "skip", notes.append)], notes


def unprivileged(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises in a process that permission bits bind, which they do not for root."""
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            found = work()
        except BaseException as error:
            found = UserError(str(error)) if isinstance(error, UserError) else RuntimeError(repr(error))
        with open(outlet, "wb") as file:
            pickle.dump(found, file)
        os._exit(0)
    os.close(outlet)
    with open(inlet, "rb") as file:
        found = pickle.load(file)
    os.waitpid(child, 0)
    if isinstance(found, Exception):
        raise found
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may read, with three folders of three documents each."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    for name in ("a", "b", "c"):
        (top / name).mkdir()
        for number in range(3):
            (top / name / f"{number}.txt").write_text(f"{name}{number}")
    yield top
    for path in top.rglob("*"):
        if not path.is_symlink() and path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(top)


ALL = [f"{name}{number}" for name in "abc" for number in range(3)]


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o311], ids=oct)
def test_a_folder_that_may_not_be_read_is_refused_by_its_name(folder, mode):
    (folder / "b").chmod(mode)
    with pytest.raises(UserError, match=rf"{folder}/b.*cannot be read \(Permission denied\).*dataset\.on_error"):
        unprivileged(lambda: [each.text for each in reader(folder)])


def test_a_folder_that_may_not_be_read_is_skipped_and_listed(folder):
    (folder / "b").chmod(0)
    texts, notes = unprivileged(lambda: skipping(folder))
    assert texts == [text for text in ALL if not text.startswith("b")]
    assert [(note["file"], note["reason"]) for note in notes] == [(f"{folder}/b", "cannot be read (Permission denied)")]


@pytest.mark.parametrize("name", ["1.txt", "x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_a_file_that_may_not_be_read_is_refused_or_skipped_by_its_name(folder, name):
    path = folder / "b" / name
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(UserError, match=rf"{path}.*Permission denied"):
        unprivileged(lambda: [each.text for each in reader(folder)])
    texts, notes = unprivileged(lambda: skipping(folder))
    assert texts == [text for text in ALL if not (name == "1.txt" and text == "b1")]
    assert [note["file"] for note in notes] == [str(path)]


def test_the_first_path_may_be_the_one_that_may_not_be_looked_at(folder):
    folder.chmod(0)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        unprivileged(lambda: reader(folder / "a"))
    folder.chmod(0o755)


@pytest.mark.parametrize("path", ["pairs", "pairs/*"])
def test_a_folder_of_token_stores_that_may_not_be_listed_is_refused(folder, path):
    (folder / "pairs").mkdir(mode=0)
    with pytest.raises(UserError, match=r"pairs: cannot be listed \(Permission denied\)"):
        unprivileged(lambda: megatron.find(str(folder / path), "source"))


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
def test_a_listing_that_fails_in_the_middle_is_refused(folder, monkeypatch, code):
    """What no test can bring about for real: a file server that forgets a folder while it is listed."""
    scandir = os.scandir

    class Failing:
        def __init__(self, path):
            self.entries, self.broken = scandir(path), Path(path).name == "b"

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            yield next(self.entries)
            if self.broken:
                raise OSError(code, os.strerror(code))
            yield from self.entries

    monkeypatch.setattr(os, "scandir", Failing)
    with pytest.raises(UserError, match=f"{folder}/b: cannot be read \\({os.strerror(code)}\\)"):
        reader(folder)
    assert skipping(folder)[0] == [text for text in ALL if not text.startswith("b")]


@pytest.mark.parametrize("name", ["m.txt", "m.jsonl", "m.jsonl.gz"])
def test_a_read_that_fails_is_told_by_name(folder, name):
    (folder / name).symlink_to("/proc/self/mem")  # whose first byte cannot be read
    with pytest.raises(Malformed, match=rf"{folder}/{name}, line 1: the file cannot be read \(Input/output error\)"):
        list(reader(folder))
    texts, notes = skipping(folder)
    assert texts == ALL
    assert [(note["file"], note["line"]) for note in notes] == [(f"{folder}/{name}", 1)]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def plug(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


ODD = {
    # what: (how it is made, what is said of it)
    "named pipe": ("p.txt", pipe, "is a named pipe, not a file"),
    "named pipe of lines": ("p.jsonl.gz", pipe, "is a named pipe, not a file"),
    "socket": ("s.jsonl", plug, "is a socket, not a file"),
    "device": ("d.txt", link("/dev/zero"), "is a device, not a file"),
    "link to nothing": ("l.txt", link("nowhere.txt"), r"is a link to nothing \(nowhere.txt\)"),
    "link to no folder": ("part-2", link("../elsewhere"), r"is a link to nothing \(../elsewhere\)"),
    "link to itself": ("l.jsonl", link("l.jsonl"), r"cannot be read \(Too many levels of symbolic links\)"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_file_is_refused_or_skipped_by_its_name(folder, case):
    name, make, reason = ODD[case]
    make(folder / name)
    with pytest.raises(UserError, match=f"source source: {folder}/{name}: {reason}"):
        reader(folder)
    texts, notes = skipping(folder)
    assert texts == ALL
    assert [note["file"] for note in notes] == [f"{folder}/{name}"]


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_file_is_refused_where_it_is_named_itself(folder, case):
    name, make, _ = ODD[case]
    make(folder / name)
    with pytest.raises(UserError, match=f"{folder}/{name}"):
        reader(folder / name)


def test_snakemake_is_not_told_of_what_is_skipped(folder):
    pipe(folder / "p.txt")
    (folder / "l.txt").symlink_to("nowhere")
    found = files_of("source", SourceSettings(path=str(folder)), "skip")
    assert all(stat.S_ISREG(os.stat(path).st_mode) for path in found)
    assert len(found) == len(ALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    manifest = tmp_path_factory.mktemp("dataset") / "tokenizer" / "manifest.json"
    with pytest.MonkeyPatch.context() as patch:
        call(train_tokenizer, patch, train_settings(TINY), manifest)
    return manifest


def test_what_is_skipped_is_listed_beside_the_tokens(folder, trained, tmp_path, monkeypatch):
    pipe(folder / "p.txt")
    (folder / "m.txt").symlink_to("/proc/self/mem")
    output = tmp_path / "tokens" / "manifest.json"
    call(tokenize, monkeypatch, tokenize_settings(folder, on_error="skip"), output, "--tokenizer", trained)
    manifest = read_manifest(output)
    listed = [json.loads(line) for line in manifest.file("skipped.jsonl").read_text().splitlines()]
    assert [Path(note["file"]).name for note in listed] == ["m.txt", "p.txt"]
    assert (manifest.counts["documents"], manifest.counts["skipped"]) == (9, 2)
    assert {Path(name).name for name in manifest.facts["inputs"]} == {"0.txt", "1.txt", "2.txt", "manifest.json"}


def test_the_tokenizer_learns_from_what_can_be_read(folder, tmp_path, monkeypatch):
    pipe(folder / "p.txt")
    settings = train_settings(folder, {"valid": 0, "test": 0}) | {"on_error": "skip"}
    call(train_tokenizer, monkeypatch, settings, tmp_path / "tokenizer" / "manifest.json")
    assert read_manifest(tmp_path / "tokenizer" / "manifest.json").counts["train_documents"] == 9


TEXT = "The harbour of Norvik lies north of the mill, the council says; Grüße aus Köln.\n" * 3
LINES = "".join(json.dumps({"text": f"{TEXT} {number}"}) + "\n" for number in range(30))


def parquet_bytes() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * 9}), sink)
    return sink.getvalue().to_pybytes()


def zip_bytes(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "z", "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return (folder / "z").read_bytes()


WIDE = {
    "UTF-16-LE": TEXT.encode("utf-16-le"),
    "UTF-16-BE": TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32-le"),
}


@pytest.mark.parametrize("case", WIDE)
def test_wide_text_without_a_byte_order_mark_is_refused(tmp_path, case):
    (tmp_path / "a.txt").write_bytes(WIDE[case].replace(b"\xfc", b"u"))
    (tmp_path / "b.txt").write_text("good")
    with pytest.raises(Malformed, match=r"a\.txt, line 1: (full of null characters|not valid UTF-8).*"):
        list(reader(tmp_path))
    assert skipping(tmp_path)[0] == ["good"]


def test_wide_text_inside_of_records_is_refused(tmp_path):
    wide = "plain words of a report".encode("utf-16-le").decode()
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": wide}) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": [wide]}), tmp_path / "b.parquet")
    _, notes = skipping(tmp_path)
    assert [(Path(note["file"]).name, "full of null characters" in note["reason"]) for note in notes] == [
        ("a.jsonl", True),
        ("b.parquet", True),
    ]


def test_a_few_null_characters_are_text(tmp_path):
    (tmp_path / "a.txt").write_text("name\0value\0" + "and more words" * 3)
    assert next(iter(reader(tmp_path))).text.count("\0") == 2


DISGUISED = {
    "gzip": (lambda folder: gzip.compress(LINES.encode()), r"this is gzip data\. Name the file \.jsonl\.gz"),
    "Zstandard": (lambda folder: zstandard.compress(LINES.encode()), "this is Zstandard data"),
    "xz": (lambda folder: lzma.compress(LINES.encode()), "this is xz data"),
    "bzip2": (lambda folder: bz2.compress(LINES.encode()), "this is bzip2 data"),
    "zip": (zip_bytes, "this is a zip archive"),
    "Parquet": (lambda folder: parquet_bytes(), r"this is Parquet data\. Name the file \.parquet"),
    "UTF-16": (lambda folder: LINES.encode("utf-16"), "this is UTF-16 text"),
    "UTF-16 without a mark": (lambda folder: LINES.encode("utf-16-le"), "this is UTF-16 or UTF-32 text"),
    "array": (lambda folder: json.dumps([{"text": "a"}, {"text": "b"}]).encode(), "wanted a JSON object, found a list"),
    "array of lines": (lambda folder: b'[{"text": "a"},\n{"text": "b"}]\n', "one JSON object a line is wanted"),
    "indented": (lambda folder: json.dumps({"text": TEXT}, indent=1).encode(), "one JSON object a line is wanted"),
}


@pytest.mark.parametrize("case", DISGUISED)
def test_a_file_that_is_not_json_lines_is_one_mistake_not_many(tmp_path, case):
    make, reason = DISGUISED[case]
    data = make(tmp_path)
    for left in tmp_path.iterdir():
        left.unlink()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n')
    with pytest.raises(Malformed, match=rf"a\.jsonl, line 1: .*{reason}"):
        list(reader(tmp_path))
    texts, notes = skipping(tmp_path)
    assert texts == ["good"]
    assert len(notes) == 1


@pytest.mark.parametrize("case", DISGUISED)
def test_the_tokenizer_says_how_many_were_skipped_and_why(tmp_path, monkeypatch, case):
    make, reason = DISGUISED[case]
    (tmp_path / "a.jsonl").write_bytes(make(tmp_path))
    settings = train_settings(tmp_path / "a.jsonl") | {"on_error": "skip"}
    wanted = r"of 1 records .* 1 malformed, 0 left out by keep, 0 empty.*The first malformed: .*a\.jsonl, line 1: .*"
    with pytest.raises(UserError, match=wanted + reason):
        call(train_tokenizer, monkeypatch, settings, tmp_path / "tokenizer" / "manifest.json")


def test_the_tokenizer_says_how_many_were_held_out_and_filtered(tmp_path, monkeypatch):
    records = [{"text": "t", "group": "g", "year": 1}, {"text": "t", "year": 2}, {"text": " ", "year": 2}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = train_settings(path, {"valid": 0.5, "test": 0.49})
    settings["sources"]["s"]["keep"] = {"year": ["2"]}
    with pytest.raises(UserError, match=r"of 3 records .* 0 malformed, 1 left out by keep, 0 empty, 2 held out"):
        call(train_tokenizer, monkeypatch, settings, tmp_path / "tokenizer" / "manifest.json")


@pytest.mark.parametrize("shards", [1, 2])
def test_tokenizing_says_the_first_reason_too(tmp_path, trained, monkeypatch, shards):
    (tmp_path / "a.jsonl").write_text("oops\nthis, too\n")
    settings, output = tokenize_settings(tmp_path / "a.jsonl", on_error="skip"), tmp_path / "tokens" / "manifest.json"
    notes = [output.parent / "shards" / f"{number}-of-2.json" for number in range(shards if shards > 1 else 0)]
    for number, note in enumerate(notes):
        call(tokenize, monkeypatch, settings, note, "--tokenizer", trained, "--shard", f"{number}-of-2")
    more = ["--shards", *notes] if notes else []
    with pytest.raises(UserError, match=r"2 malformed\. The first: .*a\.jsonl, line 1: not valid JSON"):
        call(tokenize, monkeypatch, settings, output, "--tokenizer", trained, *more)
