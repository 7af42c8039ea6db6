"""Experiments: which conditions they need, smaller databases, and tables of what was measured."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.config.schema import load
from retro.evaluation.conditions import Condition, fraction_name
from retro.experiments import draw
from retro.experiments.catalogue import CATALOGUE, rows_of
from retro.experiments.draw import recalls
from retro.experiments.settings import ExperimentSettings
from retro.report.read import Run
from retro.report.report_page import read_parts
from retro.retrieval.subsample import first_kept, kept
from retro.training.settings import TrainedRun
from tests.evaluation.built import build_dataset, measure, stage, write_run
from tests.training.toy import run_json


def test_every_condition_of_every_experiment_has_a_name():
    for experiment in CATALOGUE.values():
        for condition in experiment.conditions(ExperimentSettings().offered(["bm25"], used=2, saved=20)):
            assert Condition.parse(condition).name == condition


def test_the_number_trained_with_and_none_are_not_measured_twice():
    def measured(saved):
        return CATALOGUE["neighbours"].conditions(ExperimentSettings().offered([], used=2, saved=saved))

    assert measured(20) == ["on+k1", "on+k5", "on+k10", "on+k20"]
    assert measured(6) == ["on+k1", "on+k5"]


def test_names_of_fractions_are_read_back():
    assert Condition.parse(fraction_name(0.05, 2)).fraction == (0.05, 2)
    assert Condition.parse("bm25").fraction is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.floats(0.05, 0.95), st.integers(1, 5))
def test_sub_sampled_hits_are_those_of_the_smaller_database(seed, share, saved):
    """With every chunk a candidate, the neighbours are what an index of only the kept chunks finds."""
    rng = np.random.default_rng(seed)
    database, queries = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    scores = queries @ database.T
    order = np.argsort(-scores, axis=1, kind="stable")
    found, near = first_kept(order, np.take_along_axis(scores, order, 1), share, seed, saved)
    there = np.flatnonzero(kept(np.arange(40), share, seed))
    small = faiss.IndexFlatIP(8)
    small.add(database[there])
    _, ids = small.search(queries, saved)
    assert np.array_equal(found, np.where(ids >= 0, there[ids] if len(there) else -1, -1))
    assert (np.isneginf(near) == (found < 0)).all()


def test_smaller_shares_are_parts_of_larger_ones():
    ids = np.arange(20_000)
    small, large = kept(ids, 0.1, 1), kept(ids, 0.3, 1)
    assert not (small & ~large).any() and abs(small.mean() - 0.1) < 0.01 and abs(large.mean() - 0.3) < 0.01
    assert not np.array_equal(small, kept(ids, 0.1, 2)) and not kept(np.array([-1]), 1.0, 1).any()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    dataset = build_dataset(tmp_path_factory.mktemp("experiments") / "words")
    models = [write_run(dataset, name) for name in ("gpt-s1", "retro-s1")]
    return dataset, models, measure(dataset)


def subsampled(dataset, share, saved=4):
    output = dataset.folder / f"fractions/database-{share}-s1/test/manifest.json"
    given = ("--candidates", dataset.folder / "neighbours/test/manifest.json", "--output", output)
    stage("retro.retrieval.subsample", "--settings", json.dumps({"share": share, "seed": 1, "saved": saved}), *given)
    return output


def table_of(made, name, *losses):
    dataset, models, usual = made
    folder = dataset.folder / "experiments"
    runs = {"gpt-s1": {"twin": None, "seed": 1}, "retro-s1": {"twin": "gpt-s1", "seed": 1}}
    given = ("--config", dataset.path, "--runs", json.dumps(runs), "--settings", '{"bootstrap": 100}')
    tables = ("--summary", folder / name / "summary.csv", "--comparison", folder / name / "comparison.csv")
    stage("retro.evaluation.summarise", *given, "--losses", *usual.values(), *losses, *tables)
    metrics = [path.parent / "metrics.jsonl" for path in models]
    known = ("--config", dataset.path, "--models", *models, "--metrics", *metrics, "--comparison", tables[-1])
    near = ("--neighbours", dataset.folder / "neighbours/test/manifest.json")
    stage("retro.experiments.draw", "--name", name, *known, *near, "--output", folder / f"{name}.csv")
    for kind in ("svg", "png"):
        assert (folder / f"{name}.{kind}").stat().st_size > 0
    return list(csv.DictReader(io.StringIO((folder / f"{name}.csv").read_text())))


def losses_of(made, condition, *more):
    dataset, models, _ = made
    output = models[1].parent / f"evaluation/test/{condition}/manifest.json"
    given = ("--config", dataset.path, "--model", models[1], "--settings", "{}", "--split", "test")
    stage("retro.evaluation.losses", *given, "--mode", condition, *more, "--output", output)
    return output


def test_more_neighbours_is_a_line_from_off_to_all(made):
    rows = table_of(made, "neighbours", losses_of(made, "on+k1"), losses_of(made, "on+k4"))
    assert [float(row["x"]) for row in rows] == [0, 1, 2, 4]
    assert [row["retrieval"] for row in rows] == ["off", "on+k1", "on", "on+k4"]
    assert len({row["bits_per_byte"] for row in rows}) == 4


def test_a_retrieval_called_as_the_dataset_is_not_taken_for_its_own(made, tmp_path):
    own, found = made[0].folder, {}
    same = own / f"retrievals/{own.name}"
    shutil.copytree(own / "neighbours/test", same / "neighbours/test")
    manifest = same / "neighbours/test/manifest.json"
    facts = json.loads(manifest.read_text())
    facts["counts"]["recall"] = {"1": 0.25}
    manifest.write_text(json.dumps(facts))
    found = recalls([own / "neighbours/test/manifest.json", manifest], own)
    assert found.keys() == {"on", own.name} and found[own.name] == 0.25 != found["on"]


def test_a_very_small_database_is_one_too(made):
    offered = ExperimentSettings(fractions=[0.00001], fraction_seeds=[2]).offered([], used=2, saved=20)
    (name,) = CATALOGUE["database"].conditions(offered)
    assert Condition.parse(name).fraction == (0.00001, 2)
    assert Condition.parse(name).manifest("test", []) == f"fractions/{name}/test/manifest.json"


def test_every_experiment_says_how_its_figure_is_drawn():
    for name, experiment in CATALOGUE.items():
        if experiment.kind == "bars":
            assert experiment.against in draw.AGAINST and not experiment.x, name
        else:
            assert experiment.axis in draw.AXES and experiment.x, name


def test_the_docs_say_how_to_read_every_experiment():
    page = (Path(__file__).resolve().parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    table = page.partition("## Experiments")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(CATALOGUE)


def test_a_smaller_database_is_measured_and_the_whole_one_ends_the_line(made):
    path = subsampled(made[0], 0.5)
    assert read_manifest(path).counts["holes"] > 0
    rows = table_of(made, "database", losses_of(made, "database-0.5-s1", "--neighbours", path))
    assert [float(row["x"]) for row in rows] == [0.5, 1.0]


def test_controls_are_compared_with_retrieval_off(made):
    extra = [losses_of(made, name) for name in ("on+neighbour", "on+continuation", "shuffled")]
    rows = table_of(made, "controls", *extra)
    assert [row["retrieval"] for row in rows] == ["on", "on+neighbour", "on+continuation", "shuffled", "random"]
    assert all(row["off_percent"] for row in rows)


def test_a_model_is_compared_with_other_readers_of_its_neighbours(made):
    dataset, models, usual = made
    given, mixed = ("--config", dataset.path), []
    for number, mode, condition in (
        (1, "on", "on+copy"),
        (0, "none", "none+k2+copy"),
        (0, "none", "none+knn"),
        (0, "none+knn", "none+k2+knn+copy"),
    ):
        fitted, output = (
            models[number].parent / f"evaluation/{part}/manifest.json" for part in (f"valid/{mode}", condition)
        )
        model = ("--model", models[number])
        measured = ("--settings", "{}", "--split", "valid", "--mode", mode, "--output", fitted)
        alone = usual.get(mode) or mixed[-1]
        if mode == "none+knn":  # of valid, too, on which its own weight was fitted
            text = models[number].parent / "evaluation/valid/none/manifest.json"
            parts = ("--losses", text, "--fitted", text, "--mode", mode, "--output", fitted)
            stage("retro.evaluation.knn_lm", *given, *model, *parts)
        else:
            stage("retro.evaluation.losses", *given, *model, *measured)
        beside = ("--losses", alone, "--fitted", fitted, "--mode", condition, "--output", output)
        stage("retro.evaluation.knn_lm" if condition.endswith("knn") else "retro.evaluation.copying", *given,
              *(model if condition.endswith("knn") else ()), *beside)  # fmt: skip
        mixed.append(output)
    for number, mode in ((0, "in-context+k0"), (0, "in-context+k2"), (1, "first-in-context")):
        mixed.append(models[number].parent / f"evaluation/test/{mode}/manifest.json")
        asked = (
            "--model",
            models[number],
            "--settings",
            "{}",
            "--split",
            "test",
            "--mode",
            mode,
            "--output",
            mixed[-1],
        )
        stage("retro.evaluation.losses", *given, *asked)
    rows = table_of(made, "copying", *mixed)
    assert {row["label"]: (row["retrieval"], row["x"]) for row in rows} == {
        "GPT": ("none", "0"),
        "RETRO, retrieval off": ("off", "0"),
        "GPT + copier, k = 2": ("none+k2+copy", "2"),
        "kNN-LM": ("none+knn", ""),
        "kNN-LM + copier, k = 2": ("none+k2+knn+copy", "2"),
        "GPT, neighbours in its window, k = 0": ("in-context+k0", "0"),
        "GPT, neighbours in its window, k = 2": ("in-context+k2", "2"),
        "RETRO, k = 2": ("on", "2"),
        "RETRO++, first neighbour in its window, k = 2": ("first-in-context", "2"),
        "RETRO + copier, k = 2": ("on+copy", "2"),
    }
    (gpt, *others), sizes = rows, {row["retrieval"]: float(row["bits_per_byte"]) for row in rows}
    assert (
        sizes["on+copy"] < sizes["on"] and sizes["none+k2+copy"] < sizes["none"] and sizes["none+knn"] < sizes["none"]
    )
    for row in others:
        change = 100 * (sizes[row["retrieval"]] / sizes["none"] - 1)
        assert row["twin"] == "gpt" and float(row["difference_percent"]) == pytest.approx(change, abs=1e-3)
        assert row["low"] == row["high"] == ""  # of so few documents there is no interval
    assert gpt["difference_percent"] == ""
    figure = (dataset.folder / "experiments/copying.svg").read_text()
    assert all(name in figure for name in ("kNN-LM", "RETRO + copier", "GPT, neighbours in its window", "GPT + copier"))


@pytest.mark.parametrize(("name", "count"), [("seeds", 2), ("retrievers", 1), ("architecture", 1), ("cost", 2)])
def test_what_needs_no_other_losses(made, name, count):
    assert len(table_of(made, name)) == count


@pytest.mark.parametrize(("shown", "wanted"), [(None, [2, 5]), (1, [1, 5])], ids=["as in training", "as evaluated"])
def test_neighbours_are_counted_as_they_were_shown(shown, wanted):
    """`evaluate.neighbours_used` shows every run as many, whatever it was trained with."""
    facts = json.loads(run_json(neighbours_used=2))
    lengths = {"chunk_length": 8, "retrieved_length": 16, "seq_length": 32, "vocab_size": 257}
    runs = {"retro": Run(TrainedRun.of({**facts, "recorded": lengths}, "model.json"), {}, [])}
    rows = [
        {"run": "retro", "retrieval": mode, "source": "all", "seed": "all", "split": "test"} for mode in ("on", "on+k5")
    ]
    assert [row["x"] for row in rows_of("neighbours", rows, runs, {}, shown)] == wanted


@pytest.mark.parametrize(("layers", "shown"), [("every-third", "3, 6"), ("paper", "6"), ([2, 5], "2, 5")])
def test_a_shape_names_the_layers_whichever_way_they_were_given(layers, shown):
    facts = json.loads(run_json(model={"layers": 6, "cca_layers": layers}))
    lengths = {"chunk_length": 8, "retrieved_length": 16, "seq_length": 32, "vocab_size": 257}
    runs = {"retro": Run(TrainedRun.of({**facts, "recorded": lengths}, "model.json"), {}, [])}
    row = {"run": "retro", "retrieval": "on", "source": "all", "seed": "all", "split": "test"}
    (found,) = rows_of("architecture", [row], runs, {})
    assert found["label"] == f"retro: cross-attention in {shown}; encoder of 1"


def test_the_section_shows_each_experiment_and_a_page_takes_it(made):
    folder = made[0].folder
    for name in ("seeds", "cost"):
        table_of(made, name)
    tables = [folder / f"experiments/{name}.csv" for name in ("seeds", "cost")]
    stage("retro.experiments.section", "--tables", *tables, "--output", folder / "parts/experiments.html")
    parts = {part.name: part for part in read_parts([folder / "parts/experiments.html"])}
    html = parts["experiments"].html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert html.count("<figcaption>") == 2 and len(ids) == len(set(ids))
    assert all("experiment-" in name for name in ids), "the page has figures of the same names"
    assert parts["leakage"].html == "" and parts["leakage"].target == "snakemake leakage"


def test_a_part_that_the_report_does_not_know_is_refused(tmp_path):
    (tmp_path / "other.html").write_text("<p>")
    with pytest.raises(UserError, match="other"):
        read_parts([tmp_path / "other.html"])


def test_too_few_candidates_are_refused(made):
    with pytest.raises(UserError, match=r"experiments\.candidates"):
        subsampled(made[0], 0.5, saved=50)


def test_the_experiments_config_shares_the_default_runs():
    ours, default = load("config/experiments.yaml"), load("config/config.yaml")
    assert ours.dataset == default.dataset and len(ours.seeds) >= 2
    mine = ours.models()
    assert all(mine[name] == run for name, run in default.models().items())


def test_emergence_has_a_point_for_each_validation_by_tokens():
    lines = [{"step": step, "tokens": 100 * step, "loss": 1.0, "seconds": 1.0} for step in (1, 2, 3)]
    for step, on in ((1, 4.0), (3, 3.8)):
        both = ((on, "on"), (4.0, "off"))
        lines += [
            {"step": step, "split": "valid", "retrieval": mode, "loss": loss, "bits_per_byte": loss / 4}
            for loss, mode in both
        ]
    lengths = {"chunk_length": 8, "retrieved_length": 16, "seq_length": 32, "vocab_size": 64}
    settings = TrainedRun.of({**json.loads(run_json("retro")), "recorded": lengths}, "retro")
    found = rows_of("emergence", [], {"retro": Run(settings, {}, lines)}, {})
    assert [(row["x"], round(row["off_percent"], 6), row["bits_per_byte"]) for row in found] == [
        (100, 0.0, 1.0),
        (300, -5.0, 0.95),
    ]
