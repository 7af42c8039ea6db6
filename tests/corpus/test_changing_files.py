"""A file that changes while it is read is refused by name; a manifest tells of what was read."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.corpus import tokenize, train_tokenizer
from retro.corpus.readers import Reader
from retro.corpus.readings import Readings
from retro.corpus.settings import SourceSettings
from tests.corpus.test_corpus_stages import TINY, call, tokenize_settings, train_settings

RECORDS = [{"text": f"the page of number {number:04} " + "words of it " * 40} for number in range(400)]


def lines(word: str = "page") -> bytes:
    return "".join(json.dumps(each).replace("page", word) + "\n" for each in RECORDS).encode()


def fill(path: Path, word: str = "page") -> Path:
    """Write the records, as the name says."""
    if path.suffix == ".parquet":
        texts = [each["text"].replace("page", word) for each in RECORDS]
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines(word), mtime=0))
    else:
        path.write_bytes(lines(word))
    return path


def appended(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b'{"text": "one more"}\n')


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replaced(path: Path) -> None:
    other = fill(path.with_name(f"other{path.suffix}"), "leaf")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


def overwritten(path: Path) -> None:
    """In place, of the same size, and with the time of the last change put back."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data = path.read_bytes().replace(b"page", b"leaf")
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=times)


CHANGES = [appended, cut, replaced, overwritten]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_refused_by_name(tmp_path, name, change):
    path = fill(tmp_path / name)
    (tmp_path / "b.txt").write_text("the next")
    reader = Reader(SourceSettings(path=str(tmp_path)), "source")
    documents = iter(reader)
    next(documents)
    change(path)
    with pytest.raises(UserError, match=rf"{path}.*(changed while it was read|broken \.parquet data)"):
        list(documents)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    manifest = tmp_path_factory.mktemp("dataset") / "tokenizer" / "manifest.json"
    with pytest.MonkeyPatch.context() as patch:
        call(train_tokenizer, patch, train_settings(TINY), manifest)
    return manifest


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_changes_after_it_was_read_is_not_vouched_for(tmp_path, trained, monkeypatch, name):
    path, output = fill(tmp_path / name), tmp_path / "tokens" / "manifest.json"
    read = Reader.read

    def then_changed(self, file):
        yield from read(self, file)
        fill(path, "leaf")

    monkeypatch.setattr(Reader, "read", then_changed)
    with pytest.raises(UserError, match=f"{path}: changed while it was read"):
        call(tokenize, monkeypatch, tokenize_settings(path), output, "--tokenizer", trained)
    assert not output.exists()


def test_shards_that_read_different_files_are_refused(tmp_path, trained, monkeypatch):
    path, output = fill(tmp_path / "a.jsonl"), tmp_path / "tokens" / "manifest.json"
    notes = [output.parent / "shards" / f"{number}-of-2.json" for number in range(2)]
    for number, note in enumerate(notes):
        call(tokenize, monkeypatch, tokenize_settings(path), note, "--tokenizer", trained, "--shard", f"{number}-of-2")
        fill(path, "leaf")
    with pytest.raises(UserError, match=f"{path}: changed while it was read"):
        call(tokenize, monkeypatch, tokenize_settings(path), output, "--tokenizer", trained, "--shards", *notes)


def test_the_tokenizer_does_not_vouch_for_a_file_that_changed(tmp_path, monkeypatch):
    path, output = fill(tmp_path / "a.jsonl"), tmp_path / "tokenizer" / "manifest.json"
    read = Reader.read

    def then_changed(self, file):
        yield from read(self, file)
        overwritten(path)

    monkeypatch.setattr(Reader, "read", then_changed)
    with pytest.raises(UserError, match=f"{path}: changed while it was read"):
        call(train_tokenizer, monkeypatch, train_settings(path), output)
    assert not output.exists()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
@pytest.mark.parametrize("shards", [1, 2])
def test_the_manifest_holds_the_sha256_of_what_was_read(tmp_path, trained, monkeypatch, name, shards):
    path, output = fill(tmp_path / name), tmp_path / "tokens" / "manifest.json"
    notes = [output.parent / "shards" / f"{number}-of-2.json" for number in range(shards if shards > 1 else 0)]
    for number, note in enumerate(notes):
        call(tokenize, monkeypatch, tokenize_settings(path), note, "--tokenizer", trained, "--shard", f"{number}-of-2")
    more = ["--shards", *notes] if notes else []
    call(tokenize, monkeypatch, tokenize_settings(path), output, "--tokenizer", trained, *more)
    inputs = read_manifest(output).facts["inputs"]
    assert inputs[f"../{name}"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_is_touched_but_the_same_is_read(tmp_path):
    path = fill(tmp_path / "a.jsonl")
    reader = Reader(SourceSettings(path=str(path)), "source")
    documents = iter(reader)
    next(documents)
    path.touch()
    os.link(path, tmp_path / "another name")
    list(documents)
    assert reader.readings.hashes()[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_goes_away_is_told(tmp_path):
    readings = Readings()
    readings.open(fill(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"a\.jsonl.*(No such file|now cannot be)"):
        readings.hashes()


def test_a_file_that_one_shard_could_not_read_is_hashed_by_none(tmp_path):
    """A shard opens files of which another has the documents: it takes no hash, and does not notice."""
    path, other = fill(tmp_path / "a.jsonl"), fill(tmp_path / "b.jsonl")
    owner, bystander, joined = Readings(), Readings(digest=False), Readings()
    owner.open(path).failed = True
    for each in (path, other):
        bystander.open(each)
    for facts in (bystander.facts(), owner.facts()):
        joined.add(facts)
    path.unlink()
    assert list(joined.hashes()) == [str(other)]
