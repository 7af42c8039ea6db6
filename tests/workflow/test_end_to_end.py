"""The tiny pipeline from text to report, on real text, and what it must have found."""

import json

import numpy as np
import pandas as pd
import pytest

from retro.dataset.dataset import Dataset
from retro.report import started
from tests.workflow.conftest import ROOT


@pytest.fixture(scope="module")
def dataset(finished):
    return Dataset.open(finished.results("config.json"))


def documents(dataset, rows):
    return [dataset.store.document(int(row))["id"] for row in rows]


def test_everything_promised_is_there(finished):
    for name in ["summary.csv", "comparison.csv", "copying.csv", "neighbours.html", "report.html", "figures/loss.svg"]:
        assert finished.results(name).stat().st_size > 0, name


def test_the_report_says_when_by_what_and_on_what_it_was_made(finished):
    first = started.read(finished.results(started.NAME))[0]
    assert first["command"].startswith("snakemake ") and "core" in first["machine"]
    page = finished.results("report.html").read_text(encoding="utf-8")
    assert first["date"] in page and "total time" in page
    assert 'id="figure-sections"' not in page, "of one kind of text it says what another figure says"
    for name in ("loss", "cost", "neighbours"):
        assert finished.results(f"figures/{name}.csv").stat().st_size > 0


def test_summary_has_the_promised_rows(finished):
    summary = pd.read_csv(finished.results("summary.csv"))
    wanted = ["run", "model", "seed", "retrieval", "split", "source", "tokens", "bytes", "bits_per_byte", "perplexity"]
    assert set(wanted) <= set(summary.columns)
    whole = summary[summary["source"] == "all"]
    assert set(zip(whole["model"], whole["retrieval"], strict=True)) == {
        ("gpt", "none"), ("retro", "on"), ("retro", "off"), ("retro", "random"),
    }  # fmt: skip
    assert whole["bits_per_byte"].between(0.5, 8).all()
    assert whole["bytes"].nunique() == 1, "all models are scored on the same bytes"


def test_a_gpt_that_copies_stands_beside_retro(finished):
    """The planted passages of the tiny corpus are there to be copied, and weights were fitted on its valid split."""
    table = pd.read_csv(finished.results("copying.csv"))
    whole = table[table["kind"] == "all"].set_index("retrieval")
    assert list(whole.index) == [
        "none", "off", "none+k2+copy", "none+k20+copy", "on", "on+k20", "on+copy", "on+k20+copy",
    ]  # fmt: skip
    summary = pd.read_csv(finished.results("summary.csv"))
    for mode in ("none", "on", "off"):
        wanted = summary[(summary["source"] == "all") & (summary["retrieval"] == mode)]["bits_per_byte"]
        assert whole.loc[mode, "bits_per_byte"] == wanted.item()
    assert (whole.loc[["none+k2+copy", "none+k20+copy", "on+copy", "on+k20+copy"], "difference_percent"] < 0).all()
    page = finished.results("report.html").read_text(encoding="utf-8")
    assert 'id="figure-copying"' in page and "<h1>Too little was trained on to tell what retrieval buys.</h1>" in page


@pytest.mark.parametrize(
    ("condition", "jobs"),
    [
        ("gpt-s1/evaluation/test/none+k5+copy", {"mixed"}),
        ("retro-s1/evaluation/test/on+k5+copy", {"losses", "mixed"}),
        ("gpt-s1/evaluation/test/none+knn", {"knn"}),
        ("gpt-s1/evaluation/test/none+k64+knn", {"knn"}),
        ("gpt-s1/evaluation/test/in-context+k1", {"losses"}),
        ("gpt-s1/evaluation/test/in-context+k1+copy", {"losses", "mixed"}),
    ],
)
def test_a_condition_is_mixed_from_the_models_own_losses(finished, condition, jobs):
    assert finished.planned(f"results/tiny/runs/{condition}/manifest.json") == jobs


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_neighbour_is_never_of_the_same_document(dataset, split):
    rows, ids = dataset.rows(split), dataset.neighbour_ids(split)
    own = dataset.store.chunks(rows)["document"]
    source = dataset.store.source(rows)
    neighbours = dataset.neighbour_rows(ids)
    real = neighbours >= 0
    assert real.any(axis=1).all(), "every chunk has neighbours"
    same = (dataset.store.chunks(np.maximum(neighbours, 0))["document"] == own[:, None]) & (
        dataset.store.source(np.maximum(neighbours, 0)) == source[:, None]
    )
    assert not (same & real).any()


def test_no_evaluated_document_is_in_the_database(dataset):
    database = set(documents(dataset, dataset.database))
    for split in ["valid", "test"]:
        assert not database & set(documents(dataset, dataset.rows(split)))


def test_planted_passages_are_found_as_neighbours(dataset):
    truth = json.loads((ROOT / "data/tiny_truth.json").read_text(encoding="utf-8"))
    database = set(documents(dataset, dataset.database))
    tried = found = 0
    for split in ["train", "valid", "test"]:
        rows = dataset.rows(split)
        owners = np.array(documents(dataset, rows))
        for passage in truth["planted"]:
            if passage["from"] not in database or passage["into"] not in owners:
                continue
            tried += 1
            positions = np.flatnonzero(owners == passage["into"])
            neighbours = dataset.neighbour_rows(dataset.neighbour_ids(split)[positions][:, :5])
            found += passage["from"] in documents(dataset, neighbours[neighbours >= 0])
    assert tried >= 3
    assert found == tried


def test_a_second_run_has_nothing_to_do(finished):
    assert finished.planned() == set()


def test_verify_finds_all_in_order_and_names_a_flipped_byte(finished, tmp_path):
    assert finished.run("python", "-m", "retro.tools.verify", "results/tiny").returncode == 0
    copy = finished.clone(tmp_path / "copy")
    path = copy.results("neighbours/train/ids.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    done = copy.run("python", "-m", "retro.tools.verify", "results/tiny")
    assert done.returncode == 1
    assert "neighbours/train/ids.npy: content changed" in done.stdout
    assert "Traceback" not in done.stdout


def test_training_refuses_a_flipped_byte_of_the_neighbours(finished, tmp_path):
    copy = finished.clone(tmp_path / "copy")
    path = copy.results("neighbours/train/ids.npy")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    copy.results("runs/retro-s1/model.json").unlink()
    done = copy.snakemake("--rerun-triggers", "mtime", "--until", "train")
    assert done.returncode != 0
    assert "neighbours/train/ids.npy: content changed" in done.stdout


def test_the_same_inputs_give_the_same_bytes(finished, tmp_path):
    """A second project, made from nothing, has the same weights and the same neighbours, to the byte."""
    again = type(finished).create(tmp_path / "again")
    done = again.snakemake("--until", "train")
    assert done.returncode == 0, done.stdout[-4000:]
    names = [
        "tokens/tiny/tokens.bin",
        "neighbours/train/ids.npy",
        "config-retro.json",
        "runs/retro-s1/model.safetensors",
    ]
    for name in names:
        assert again.results(name).read_bytes() == finished.results(name).read_bytes(), name
