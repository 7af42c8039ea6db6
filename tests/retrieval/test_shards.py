"""One job, or three, or eight that share the work: the same bytes."""

import shutil
from pathlib import Path

import pytest

from retro.base.artifacts import read_manifest
from retro.base.shards import bounds, shard_name
from retro.base.stage import UserError
from retro.corpus import readers
from retro.retrieval import index
from tests.database.stages import Corpus, stage

COUNTS = (3, 8)
SPLITS = ("train", "valid", "test")
JOINED = ["Flat", "IVF8,SQ8", "IVF8,Flat", "IVF8,RaBitQ", "OPQ4_16,IVF4_HNSW4,PQ4x4"]
FILLED_LAST = ["IVF8,FlatDedup", "IVF8,PQ8x4fs,RFlat", "HNSW8", "SQ8"]  # by the job that joins


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def in_shards(module: str, count: int, output: Path, suffix: str = ".json", more=None, **options) -> None:
    """Run the shards of a stage, in whatever order, then the job that joins them."""
    files = [output.parent / "shards" / f"{number}-of-{count}{suffix}" for number in range(count)]
    for path in files[::-1]:
        stage(module, **options, **(more or {}), shard=path.stem, output=path)
    stage(module, **options, shards=files, output=output)
    assert not list((output.parent / "shards").glob("*/*.npy")), "finished blocks are removed"


def test_blocks_are_shared_out_without_gap_or_overlap():
    for rows in (0, 1, 16, 100, 1000):
        for shards in (1, 2, 3, 8, 50):
            parts = [bounds(rows, 16, shard_name(f"{number}-of-{shards}")) for number in range(shards)]
            assert [bound for part in parts for bound in part] == bounds(rows, 16)


@pytest.mark.parametrize("count", COUNTS)
def test_embeddings(corpus, tmp_path, count):
    options = corpus.embed_options("main")
    whole = options.pop("output").parent
    del options["blocks"]
    in_shards("retro.database.embed", count, tmp_path / "manifest.json", **options, block=8)
    assert contents(tmp_path)["embeddings.npy"] == contents(whole)["embeddings.npy"]
    assert (
        read_manifest(tmp_path / "manifest.json").facts["settings"] == read_manifest(whole / "manifest.json").settings
    )


def index_options(corpus, name: str, **more) -> dict:
    return {
        "settings": {"index": {"factory": name, "nprobe": 2}, "seed": 1},
        "database": corpus.manifest("database"),
        "embeddings": corpus.manifests("embeddings"),
        "block": 16,
        **more,
    }


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", [*JOINED, *FILLED_LAST])
def test_indexes(corpus, tmp_path, name, count, monkeypatch):
    """Written in parts of 32 vectors or whole, by one job or by many."""
    options = index_options(corpus, name)
    stage("retro.retrieval.index", **options, output=tmp_path / "one/manifest.json")
    if count == 3:
        monkeypatch.setattr(index, "PART", 32)
        stage("retro.retrieval.index", **options, output=tmp_path / "parts/manifest.json")
        assert contents(tmp_path / "parts") == contents(tmp_path / "one")
        assert [path.name for path in (tmp_path / "parts").iterdir()] == sorted(contents(tmp_path / "one"))
    trained = tmp_path / "many/shards/trained.faiss"
    stage("retro.retrieval.index", **options, part="train", output=trained)
    more = {"part": "add"}
    options["trained"] = [trained]
    in_shards("retro.retrieval.index", count, tmp_path / "many/manifest.json", ".faiss", more, **options)
    one, many = contents(tmp_path / "one"), contents(tmp_path / "many")
    assert one["index.faiss"] == many["index.faiss"] and one["manifest.json"] == many["manifest.json"]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["Flat", "IVF8,SQ8"])
def test_neighbours(corpus, tmp_path, name, count):
    options = index_options(corpus, name)
    stage("retro.retrieval.index", **options, output=tmp_path / "index/manifest.json")
    options |= {"split": "train", "chunks": corpus.manifests("chunks"), "index": tmp_path / "index/manifest.json"}
    options["settings"] |= {"retriever": "dense", "neighbours": {"saved": 5}}
    stage("retro.retrieval.neighbours", **options, output=tmp_path / "one/manifest.json")
    in_shards("retro.retrieval.neighbours", count, tmp_path / "many/manifest.json", **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


SEARCH = {"index": {"factory": "IVF8,SQ8", "nprobe": 2}, "seed": 1}
MADE = ("tokens", "chunks", "embeddings", "database", "index", "neighbours")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Corpus:
    """Tokens to neighbours, one job a stage."""
    made = Corpus(tmp_path_factory.mktemp("alone")).tokenize().chunk().embed().assemble().index(**SEARCH["index"])
    for split in SPLITS:
        made.neighbours(split, index=SEARCH["index"], saved=5)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, *COUNTS])
def test_every_artifact_from_tokens_to_neighbours(alone, tmp_path, count, monkeypatch):
    """All stages one after another, each on what the shards of the one before made."""
    monkeypatch.setattr(readers, "RECORDS", 4)
    made = Corpus(tmp_path)
    shutil.copytree(alone.manifest("tokenizer").parent, made.manifest("tokenizer").parent)
    for name in made.names:
        settings = read_manifest(alone.manifest("tokens", name)).settings
        settings["source"]["path"] = made.sources[name]["path"]
        options = {"settings": settings, "tokenizer": made.manifest("tokenizer")}
        in_shards("retro.corpus.tokenize", count, made.manifest("tokens", name), **options)
    made.chunk()
    for name in made.names:
        options = made.embed_options(name)
        output, _ = options.pop("output"), options.pop("blocks")
        in_shards("retro.database.embed", count, output, **options, block=8)
    made.assemble()
    inputs = {"database": made.manifest("database"), "embeddings": made.manifests("embeddings")}
    options, trained = (
        {"settings": SEARCH, **inputs, "block": 16},
        made.manifest("index").parent / "shards/trained.faiss",
    )
    stage("retro.retrieval.index", **options, part="train", output=trained)
    options["trained"] = [trained]
    in_shards("retro.retrieval.index", count, made.manifest("index"), ".faiss", {"part": "add"}, **options)
    inputs |= {
        "settings": {**SEARCH, "retriever": "dense", "neighbours": {"saved": 5}},
        "index": made.manifest("index"),
    }
    for split in SPLITS:
        options = {**inputs, "split": split, "chunks": made.manifests("chunks"), "block": 16}
        in_shards("retro.retrieval.neighbours", count, made.manifest("neighbours", split), **options)
    for kind in MADE:
        for path in alone.manifest(kind).parent.rglob("*.*"):
            name = path.relative_to(alone.folder)
            if path.name == "manifest.json":
                one, other = (read_manifest(folder / name).facts for folder in (alone.folder, tmp_path))
                assert one["files"] == other["files"] and one["counts"] == other["counts"], name
            else:
                assert path.read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_lost_block_and_shards_of_different_inputs_are_named(corpus, tmp_path):
    options = corpus.embed_options("main")
    del options["blocks"], options["output"]
    notes = [tmp_path / f"shards/{number}-of-2.json" for number in range(2)]
    for path in notes:
        stage("retro.database.embed", **options, block=8, shard=path.stem, output=path)
    kept = notes[1].read_text(encoding="utf-8")
    notes[1].write_text(kept.replace("numpy float32", "torch float16 cuda"), encoding="utf-8")
    with pytest.raises(UserError, match=r"1-of-2.json: made_from is .* cannot be joined"):
        stage("retro.database.embed", **options, shards=notes, output=tmp_path / "manifest.json")
    notes[1].write_text(kept, encoding="utf-8")
    next((tmp_path / "shards/1-of-2").glob("*.npy")).unlink()
    with pytest.raises(UserError, match=r"block of rows .* is missing. Delete .*1-of-2\.json"):
        stage("retro.database.embed", **options, shards=notes, output=tmp_path / "manifest.json")
    assert not (tmp_path / "manifest.json").exists()
