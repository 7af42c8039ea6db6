"""A source tokenized by one job, or by three or eight that share it: the same bytes."""

import json
import shutil

import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.corpus import readers
from tests.database.stages import SPLIT, TOKENIZER, stage


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two files of records good, empty, filtered, malformed, with ids twice; and a tokenizer's manifest."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "text").mkdir()
    for name in "ab":
        lines = []
        for number in range(60):
            text = f"Number {number} of {name}: a document with several words. " * (number % 7)
            lines.append(json.dumps({"id": f"d{number}", "text": text, "kept": str(number % 5 > 0)}))
        lines[9], lines[17] = "{broken", json.dumps({"kept": "True", "text": 5})
        (folder / f"text/{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "text/c.txt").write_text("One more, as text.", encoding="utf-8")
    facts = {"path": str(folder / "text")}
    common = {"split": SPLIT, "seed": 1, "on_error": "skip"}
    output = folder / "D/tokenizer/manifest.json"
    stage(
        "retro.corpus.train_tokenizer",
        settings={"tokenizer": TOKENIZER, "sources": {"s": facts}, **common},
        output=output,
    )
    return {"settings": {"source": facts | {"keep": {"kept": ["True"]}}, "name": "s", **common}, "tokenizer": output}


@pytest.mark.parametrize("count", [1, 3, 8])
def test_shards_make_the_bytes_of_one_job(source, tmp_path, count, monkeypatch):
    monkeypatch.setattr(readers, "RECORDS", 4)
    whole, joined = tmp_path / "whole/s", tmp_path / "joined/s"
    for folder in (whole, joined):
        shutil.copytree(source["tokenizer"].parent, folder.parent / "tokenizer")
    stage("retro.corpus.tokenize", **source, output=whole / "manifest.json")
    notes = [joined / f"shards/{number}-of-{count}.json" for number in range(count)]
    for note in notes[::-1]:
        stage("retro.corpus.tokenize", **source, shard=note.stem, output=note)
    stage("retro.corpus.tokenize", **source, shards=notes, output=joined / "manifest.json")
    manifest = read_manifest(whole / "manifest.json", "tokens")
    counts = {name: manifest.counts[name] for name in ("skipped", "filtered", "empty", "duplicate_ids")}
    assert counts == {"skipped": 4, "filtered": 25, "empty": 14, "duplicate_ids": 39}
    for name in manifest.facts["files"]:
        assert (joined / name).read_bytes() == (whole / name).read_bytes(), name
    facts = {key: read_manifest(joined / "manifest.json").facts[key] for key in ("files", "counts", "settings")}
    assert facts == {key: manifest.facts[key] for key in facts}
    assert not any(path.is_dir() for path in (joined / "shards").iterdir())


def test_a_source_without_documents_is_refused_when_it_is_joined(source, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n', encoding="utf-8")
    settings = {**source["settings"], "source": {"path": str(tmp_path / "a.jsonl")}}
    options = {"settings": settings, "tokenizer": source["tokenizer"]}
    notes = [tmp_path / f"t/shards/{number}-of-2.json" for number in range(2)]
    for note in notes:
        stage("retro.corpus.tokenize", **options, shard=note.stem, output=note)
    with pytest.raises(UserError, match="no documents left of 1 records in 1 files: 1 empty"):
        stage("retro.corpus.tokenize", **options, shards=notes, output=tmp_path / "t/manifest.json")
    shutil.rmtree(tmp_path / "t/shards/1-of-2")
    with pytest.raises(UserError, match=r"1-of-2: missing\. Delete .*1-of-2\.json and run snakemake again"):
        stage("retro.corpus.tokenize", **options, shards=notes, output=tmp_path / "t/manifest.json")
