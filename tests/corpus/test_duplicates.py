"""Planted duplicates and near-duplicates are found, excluded or dropped."""

import json
import random

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.corpus import duplicates
from retro.dataset.dataset import ChunkStore
from tests.database.stages import Corpus, stage

PLANTED = {"copy": 0, "near": 1}  # documents of `open` that repeat documents of `main`


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """`open` also holds a copy and a near copy (one word in forty changed) of two long documents of `main`."""
    corpus = Corpus(tmp_path_factory.mktemp("planted"))
    rng = random.Random(1)
    words = [f"word{rng.randrange(2000)}" for _ in range(400)]
    texts = {name: " ".join(rng.sample(words, 200)) for name in PLANTED}
    near = texts["near"].split()
    near[100] = "another"
    copies = {"copy": texts["copy"], "near": " ".join(near)}
    for name, some in (("main", texts), ("open", copies)):
        with open(corpus.folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
            for key, text in some.items():
                for part in range(2 if key == "copy" else 1):
                    file.write(json.dumps({"id": f"{name}-{key}-{part}", "text": text}) + "\n")
    return corpus.tokenize().chunk().embed()


def find(corpus, action="report", **more):
    output = corpus.folder / "D" / f"duplicates-{action}" / "manifest.json"
    sources = {name: {"database": True} for name in corpus.names}
    stage(
        "retro.corpus.duplicates",
        settings={"duplicates": {"action": action, **more}, "sources": sources, "seed": 3},
        tokens=corpus.manifests("tokens"),
        output=output,
    )
    return read_manifest(output, "duplicates")


def clusters(manifest):
    lines = manifest.file("clusters.jsonl").read_text(encoding="utf-8").splitlines()
    return [{document["id"] for document in json.loads(line)["documents"]} for line in lines]


def test_copies_and_near_copies_are_found_and_nothing_else(planted):
    manifest = find(planted)
    assert sorted(clusters(manifest), key=len) == [
        {"main-near-0", "open-near-0"},
        {"main-copy-0", "main-copy-1", "open-copy-0", "open-copy-1"},
    ]
    counts = manifest.counts
    assert (counts["equal"], counts["near"], counts["clusters"], counts["largest_cluster"]) == (3, 1, 2, 4)
    assert counts["documents_of_source_in_source"]["open in main"] == 3
    assert not manifest.array("dropped.npy").any()


def test_the_same_bytes_again(planted):
    files = [path.read_bytes() for path in sorted(find(planted).folder.iterdir())]
    assert files == [path.read_bytes() for path in sorted(find(planted).folder.iterdir())]


def test_a_threshold_of_one_finds_only_what_is_equal(planted):
    assert find(planted, threshold=1).counts["near"] == 0


def test_drop_keeps_one_of_each_cluster_in_train_and_one_in_the_database(planted):
    manifest = find(planted, "drop")
    use = {name: {"train": name == "main", "database": True} for name in planted.names}
    output = planted.folder / "D/dropped/manifest.json"
    stage(
        "retro.database.assemble",
        settings={"sources": use},
        chunks=planted.manifests("chunks"),
        duplicates=manifest.path,
        output=output,
    )
    rows, whole = read_manifest(output, "database"), read_manifest(planted.assemble().manifest("database"))
    store = ChunkStore(planted.names, planted.manifests("tokens"), planted.manifests("chunks"), 16, 0)
    groups = manifest.array("clusters.npy")
    for name in ("train", "database"):
        kept, all_rows = rows.array(f"{name}.npy"), whole.array(f"{name}.npy")
        ids = [store.document(int(row))["id"] for row in kept]
        everything = {store.document(int(row))["id"] for row in all_rows}
        for cluster in clusters(manifest):
            assert len(cluster & set(ids)) == min(1, len(cluster & everything))
    for name in ("valid", "test"):
        assert np.array_equal(rows.array(f"{name}.npy"), whole.array(f"{name}.npy"))
    assert len(groups) == manifest.counts["documents"]


def test_exclude_never_gives_a_duplicate_as_neighbour(planted):
    manifest = find(planted, "exclude")
    planted.assemble().index()
    split = "train"
    with_copies = planted.neighbours(split, saved=5)
    without = planted.neighbours(
        split, output=planted.folder / "D/apart/manifest.json", more={"duplicates": manifest.path}, saved=5
    )
    listed = read_manifest(planted.manifest("database"))
    database, rows = listed.array("database.npy"), listed.array(f"{split}.npy")
    store = ChunkStore(planted.names, planted.manifests("tokens"), planted.manifests("chunks"), 16, 0)
    of = {each: number for number, cluster in enumerate(clusters(manifest)) for each in cluster}

    def shared(path):
        ids = read_manifest(path).array("ids.npy")
        own = [of.get(store.document(int(row))["id"], -1) for row in rows]
        found = [[of.get(store.document(int(database[i]))["id"], -2) for i in line if i >= 0] for line in ids]
        return sum(mine in theirs for mine, theirs in zip(own, found, strict=True))

    assert shared(with_copies) > 0
    assert shared(without) == 0


def test_the_estimate_is_the_jaccard_similarity_of_shingles():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5000, 2000)
    second = np.concatenate([first[:1500], rng.integers(0, 5000, 500)])
    tokens, offsets = np.concatenate([first, second]), np.array([0, 2000, 4000])
    whole, flat, at = duplicates.hashes(tokens, offsets, 5)
    sets = [set(flat[at[i] : at[i + 1]].tolist()) for i in range(2)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    found = duplicates.rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, at, 1024, 1).to_rows()
    assert whole[0] != whole[1]
    assert abs(np.mean(np.array(found[0]) == np.array(found[1])) - exact) < 0.06


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95, 1.0])
def test_a_pair_at_the_threshold_is_a_candidate_almost_surely(threshold):
    rows = duplicates.rows_of(128, threshold)
    assert 1 - (1 - threshold**rows) ** (128 // rows) >= 0.99
