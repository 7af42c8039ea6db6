"""Overlap lengths are those of brute force, planted passages are found, and filtering adds up."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.artifacts import read_manifest, write_text
from retro.base.stage import UserError
from retro.evaluation.leakage import common_run, ratio
from retro.report.leakage import first, sentence
from retro.report.read import read_csv
from tests.evaluation.built import measure, stage, summarise


def brute(chunk, neighbours):
    """The longest run that a chunk shares with one of its neighbours, by trying all."""
    best = 0
    for neighbour in neighbours:
        for start in range(len(chunk)):
            for stop in range(start + best + 1, len(chunk) + 1):
                run = chunk[start:stop]
                if any(neighbour[at : at + len(run)] == run for at in range(len(neighbour) - len(run) + 1)):
                    best = len(run)
    return best


def padded(lists, width):
    tokens, real = np.zeros((len(lists), width), np.int64), np.zeros((len(lists), width), bool)
    for row, tokens_of in enumerate(lists):
        tokens[row, : len(tokens_of)], real[row, : len(tokens_of)] = tokens_of, True
    return tokens, real


small = st.lists(st.integers(0, 2), max_size=7)
wide = st.lists(st.integers(0, 2), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(small, st.tuples(wide, wide, wide)), min_size=1, max_size=5))
def test_runs_equal_brute_force(cases):
    chunks, real = padded([chunk for chunk, _ in cases], 7)
    near = [padded(neighbours, 12) for _, neighbours in cases]
    found = common_run(chunks, real, np.stack([n for n, _ in near]), np.stack([s for _, s in near]))
    assert found.tolist() == [brute(chunk, neighbours) for chunk, neighbours in cases]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_planted_run_is_found_whole(data):
    m, r = 16, 32
    length = data.draw(st.integers(0, m))
    at, to = data.draw(st.integers(0, m - length)), data.draw(st.integers(0, r - length))
    chunk, neighbours = np.arange(m), 100 + np.arange(2 * r).reshape(2, r)
    neighbours[1, to : to + length] = chunk[at : at + length]
    everything = np.ones((1, 2, r), bool)
    assert common_run(chunk[None], np.ones((1, m), bool), neighbours[None], everything).tolist() == [length]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    chunks, near = rng.integers(0, 4, (20, 16)), rng.integers(0, 4, (20, 3, 32))
    real, seen = rng.random(chunks.shape) < 0.9, rng.random(near.shape) < 0.9
    whole = common_run(chunks, real, near, seen)
    monkeypatch.setattr("retro.retrieval.filter.CELLS", 1)
    assert np.array_equal(common_run(chunks, real, near, seen), whole)


@pytest.fixture(scope="module")
def overlap(dataset):
    output = dataset.folder / "overlap/test/manifest.json"
    given = ("--config", dataset.path, "--settings", json.dumps({"nearest": 10, "shown": 2, "retrieved_chunks": 2}))
    stage("retro.evaluation.leakage", *given, "--split", "test", "--output", output)
    return read_manifest(output, "overlap")


@pytest.fixture(scope="module")
def table(dataset, overlap):
    return measured_table(dataset, overlap, dataset.folder / "leakage.csv")


def measured_table(dataset, overlap, output):
    losses = measure(dataset)
    tables = summarise(dataset, losses)
    runs = {"gpt-s1": {"twin": None, "seed": 1}, "retro-s1": {"twin": "gpt-s1", "seed": 1}}
    given = ("--config", dataset.path, "--losses", *losses.values(), "--overlap", overlap.path)
    more = ("--runs", json.dumps(runs), "--settings", '{"bootstrap": 100, "bootstrap_unit": "group"}')
    stage("retro.evaluation.filtered", *given, *more, "--output", output)
    return read(output), read(tables[0])


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_each_overlap_is_with_its_own_text(dataset, overlap):
    """Against brute force, on the real neighbours: the shown ones, and the nearest of the training chunks."""
    rows, store = dataset.rows("test"), dataset.store
    vectors = [dataset.manifest(f"embeddings/{s}/manifest.json").array("embeddings.npy") for s in dataset.sources]
    vectors, train = np.concatenate(vectors).astype(np.float64), dataset.rows("train")
    shown = dataset.neighbour_rows(np.array(dataset.neighbour_ids("test"))[:, :2])
    for position in range(0, len(rows), 11):
        tokens, real = store.tokens(rows[position])
        scores = vectors[train] @ vectors[rows[position]]
        near = train[np.lexsort((train, -np.round(scores, 12)))[:10]]
        for name, neighbours in (("training", near), ("shown", shown[position])):
            texts, seen = store.retrieved(neighbours, 2)
            lists = [text[mask].tolist() for text, mask in zip(texts, seen, strict=True)]
            assert overlap.array(f"{name}.npy")[position] == brute(tokens[real].tolist(), lists), name


def test_an_open_book_overlaps_where_training_data_does_not(overlap):
    assert overlap.counts["mean_ratio_shown"] != overlap.counts["mean_ratio_training"]


def test_all_chunks_give_the_unfiltered_figure(table):
    rows, summary = table
    for row in rows:
        if row["kind"] == "up to" and float(row["alpha"]) == 1:
            whole = next(s for s in summary if s["retrieval"] == row["retrieval"] and s["source"] == "all")
            assert row["bits_per_byte"] == whole["bits_per_byte"] and row["bytes"] == whole["bytes"]


def test_buckets_add_up_and_curves_grow(table):
    rows = [row for row in table[0] if row["retrieval"] == "on"]
    for overlap in ("training", "shown"):
        mine = [row for row in rows if row["overlap"] == overlap]
        counts = [int(row["chunks"]) for row in mine if row["kind"] == "up to"]
        assert counts == sorted(counts)
        assert sum(int(row["chunks"]) for row in mine if row["kind"] == "bucket") == counts[-1]


def test_chunks_are_told_apart_by_the_age_of_what_was_read(dataset, overlap, table, monkeypatch, tmp_path):
    """Days that follow from the documents' numbers; a chunk that begins a document has none."""

    def dates(chunks):
        return (40 * chunks["document"].astype(np.int64) % 90 - 10) * 86_400

    assert not [row for row in table[0] if row["kind"] == "age"]
    monkeypatch.setattr("retro.evaluation.filtered.dates_of", dates)
    rows = [row for row in measured_table(dataset, overlap, tmp_path / "leakage.csv")[0] if row["kind"] == "age"]
    on = {(row["over"], row["alpha"]): row for row in rows if row["retrieval"] == "on"}
    days, split = np.concatenate(list(map(dates, dataset.store.tables))) / 86_400, dataset.rows("test")
    wanted = dict.fromkeys([("", "0.0"), ("0.0", "30.0"), ("30.0", "365.0")], 0)
    near = dataset.neighbour_rows(np.array(dataset.neighbour_ids("test"))[:, :2])
    for before, own, read in zip(split, split[1:], near, strict=False):
        if dataset.store.following(np.array([before]))[0] == own and (read >= 0).any():
            age = days[own] - days[read[read >= 0]].mean()
            wanted[("", "0.0") if age <= 0 else ("0.0", "30.0") if age <= 30 else ("30.0", "365.0")] += 1
    assert {key: int(row["chunks"]) for key, row in on.items()} == wanted and min(wanted.values()) > 0
    assert {row["overlap"] for row in rows} == {"shown"}
    part = tmp_path / "parts/leakage.html"
    given = ("--table", tmp_path / "leakage.csv", "--output-folder", tmp_path / "figures", "--part", part)
    stage("retro.report.leakage", *given)
    text = part.read_text()
    assert "By age of what was read" in text and "30 … 365 days" in text and text.count("the same date, or later") == 1


def test_the_section_is_drawn_and_says_what_remains(dataset, table, tmp_path):
    part = tmp_path / "parts/leakage.html"
    given = ("--table", dataset.folder / "leakage.csv", "--output-folder", tmp_path / "figures", "--part", part)
    stage("retro.report.leakage", *given)
    assert (tmp_path / "figures/leakage.png").stat().st_size > 0
    text, told = part.read_text(), "retrieval changes bits per byte"
    assert "figure-leakage" in text and told not in text  # too few documents for an interval, so no sentence
    rows = read_csv(dataset.folder / "leakage.csv")
    known = [{**row, "low": -2.0, "high": -1.0} if row["difference_percent"] is not None else row for row in rows]
    assert told in sentence(first(known)) and "(−2.0 … −1.0)" in sentence(first(known))


def test_without_a_twin_the_section_says_nothing(tmp_path):
    assert sentence(first([])) == ""
    write_text(tmp_path / "leakage.csv", "run,twin,retrieval,split,overlap,kind\n")
    given = ("--table", tmp_path / "leakage.csv", "--output-folder", tmp_path, "--part", tmp_path / "leakage.html")
    stage("retro.report.leakage", *given)


@pytest.fixture(scope="module")
def wide(dataset, table):
    """Losses of a run that is shown 2 neighbours, of one that is shown 4, of their twin; the table; the overlap."""
    folder, losses = dataset.folder / "runs", []
    shutil.copytree(folder / "retro-s1", folder / "wide-s1", ignore=shutil.ignore_patterns("evaluation"))
    facts = json.loads((folder / "wide-s1/model.json").read_text())
    facts["settings"]["name"], facts["settings"]["train"]["neighbours_used"] = "wide-s1", 4
    write_text(folder / "wide-s1/model.json", json.dumps(facts))
    for name, mode in (("gpt-s1", "none"), ("retro-s1", "on"), ("wide-s1", "on")):
        losses.append(folder / name / "evaluation/test" / mode / "manifest.json")
        given = ("--config", dataset.path, "--model", folder / name / "model.json", "--settings", "{}")
        stage("retro.evaluation.losses", *given, "--split", "test", "--mode", mode, "--output", losses[-1])
    output = dataset.folder / "both/overlap/test/manifest.json"
    settings = {"nearest": 10, "shown": 2, "retrieved_chunks": 2, "others": {"shown-4x2": [4, 2]}}
    given = ("--config", dataset.path, "--settings", json.dumps(settings), "--split", "test", "--output", output)
    stage("retro.evaluation.leakage", *given)
    yield losses, filtered(dataset, losses, output), read_manifest(output, "overlap")
    shutil.rmtree(folder / "wide-s1")


def filtered(dataset, losses, overlap):
    """Rows of leakage.csv of the runs gpt-s1, retro-s1 and wide-s1."""
    runs = {"gpt-s1": {"twin": None, "seed": 1}} | {f"{n}-s1": {"twin": "gpt-s1", "seed": 1} for n in ("retro", "wide")}
    given = ("--config", dataset.path, "--losses", *losses, "--overlap", overlap, "--runs", json.dumps(runs))
    more = (
        "--settings",
        '{"bootstrap": 100, "bootstrap_unit": "group"}',
        "--output",
        overlap.parents[2] / "leakage.csv",
    )
    stage("retro.evaluation.filtered", *given, *more)
    return read(overlap.parents[2] / "leakage.csv")


def test_each_run_is_filtered_by_the_neighbours_it_is_shown_itself(dataset, wide):
    _, rows, overlap = wide
    lengths = dataset.store.chunks(dataset.rows("test"))["length"]
    for run, name in (("retro", "shown"), ("wide", "shown-4x2")):
        mine = [row for row in rows if row["run"] == run and row["overlap"] != "training" and row["kind"] == "up to"]
        assert {row["overlap"] for row in mine} == {name}
        ratios = ratio(overlap.array(f"{name}.npy"), lengths)
        for row in mine:
            assert int(row["chunks"]) == (ratios <= float(row["alpha"])).sum()
    assert (overlap.array("shown-4x2.npy") >= overlap.array("shown.npy")).all()
    assert (overlap.array("shown-4x2.npy") > overlap.array("shown.npy")).any()


def test_the_twin_stands_beside_every_run_and_what_is_remembered_is_told_once(wide):
    places = [
        row["overlap"] for row in wide[1] if row["run"] == "gpt" and row["kind"] == "up to" and row["alpha"] == "1.0"
    ]
    assert sorted(places) == ["shown", "shown-4x2", "training"]


def test_runs_that_are_shown_the_same_are_filtered_as_before(table, wide):
    """What a third run sees changes no row of the others."""
    assert [row for row in wide[1] if row["run"] == "retro"] == [
        {**row, "off_percent": "", "off_low": "", "off_high": ""} for row in table[0]
        if row["run"] == "retro" and row["retrieval"] == "on"
    ]  # fmt: skip


def test_a_run_that_is_shown_something_else_than_was_measured_is_refused(dataset, overlap, wide):
    with pytest.raises(UserError, match=r"measured with .* \[\(2, 2\)\], but wide-s1 was shown \(4, 2\)"):
        filtered(dataset, wide[0], overlap.path)


def test_ratio_is_of_the_chunks_own_tokens():
    assert ratio(np.array([4, 4]), np.array([8, 4])).tolist() == [0.5, 1.0]
