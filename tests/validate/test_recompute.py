"""What is stored is found equal; what was stored wrongly is found and named, even where every digest fits."""

import json

import faiss
import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.shards import bounds
from retro.base.stage import UserError
from retro.database import assemble, chunk
from retro.dataset.store import Vectors
from retro.validate import database, sample, tokens
from retro.validate.recompute import recompute
from tests.database.stages import SPLIT, stage
from tests.retrieval.test_retrievers import index_bm25
from tests.retrieval.test_retrievers import neighbours as find_neighbours

STAGES = ("tokens", "chunks", "embeddings", "database", "index", "neighbours")


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Small blocks, so that a small dataset has many."""
    monkeypatch.setattr(chunk, "BLOCK", 16)
    monkeypatch.setattr(assemble, "BLOCK", 16)
    monkeypatch.setattr(tokens, "DOCUMENTS", 7)
    monkeypatch.setattr(database, "CHUNKS", 32)
    monkeypatch.setattr(database, "VECTORS_AT_ONCE", 32)
    monkeypatch.setattr(database, "QUERIES", 16)


def found(paths, fraction=1.0, seed=1) -> dict[str, str]:
    """What differs, by folder."""
    reports = [recompute(path, fraction, seed, threads=1) for path in paths]
    return {report["artifact"]: report for report in reports if report["difference"]}


def test_what_the_stages_stored_is_what_they_make_again_and_nothing_is_written(copy):
    before = copy.contents()
    paths = [path for kind in STAGES for path in copy.manifests(kind)]
    assert len(paths) == 2 + 2 + 2 + 1 + 1 + 3
    for fraction in (0.05, 1.0):
        assert found(paths, fraction) == {}
    assert copy.contents() == before


def flip(position: int):
    """Flip the lowest bit of the byte at a position, from the end where negative."""

    def change(path):
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)

    return change


def put(row, value, field: str = ""):
    """Store another value in a row (and a field) of an array."""

    def change(path):
        array = np.load(path)
        (array[field] if field else array)[row] = value
        np.save(path, array)

    return change


def text(old: str, new: str):
    return lambda path: path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")


WRONG = {  # file: (kind, what was stored wrongly, where it must be found)
    "tokens/main/tokens.bin": ("tokens", flip(2000), "tokens.bin, document "),
    "tokens/main/documents.npy": (
        "tokens",
        put(5, 1, "bytes"),
        "documents.npy, document 5, bytes: stored 1, recomputed ",
    ),
    "tokens/main/documents.jsonl": ("tokens", text("Title 9", "Title 8"), "documents.jsonl, document 9: stored"),
    "tokens/main/skipped.jsonl": ("tokens", text("", '{"line": 1}\n'), "skipped.jsonl, line 1: stored"),
    "chunks/open/chunks.npy": ("chunks", flip(-4), "chunks.npy, chunk "),
    "database/database.npy": ("database", put(3, 4), "database.npy, row 3: stored 4, recomputed 3"),
    "database/valid.npy": ("database", flip(-8), "valid.npy, row "),
    "embeddings/open/embeddings.npy": ("embeddings", put((40, 7), 0.5), "embeddings.npy, vector 40, column 7: stored"),
    "index/index.faiss": ("index", flip(-1), "index.faiss, vector "),
    "neighbours/train/ids.npy": ("neighbours", put((33, 2), 1), "ids.npy, chunk 33, column 2: stored 1, recomputed "),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_although_every_digest_fits_is_named(copy, name):
    kind, change, where = WRONG[name]
    path = copy.folder / name
    change(path)
    with pytest.raises(UserError, match=r"1 artifact\(s\) do not hold"):
        copy.verify()
    copy.vouch()
    copy.verify()
    (report,) = found(copy.manifests(kind)).values()
    assert report["difference"].startswith(f"{copy.folder}/{name.rpartition('/')[0]}/{where}"), report
    assert report["reasons"] == []


def test_a_store_that_cannot_be_opened_is_named(copy):
    flip(60)(copy.folder / "tokens/main/tokens.idx")
    copy.vouch()
    (report,) = found(copy.manifests("tokens")).values()
    assert "tokens.idx" in report["difference"]


def test_a_changed_source_is_found_and_given_as_the_reason(copy):
    facts = json.loads((copy.folder / "tokens/main/manifest.json").read_text())
    path = next(copy.folder.parent.glob("main.jsonl"))
    facts["settings"]["source"]["path"] = str(path)
    (copy.folder / "tokens/main/manifest.json").write_text(json.dumps(facts))
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"id": "new", "text": "one more"}\n')
    (report,) = found(copy.manifests("tokens")).values()
    assert "tokens.idx, documents: stored 40, recomputed 41" in report["difference"]
    assert any("made from another" in reason and "main.jsonl" in reason for reason in report["reasons"])


def test_other_versions_and_code_are_given_as_reasons(copy):
    path = copy.folder / "chunks/main/manifest.json"
    flip(-4)(path.parent / "chunks.npy")
    copy.vouch()
    facts = json.loads(path.read_text())
    facts |= {"fingerprint": "0" * 16, "versions": {**facts["versions"], "numpy": "1.0"}}
    path.write_text(json.dumps(facts))
    (report,) = found([path]).values()
    assert report["reasons"][0] == "made by other code of retro.database.chunk than is here now"
    assert report["reasons"][1].startswith("made with numpy 1.0, here is ")


def test_verify_reports_other_major_versions(copy, capsys):
    """Packages whose versions can change an artifact's bytes are in its manifest."""
    copy.verify()
    assert "note: " not in capsys.readouterr().out
    recorded = {"tokens/main": {"tokenizers", "numpy"}, "neighbours/test": {"torch", "faiss"}}
    for name, packages in recorded.items():
        path = copy.folder / name / "manifest.json"
        facts = json.loads(path.read_text())
        assert packages | {"python"} <= facts["versions"].keys()
        facts["versions"] |= {package: f"999.{version}" for package, version in facts["versions"].items()}
        path.write_text(json.dumps(facts))
    copy.vouch()
    copy.verify()
    told = capsys.readouterr().out
    for kind, package in [("tokens", "tokenizers"), ("neighbours", "torch"), ("neighbours", "faiss")]:
        assert f"note: {kind}: made with {package} 999." in told
    facts = json.loads((copy.folder / "embeddings/main/manifest.json").read_text())
    assert {"identity", "engine"} <= facts["settings"]["encoder"].keys(), "the encoder's weights"


def test_vectors_of_another_engine_are_not_compared(copy):
    path = copy.folder / "embeddings/main/manifest.json"
    facts = json.loads(path.read_text())
    facts["settings"]["encoder"]["engine"] = "torch float16 cuda"
    path.write_text(json.dumps(facts))
    (report,) = found([path]).values()
    assert "engine torch float16 cuda, here it is numpy float32. Validate on a machine" in report["difference"]


STRINGS = [
    "IVF8,Flat", "IVF8,SQ8", "OPQ4_16,IVF4_HNSW4,PQ4x4", "IVF8,PQ8x4fs,RFlat", "HNSW8", "SQ8", "PQ8x4fs", "RaBitQ",
    "IVF8,RaBitQ",
]  # fmt: skip


@pytest.mark.parametrize("name", STRINGS)
def test_a_wrong_vector_of_any_index_is_named(corpus, tmp_path, name):
    output = tmp_path / "index/manifest.json"
    stage(
        "retro.retrieval.index",
        settings={"index": {"factory": name}, "seed": 1},
        database=corpus.manifest("database"),
        embeddings=corpus.manifests("embeddings"),
        output=output,
    )
    assert found([output]) == {}
    built = database.emptied(faiss.read_index(str(tmp_path / "index/index.faiss")))
    rows = np.load(corpus.manifest("database").parent / "database.npy")
    vectors = Vectors(corpus.manifests("embeddings")).read(rows)
    vectors[70] *= -1
    for start, stop in bounds(len(vectors), 32):
        built.add(vectors[start:stop])
    faiss.write_index(built, str(tmp_path / "index/index.faiss"))
    (report,) = found([output]).values()
    assert " of vector 70" in report["difference"], report
    assert (
        report["recomputed"] == f"{-(-len(vectors) // 32)} of {-(-len(vectors) // 32)} blocks, {len(vectors)} vectors"
    )


def test_tokens_that_were_given_are_recomputed_too(copy):
    source = {"type": "megatron", "path": str(copy.folder / "tokens/main/tokens")}
    output = copy.folder / "tokens/given/manifest.json"
    stage(
        "retro.corpus.tokenize",
        settings={"source": source, "name": "given", "split": SPLIT, "seed": 1, "on_error": "stop"},
        tokenizer=copy.folder / "tokenizer/manifest.json",
        output=output,
    )
    assert found([output]) == {}
    flip(501)(output.parent / "tokens.bin")
    (report,) = found([output]).values()
    assert "tokens.bin, document " in report["difference"]


@pytest.mark.parametrize("retriever", ["bm25", "hybrid", "random", "shuffled"])
def test_neighbours_of_every_retriever_are_found_again(corpus, dataset, tmp_path, retriever):
    searched, output = corpus.manifest("index"), tmp_path / "neighbours/test/manifest.json"
    if retriever in ("bm25", "hybrid"):
        words = tmp_path / "bm25/manifest.json"
        index_bm25(corpus, words)
        searched = [searched, words] if retriever == "hybrid" else words
    find_neighbours(corpus, output, retriever, searched, "test")
    assert found([output]) == {}
    put((3, 1), 0)(output.parent / "ids.npy")
    (report,) = found([output]).values()
    assert "ids.npy, chunk 3, column 1: stored 0, recomputed " in report["difference"]


def test_a_sample_is_seeded_and_never_empty(copy):
    manifest, blocks = read_manifest(copy.folder / "chunks/main/manifest.json"), bounds(10_000, 10)
    chosen = {seed: sample.Sample(0.05, seed, manifest).choose(blocks, "chunk") for seed in (1, 2)}
    assert len(chosen[1]) == 50 and chosen[1] == sorted(chosen[1]) and set(chosen[1]) <= set(blocks)
    assert chosen[1] == sample.Sample(0.05, 1, manifest).choose(blocks, "chunk") != chosen[2]
    assert sample.Sample(0.05, 1, manifest).choose(blocks[:3], "chunk")
    assert sample.Sample(1.0, 1, manifest).choose(blocks, "chunk") == blocks
    assert sample.Sample(0.05, 1, manifest).choose([], "chunk") == []


def test_the_reports_are_told_as_a_table_and_judged(copy, tmp_path, capsys):
    put(5, 6)(copy.folder / "database/database.npy")
    copy.vouch()
    for kind in ("chunks", "database"):
        stage("retro.validate.recompute", manifests=copy.manifests(kind), output=tmp_path / f"{kind}.json")
    capsys.readouterr()
    reports = [str(tmp_path / f"{kind}.json") for kind in ("chunks", "database")]
    with pytest.raises(UserError, match="1 of 3 artifacts are not what is recomputed"):
        stage("retro.validate.recompute", reports=reports)
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told[:3]] == ["equal", "equal", "DIFFERS"]
    assert told[4].endswith("database.npy, row 5: stored 6, recomputed 5")
    stage("retro.validate.recompute", reports=reports[:1])
    assert "2 artifacts: what was recomputed equals what is stored" in capsys.readouterr().out


def test_what_is_made_from_everything_at_once_is_refused(copy):
    with pytest.raises(UserError, match=r"what .*train_tokenizer makes cannot be recomputed in part"):
        recompute(copy.folder / "tokenizer/manifest.json", 1.0, 1, threads=1)
