"""The neighbours stage: what is stored, that nothing but its inputs decides it, and that it resumes."""

from pathlib import Path

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.shards import Blocks
from retro.base.stage import UserError
from retro.dataset.store import Vectors
from retro.retrieval.exclusion import read_keys
from retro.retrieval.neighbours import recall
from tests.database.stages import stage
from tests.retrieval.brute import Case

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "valid", "test")


def case_of(corpus, split: str, rules: list[str]) -> Case:
    """The search of a split as a brute-force case."""
    manifest, vectors = read_manifest(corpus.manifest("database")), Vectors(corpus.manifests("embeddings"))
    database, rows = manifest.array("database.npy"), manifest.array(f"{split}.npy")
    keys = [read_keys(rule, corpus.manifests("chunks")) for rule in rules]
    return Case(vectors.read(database), vectors.read(rows), [k[database] for k in keys], [k[rows] for k in keys])


def bytes_of(manifest: Path) -> list[bytes]:
    return [(manifest.parent / name).read_bytes() for name in ("ids.npy", "scores.npy", "manifest.json")]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("exclude", [["document"], ["group"], ["group_of_any_source", "text"]])
def test_neighbours_are_those_of_brute_force(corpus, tmp_path, split, exclude):
    output = corpus.neighbours(split, tmp_path / "n/manifest.json", saved=5, exclude=exclude)
    manifest, case = read_manifest(output, "neighbours"), case_of(corpus, split, ["document", *exclude])
    ids, scores = manifest.array("ids.npy"), manifest.array("scores.npy")
    assert ids.tolist() == case.best(5).tolist() and ids.dtype == np.int32
    wanted = np.take_along_axis(case.scores(), np.maximum(ids, 0), 1) / 2.0**50
    assert (scores == wanted.astype(np.float16)).all() and scores.dtype == np.float16
    assert manifest.counts["holes"] == 0 and manifest.counts["chunks"] == len(ids)
    assert manifest.counts["recall"] == {"1": 1.0, "2": 1.0, "5": 1.0}
    assert not (tmp_path / "n/blocks").exists()


def test_more_neighbours_than_there_are_leave_holes_at_the_end(corpus, tmp_path):
    manifest = read_manifest(corpus.neighbours("valid", tmp_path / "manifest.json", saved=1000))
    case, ids = case_of(corpus, "valid", ["document"]), manifest.array("ids.npy")
    assert ids.tolist() == case.best(1000).tolist()
    assert manifest.counts["holes"] == int((ids < 0).sum()) == ids.size - int(case.admissible().sum())
    assert (manifest.array("scores.npy")[ids < 0] == -np.inf).all()


def test_neither_threads_nor_block_sizes_change_a_byte(corpus, tmp_path):
    first = bytes_of(corpus.neighbours("train", tmp_path / "a/manifest.json", saved=4))
    for name, more in {"b": {"threads": 2}, "c": {"block": 7}, "d": {"threads": 2, "block": 50}}.items():
        again = corpus.neighbours("train", tmp_path / name / "manifest.json", more=more.items(), saved=4)
        assert bytes_of(again) == first


def test_finished_blocks_are_kept_by_a_run_that_ended_early(corpus, tmp_path, monkeypatch, capsys):
    """A run that dies in its third block leaves two; the next run computes the rest and makes the same bytes."""
    unbroken = corpus.neighbours("train", tmp_path / "a/manifest.json", more={"block": 20}.items(), saved=4)
    written, keep = [], Blocks.write

    def die(self, start, block):
        keep(self, start, block)
        written.append(start)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Blocks, "write", die)
    with pytest.raises(KeyboardInterrupt):
        corpus.neighbours("train", tmp_path / "b/manifest.json", more={"block": 20}.items(), saved=4)
    monkeypatch.setattr(Blocks, "write", keep)
    assert not (tmp_path / "b/manifest.json").exists()
    again = corpus.neighbours("train", tmp_path / "b/manifest.json", more={"block": 20}.items(), saved=4)
    assert "going on after 2 finished blocks" in capsys.readouterr().err
    assert bytes_of(again) == bytes_of(unbroken)


def test_an_approximate_index_reports_its_recall(corpus, tmp_path):
    index = {"factory": "IVF8,PQ8x4", "nprobe": 2}
    stage(
        "retro.retrieval.index",
        settings={"index": index, "seed": 1},
        database=corpus.manifest("database"),
        embeddings=corpus.manifests("embeddings"),
        output=tmp_path / "index/manifest.json",
    )
    made = read_manifest(tmp_path / "index/manifest.json", "index")
    assert made.settings["factory"] == "IVF8,PQ8x4" and not made.settings["exact"]
    more = {"index": tmp_path / "index/manifest.json"}
    options = {"split": "train", "database": corpus.manifest("database"), "chunks": corpus.manifests("chunks")}
    output = tmp_path / "n/manifest.json"
    stage(
        "retro.retrieval.neighbours",
        settings={"retriever": "dense", "neighbours": {"saved": 5}, "index": index, "seed": 1},
        embeddings=corpus.manifests("embeddings"),
        output=output,
        **options,
        **more,
    )
    manifest, case = read_manifest(output), case_of(corpus, "train", ["document"])
    ids, truth = manifest.array("ids.npy"), case.best(5)
    assert (ids >= 0).all() and case.admissible()[np.arange(len(ids))[:, None], ids].all()
    assert manifest.counts["recall"] == recall(ids, truth)
    assert 0.3 < manifest.counts["recall"]["5"] < 1 and "against exact search" in manifest.counts["recall_of"]


def test_recall_counts_what_both_found_among_the_first_k():
    exact = np.array([[1, 2, 3], [4, 5, -1]])
    found = np.array([[2, 1, 9], [4, 7, 5]])
    assert recall(found, exact) == {"1": 0.5, "2": 0.75, "3": 0.8}


def test_of_nothing_there_is_no_recall():
    nothing, holes = np.empty((0, 3), int), np.full((2, 3), -1)
    assert recall(nothing, nothing) == {} and recall(holes, holes) == {}


def test_an_empty_split_has_no_neighbours_and_no_error(corpus, tmp_path, capsys):
    folder = tmp_path / "database"
    folder.mkdir()
    source = read_manifest(corpus.manifest("database"))
    for name in source.facts["files"]:
        (folder / name).write_bytes((source.folder / name).read_bytes())
    np.save(folder / "valid.npy", np.empty(0, np.int64))
    from retro.base.artifacts import write_manifest

    names = [folder / name for name in source.facts["files"]]
    write_manifest(folder / "manifest.json", kind="database", stage="retro.database.assemble", files=names)
    stage(
        "retro.retrieval.neighbours",
        settings={"retriever": "dense", "neighbours": {"saved": 3}, "index": {}, "seed": 1},
        split="valid",
        database=folder / "manifest.json",
        chunks=corpus.manifests("chunks"),
        embeddings=corpus.manifests("embeddings"),
        index=corpus.manifest("index"),
        output=tmp_path / "n/manifest.json",
    )
    assert read_manifest(tmp_path / "n/manifest.json").array("ids.npy").shape == (0, 3)
    assert read_manifest(tmp_path / "n/manifest.json").counts["recall"] == {}
    assert "no chunks" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["retriever", "neighbours", "index", "seed"])
def test_no_setting_is_made_up(corpus, tmp_path, lacking):
    """A retriever that nobody named would be a silent default."""
    facts = {"retriever": "dense", "neighbours": {"saved": 3}, "index": {}, "seed": 1}
    with pytest.raises(UserError, match=f"--settings: lacks '{lacking}', has"):
        stage(
            "retro.retrieval.neighbours",
            settings={name: value for name, value in facts.items() if name != lacking},
            split="valid",
            database=corpus.manifest("database"),
            chunks=corpus.manifests("chunks"),
            embeddings=corpus.manifests("embeddings"),
            index=corpus.manifest("index"),
            output=tmp_path / "n/manifest.json",
        )


def test_sources_embedded_by_different_encoders_are_refused(corpus, tmp_path):
    other = tmp_path / "open/manifest.json"
    options = corpus.embed_options("open", type="static", width=32)
    stage("retro.database.embed", **{**options, "output": other, "blocks": tmp_path / "blocks"})
    with pytest.raises(UserError, match="Vectors of different encoders cannot be compared"):
        Vectors([corpus.manifest("embeddings", "main"), other])


def test_the_index_stage_says_what_it_chose_and_why(corpus):
    settings = read_manifest(corpus.manifest("index"), "index").settings
    assert settings["factory"] == "Flat" and settings["exact"] and "affordable" in settings["why"]
