"""The two stages, run as they are in the pipeline: what they write, that it repeats, and how they fail."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.names import DOCUMENT, SPLITS
from retro.base.stage import UserError, run
from retro.corpus import tokenize, train_tokenizer
from retro.corpus.documents import TEST, TRAIN, key_hash, split_of
from retro.corpus.mmididx import TokenStore
from retro.corpus.settings import SplitSettings
from retro.corpus.tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny.jsonl"
SPLIT = {"by": "group", "valid": 0.1, "test": 0.1}


def call(stage, monkeypatch, settings, output, *more) -> None:
    """Run a stage's main in this process."""
    arguments = ["--settings", json.dumps(settings), "--output", str(output), *map(str, more)]
    monkeypatch.setattr(sys, "argv", [stage.STAGE, *arguments])
    stage.main()


def train_settings(corpus, split=SPLIT, seed=1, **tokenizer) -> dict:
    sources = {"s": {"path": str(corpus)}}
    return {"tokenizer": {"vocab_size": 500, **tokenizer}, "sources": sources, "split": split, "seed": seed}


def tokenize_settings(path, name="s", on_error="stop", **source) -> dict:
    return {
        "source": {"path": str(path), **source},
        "name": name,
        "split": SPLIT,
        "seed": 1,
        "on_error": on_error,
    }


def write(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The manifest of a tokenizer of 500 tokens."""
    manifest = tmp_path_factory.mktemp("dataset") / "tokenizer" / "manifest.json"
    with pytest.MonkeyPatch.context() as patch:
        call(train_tokenizer, patch, train_settings(TINY), manifest)
    return manifest


@pytest.fixture
def tokens(trained, tmp_path, monkeypatch):
    """Tokenize a source; returns the manifest."""

    def go(settings, threads=1):
        output = tmp_path / f"tokens-{settings['name']}" / "manifest.json"
        call(tokenize, monkeypatch, settings, output, "--tokenizer", trained, "--threads", threads)
        return read_manifest(output, "tokens")

    return go


def test_the_tokenizers_manifest_says_what_it_is(trained):
    manifest = read_manifest(trained, "tokenizer")
    manifest.check()
    tokenizer = Tokenizer.load(trained)
    facts = {"vocab_size": 500, "eod_id": tokenizer.eod_id, "pad_id": tokenizer.pad_id}
    assert facts.items() <= manifest.counts.items()
    assert manifest.facts["versions"]["tokenizers"]
    assert [Path(name).name for name in manifest.facts["inputs"]] == ["tiny.jsonl"]


@pytest.mark.slow
def test_two_processes_with_other_threads_train_the_same_bytes(trained, tmp_path):
    found = []
    for threads in ("1", "2"):
        output = tmp_path / threads / "tokenizer" / "manifest.json"
        command = [sys.executable, "-m", "retro.corpus.train_tokenizer", "--threads", threads]
        command += ["--settings", json.dumps(train_settings(TINY)), "--output", str(output)]
        environment = {**os.environ, "PYTHONHASHSEED": threads}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        found.append((output.parent / "tokenizer.json").read_bytes())
    assert found[0] == found[1] == (trained.parent / "tokenizer.json").read_bytes()


def test_the_tokenizer_sees_the_train_split_alone(tmp_path, monkeypatch):
    """Letters that occur outside of the train split only make no token of their own."""
    records = [{"text": "abab " * 50, "group": "kept"}, {"text": "xyxy " * 50, "group": "held"}]
    split = SplitSettings(**SPLIT)
    held = next(
        seed
        for seed in range(1000)
        if [split_of(group, "", True, split, seed) for group in ("kept", "held")] == [TRAIN, TEST]
    )
    book = write(tmp_path / "book.jsonl", [{"text": "qzqz " * 50, "group": "kept"}])
    settings = train_settings(write(tmp_path / "a.jsonl", records), seed=held)
    settings["sources"]["book"] = {"path": str(book), "train": False}
    call(train_tokenizer, monkeypatch, settings, tmp_path / "tokenizer" / "manifest.json")
    vocabulary = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "abab" in vocabulary
    assert not any("xy" in token or "qz" in token for token in vocabulary)


def test_text_too_small_for_the_vocabulary_is_told(tmp_path, monkeypatch, capsys):
    path = write(tmp_path / "a.jsonl", [{"text": "aaaa"}])
    none = {"by": "group", "valid": 0, "test": 0}
    output = tmp_path / "tokenizer" / "manifest.json"
    call(train_tokenizer, monkeypatch, train_settings(path, none), output)
    assert read_manifest(output).counts["vocab_size"] < 300
    assert "500 wanted: the text holds no more" in capsys.readouterr().err


def test_training_text_is_limited(tmp_path, monkeypatch):
    output = tmp_path / "tokenizer" / "manifest.json"
    call(train_tokenizer, monkeypatch, train_settings(TINY, train_bytes=10_001), output)
    assert 9_998 <= read_manifest(output).counts["train_bytes"] <= 10_001


def test_no_text_to_train_on_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [{"text": "a", "group": "g"}])
    settings = train_settings(path, {"by": "group", "valid": 0.5, "test": 0.49})
    with pytest.raises(UserError, match="no text to train the tokenizer on"):
        call(train_tokenizer, monkeypatch, settings, tmp_path / "tokenizer" / "manifest.json")


@pytest.mark.parametrize("kind", ["tokenizer.json", "gpt2", "sentencepiece"])
def test_given_files_are_copied_and_recorded(
    request, kind, tmp_path, monkeypatch, bpe_folder, gpt2_folder, sentencepiece_folder
):
    paths = {
        "tokenizer.json": {"path": bpe_folder / "tokenizer.json"},
        "gpt2": {"path": gpt2_folder / "vocab.json", "merges": gpt2_folder / "merges.txt"},
        "sentencepiece": {"path": sentencepiece_folder / "tokenizer.model"},
    }[kind]
    given = {name: str(path) for name, path in paths.items()}
    output = tmp_path / "tokenizer" / "manifest.json"
    call(train_tokenizer, monkeypatch, train_settings(TINY, type=kind, vocab_size=None, **given), output)
    manifest = read_manifest(output, "tokenizer")
    assert set(manifest.facts["files"]) == {path.name for path in paths.values()}
    for path in paths.values():
        assert manifest.file(path.name).read_bytes() == path.read_bytes()
    assert Tokenizer.load(output).vocab_size == manifest.counts["vocab_size"]


def test_a_given_file_that_is_missing_is_named(tmp_path, monkeypatch):
    settings = train_settings(TINY, type="tokenizer.json", path="no/tokenizer.json")
    with pytest.raises(UserError, match=r"no such file: no/tokenizer\.json \(working folder"):
        call(train_tokenizer, monkeypatch, settings, tmp_path / "tokenizer" / "manifest.json")


def test_tokens_and_tables_hold_every_document(tokens, trained):
    manifest = tokens(tokenize_settings(TINY))
    manifest.check()
    records = [json.loads(line) for line in TINY.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if record["text"].strip()]
    store, tokenizer = TokenStore(manifest.folder / "tokens"), Tokenizer.load(trained)
    table = manifest.array("documents.npy")
    assert store.tokens.dtype == np.uint16
    assert table.dtype == DOCUMENT
    listed = (manifest.folder / "documents.jsonl").read_bytes()
    for number, record in enumerate(records):
        ids, row = store[number], table[number]
        assert ids[-1] == tokenizer.eod_id
        assert tokenizer.eod_id not in ids[:-1]
        assert tokenizer.decode(ids) == record["text"]
        assert row["bytes"] == len(record["text"].encode()) == tokenizer.token_bytes[ids].sum()
        assert row["group"] == key_hash(record["group"])
        facts = {"id": record["id"], "group": record["group"], "title": record["id"]}
        assert json.loads(listed[row["offset"] :].split(b"\n")[0]) == facts
    assert len(store) == len(table) == len(records) == 49


def test_counts_add_up(tokens):
    counts = tokens(tokenize_settings(TINY)).counts
    assert (counts["documents"], counts["empty"], counts["filtered"], counts["skipped"]) == (49, 2, 0, 0)
    assert set(counts["by_split"]) == set(SPLITS)
    for what in ("documents", "tokens", "bytes"):
        assert sum(split[what] for split in counts["by_split"].values()) == counts[what]


def test_an_open_book_is_split_off_whole(tokens):
    counts = tokens(tokenize_settings(TINY, train=False)).counts
    assert counts["by_split"]["book"]["documents"] == counts["documents"] == 49


def test_threads_change_nothing(tokens, monkeypatch):
    one = tokens(tokenize_settings(TINY, "s")).facts
    monkeypatch.setattr(tokenize, "BATCH_BYTES", 5_000)
    other = tokens(tokenize_settings(TINY, "s"), threads=2).facts
    assert one == other


def test_malformed_records_are_listed(tokens, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": 5}\n{"text": "two"}\noops\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
        tokens(tokenize_settings(path))
    manifest = tokens(tokenize_settings(path, on_error="skip"))
    listed = [json.loads(line) for line in (manifest.folder / "skipped.jsonl").read_text().splitlines()]
    assert [(note["file"], note["line"]) for note in listed] == [(str(path), 2), (str(path), 4)]
    assert (manifest.counts["documents"], manifest.counts["skipped"]) == (2, 2)


def test_a_failed_stage_leaves_no_manifest_and_no_litter(tokens, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "one"}])
    folder = tokens(tokenize_settings(path)).folder
    path.write_text('{"text": "one"}\n{"text": 5}\n', encoding="utf-8")
    with pytest.raises(UserError):
        tokens(tokenize_settings(path))
    assert not (folder / "manifest.json").exists()
    assert not list(folder.glob(".*"))


def test_what_a_killed_run_left_is_cleared_away(tokens, tmp_path):
    folder = tmp_path / "tokens-s"
    folder.mkdir()
    for name in (".tokens.bin.tmp", ".documents.jsonl.123.tmp"):
        (folder / name).write_bytes(b"half")
    tokens(tokenize_settings(TINY))
    assert not list(folder.glob(".*"))


def test_repeated_ids_are_kept_and_counted(tokens, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": "x", "text": "one"}, {"id": "x", "text": "two"}, {"text": "three"}])
    counts = tokens(tokenize_settings(path)).counts
    assert (counts["documents"], counts["duplicate_ids"]) == (3, 1)


@pytest.mark.parametrize(
    ("records", "settings", "reason"),
    [
        ([{"text": " \n\t"}, {"text": ""}], {}, "2 empty"),
        ([{"text": "a", "year": 1}], {"keep": {"year": ["2"]}}, "1 left out by keep"),
    ],
)
def test_nothing_left_is_told(tokens, tmp_path, records, settings, reason):
    with pytest.raises(UserError, match=f"no documents left of {len(records)} records.*{reason}"):
        tokens(tokenize_settings(write(tmp_path / "a.jsonl", records), **settings))


def test_a_huge_document_is_one_document(tokens, trained, tmp_path):
    text = "The quick brown fox jumps over the lazy dog.\n" * 60_000  # 2.7 MB, cut and joined inside
    manifest = tokens(tokenize_settings(write(tmp_path / "a.jsonl", [{"text": text}, {"text": "end"}])))
    store = TokenStore(manifest.folder / "tokens")
    assert Tokenizer.load(trained).decode(store[0]) == text
    assert len(store) == 2


def test_a_user_error_is_one_message_and_no_traceback(trained, tmp_path, monkeypatch, capsys):
    more = ["--tokenizer", str(trained), "--output", str(tmp_path / "manifest.json")]
    settings = json.dumps(tokenize_settings("no/where"))
    monkeypatch.setattr(sys, "argv", ["x", "--settings", settings, *more])
    with pytest.raises(SystemExit, match="1"):
        run(tokenize.main)
    message = capsys.readouterr().err
    assert message.startswith("error: source s: no such file or folder: no/where (working folder")
    assert message.count("\n") == 1


def test_a_file_that_is_listed_twice_is_told(tokens, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"text": "one"}])
    settings = tokenize_settings(path)
    settings["source"]["path"] = [str(path), str(tmp_path / "a.jsonl")]
    assert tokens(settings).counts["documents"] == 1
    assert "1 files are named more than once and were read once" in capsys.readouterr().err


def test_a_packed_file_beside_the_same_unpacked_is_told(tokens, tmp_path, capsys):
    folder = tmp_path / "c"
    folder.mkdir()
    data = write(folder / "a.jsonl", [{"text": "one"}]).read_bytes()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(data))
    assert tokens(tokenize_settings(folder)).counts["documents"] == 3
    said = capsys.readouterr().err
    assert (
        f"{folder}/a.jsonl and {folder}/a.jsonl.gz were both read; if they are the same documents, remove one" in said
    )
    assert "b.jsonl.gz were" not in said
