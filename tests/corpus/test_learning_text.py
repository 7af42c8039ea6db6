"""What the tokenizer learns from: everything if it fits, else a share of every source and of its files."""

import gzip
import itertools
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from retro.base import log
from retro.base.artifacts import read_manifest
from retro.corpus import train_tokenizer
from retro.corpus.documents import TRAIN, split_of
from retro.corpus.readers import Reader
from retro.corpus.settings import SourceSettings, SplitSettings
from retro.corpus.train_tokenizer import WORD, LearningText, cut_long_words
from tests.corpus.test_corpus_stages import TINY, call, train_settings

SPLIT = SplitSettings(valid=0.1, test=0.1)
ENGLISH = ["the", "harbour", "council", "of", "the", "river", "town", "meets", "in", "the", "market", "hall"]
GERMAN = ["der", "Rat", "der", "Hafenstadt", "berät", "über", "die", "Brücke", "und", "die", "Mühle", "am", "Fluss"]


def records(words, count, length=60, seed=1, **more):
    rng = random.Random(seed)
    return [{"text": " ".join(rng.choices(words, k=length)), **more} for _ in range(count)]


def write(path: Path, found) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def learn(sources: dict[str, Path], limit: int, split=SPLIT) -> tuple[list[str], LearningText]:
    readers = [Reader(SourceSettings(path=str(path)), name) for name, path in sorted(sources.items())]
    text = LearningText(readers, split, 1, limit)
    return list(text), text


@pytest.fixture
def sources(tmp_path) -> dict[str, Path]:
    """Two languages in two sources, the first by name in four files."""
    for number in range(4):
        write(tmp_path / "english" / f"{number}.jsonl", records(ENGLISH, 50, seed=number))
    return {"english": tmp_path / "english", "z-german": write(tmp_path / "german.jsonl", records(GERMAN, 200, seed=9))}


def test_every_source_gives_its_share_where_there_is_too_much(sources):
    texts, found = learn(sources, 20_000)
    assert 19_900 <= found.bytes <= 20_000
    assert all(8_000 < size < 12_000 for size in found.by_source.values())
    assert sum(len(text.encode()) for text in texts) == found.bytes == sum(found.by_source.values())


def test_every_file_of_a_source_gives_its_share(tmp_path):
    for number in range(10):
        write(tmp_path / f"{number}.jsonl", records([f"word{number}"], 40))
    texts, found = learn({"s": tmp_path}, 20_000)
    assert found.files == {"s": 10}
    of = [sum(len(text) for text in texts if f"word{number}" in text) for number in range(10)]
    assert all(1_000 < size < 3_000 for size in of)


def test_every_tenth_of_many_small_files_is_read(tmp_path):
    for number in range(200):
        (tmp_path / f"{number:03}.txt").write_text(f"word{number:03} " * 100)
    texts, _ = learn({"s": tmp_path}, 16_000, SplitSettings(valid=0, test=0))
    numbers = [int(text[4:7]) for text in texts]
    assert 15 <= len(numbers) <= 25
    assert max(b - a for a, b in itertools.pairwise([0, *numbers, 200])) <= 20


def test_one_huge_document_leaves_room_for_others(tmp_path):
    write(tmp_path / "a" / "0.jsonl", [{"text": "huge " * 200_000}])
    write(tmp_path / "a" / "1.jsonl", records(ENGLISH, 3000))
    write(tmp_path / "b.jsonl", records(GERMAN, 3000))
    none = SplitSettings(valid=0, test=0)
    texts, found = learn({"a": tmp_path / "a", "b": tmp_path / "b.jsonl"}, 90_000, none)
    assert found.by_source["b"] > 25_000
    assert sum(len(text) for text in texts if "council" in text) > 10_000


def test_a_source_learned_in_part_names_the_stage_s_shares(sources, tmp_path, monkeypatch, capsys):
    settings = train_settings(TINY, train_bytes=20_000)
    settings["sources"] = {name: {"path": str(path)} for name, path in sources.items()}
    output = tmp_path / "tokenizer" / "manifest.json"
    call(train_tokenizer, monkeypatch, settings, output)
    said = capsys.readouterr().err
    assert "of 4 of 4 files of english" in said
    assert "of 1 of 1 files of z-german" in said
    vocabulary = json.loads((output.parent / "tokenizer.json").read_text())["model"]["vocab"]
    assert "ĠBr" in vocabulary or "ĠHafenstadt" in vocabulary
    assert read_manifest(output).counts["train_bytes"] <= 20_000


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("room", [0, 1, 10_000])
def test_what_fits_is_learned_from_whole_and_in_order(tmp_path, packed, room):
    name = "a.jsonl.gz" if packed else "a.jsonl"
    write(tmp_path / "x" / name, records(ENGLISH, 30))
    write(tmp_path / "y" / name, records(GERMAN, 30))
    readers = [Reader(SourceSettings(path=str(tmp_path / name)), name) for name in ("x", "y")]
    wanted = [d.text for reader in readers for d in reader if split_of(d.group, d.id, True, SPLIT, 1) == TRAIN]
    size = sum(len(text.encode()) for text in wanted)
    texts, found = learn({"x": tmp_path / "x", "y": tmp_path / "y"}, size + room)
    assert texts == wanted
    assert found.told() == []


@pytest.mark.parametrize("limit", [3_000, 30_000])
def test_no_held_out_document_is_learned_from_although_files_are_left_early(sources, limit):
    """Documents without ids are split by their number, so records of files that were left are counted."""
    held = set()
    for name, path in sources.items():
        for document in Reader(SourceSettings(path=str(path)), name):
            if split_of(document.group, document.id, True, SPLIT, 1) != TRAIN:
                held.add(document.text)
    texts, _ = learn(sources, limit)
    assert texts
    assert not any(text and any(other.startswith(text) for other in held) for text in texts)


@pytest.mark.parametrize("limit", [1, 2, 7, 1001])
def test_no_character_is_cut_in_two(tmp_path, limit):
    write(tmp_path / "a.jsonl", [{"text": "äöü中" * 400}] * 9)
    texts, found = learn({"s": tmp_path / "a.jsonl"}, limit, SplitSettings(valid=0, test=0))
    assert limit - 3 <= sum(len(text.encode()) for text in texts) == found.bytes <= limit


LONG = {
    "letters": "a" * 5_000,
    "a sequence": "".join(random.Random(1).choices("ACGT", k=5_000)),
    "Chinese": "港口磨坊河流" * 900,
    "digits": "0123456789" * 500,
    "signs": "-=" * 2_500,
    "controls": "\x1c-" * 2_500,
    "spaces": " " * 5_000,
    "after a space": f"word {'a' * 5_000} word",
}


def words(text: str) -> list[str]:
    return [word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)]


def longest(texts) -> int:
    """Characters of the longest word, as GPT-2's rule has it."""
    rule = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return max(end - start for text in texts for _, (start, end) in rule.pre_tokenize_str(text))


@pytest.mark.parametrize("case", LONG)
def test_long_words_are_cut(case):
    pieces = list(cut_long_words(LONG[case]))
    assert "".join(pieces) == LONG[case]
    assert longest([LONG[case]]) > WORD >= longest(pieces) - 1  # a space before it belongs to a word


@given(text=st.text(alphabet="ab1-_ \n\té中\x1c²", max_size=60))
def test_pieces_join_to_the_text_and_hold_no_long_word(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tokenizer, "WORD", 5)
        patch.setattr(train_tokenizer, "SPACES", re.compile(""))
        patch.setattr(train_tokenizer, "LONG", train_tokenizer.long_words(6))
        pieces = list(cut_long_words(text))
    assert "".join(pieces) == text
    assert not text or longest(pieces) <= 6


@pytest.mark.parametrize("name", ["tiny.jsonl", "factbook.jsonl.gz"])
def test_texts_of_usual_corpora_are_not_cut(name):
    for document in Reader(SourceSettings(path=str(TINY.with_name(name))), "s"):
        assert list(cut_long_words(document.text)) == [document.text]


SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@pytest.mark.parametrize(("alphabet", "size"), [("a", 2_000_000), ("ACGT", 300_000), (SIGNS, 300_000), (" ", 300_000)])
def test_one_long_word_is_learned_from(tmp_path, monkeypatch, alphabet, size):
    """The time that this takes was the square of the word's length: hours for the first."""
    rng = random.Random(1)
    word = "".join(rng.choices(alphabet, k=size)) if len(alphabet) > 1 else alphabet * size
    path = write(tmp_path / "a.jsonl", [{"text": word}, {"text": "some words"}])
    output = tmp_path / "tokenizer" / "manifest.json"
    call(train_tokenizer, monkeypatch, train_settings(path, {"valid": 0, "test": 0}, vocab_size=300), output)
    counts = read_manifest(output).counts
    assert (counts["train_documents"], counts["train_bytes"]) == (2, size + len("some words"))


def test_waiting_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(log, "BEAT", 0.01)
    said = ""
    with log.waiting("learning the tokenizer"):
        while not said:
            said = capsys.readouterr().err
    assert said.startswith("learning the tokenizer: 0 s so far")
