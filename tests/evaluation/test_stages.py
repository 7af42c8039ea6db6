"""The stages of evaluation, run as they are: files in, files out, one clear line for a wrong wish."""

import csv
import io
import json

import numpy as np
import pytest

from retro.base.artifacts import read_json, read_manifest
from retro.base.stage import UserError
from retro.evaluation import tables
from tests.evaluation.built import M, measure, stage, summarise


@pytest.fixture(scope="module")
def losses(dataset):
    return measure(dataset)


def test_losses_say_what_they_are(dataset, losses):
    manifest = read_manifest(losses["on"], "losses")
    array = manifest.array("losses.npy")
    assert array.shape == (len(dataset.rows("test")), M) and array.dtype == np.float32
    assert manifest.settings["run"] == "retro-s1" and manifest.settings["neighbours_used"] == 2
    assert manifest.counts["tokens"] == np.isfinite(array).sum()
    assert manifest.counts["nats"] == pytest.approx(np.nansum(array, dtype=np.float64))
    assert set(manifest.facts["inputs"]) == {"../../../../../config.json", "../../../model.json"}


def test_losses_are_the_same_bytes_each_time(dataset, losses, tmp_path):
    before = {mode: path.read_bytes() for mode, path in losses.items()}
    again = measure(dataset)
    assert {mode: path.read_bytes() for mode, path in again.items()} == before


def refused(dataset, *words, split="test", mode="none", run="gpt-s1", settings="{}"):
    given = ("--config", dataset.path, "--model", dataset.folder / "runs" / run / "model.json")
    with pytest.raises(UserError) as error:
        output = dataset.folder / "refused" / "manifest.json"
        stage(
            "retro.evaluation.losses",
            *given,
            "--settings",
            settings,
            "--split",
            split,
            "--mode",
            mode,
            "--output",
            output,
        )
    assert not output.exists()
    for word in words:
        assert word in str(error.value)


def test_neighbours_at_evaluation_are_not_those_of_training(dataset, losses):
    def measured(**settings):
        output = dataset.folder / "fewer" / json.dumps(settings).replace('"', "") / "manifest.json"
        model = dataset.folder / "runs/retro-s1/model.json"
        named = {"--config": dataset.path, "--model": model, "--split": "test", "--mode": "on", "--output": output}
        stage("retro.evaluation.losses", "--settings", json.dumps(settings), *sum(named.items(), ()))
        manifest = read_manifest(output, "losses")
        shown = manifest.settings["neighbours_used"], manifest.settings["retrieved_chunks"]
        return shown, manifest.array("losses.npy")

    usual, same = (
        read_manifest(losses["on"], "losses").array("losses.npy"),
        {"neighbours_used": 2, "retrieved_chunks": 2},
    )
    shown, found = measured(**same)
    assert shown == (2, 2) and np.array_equal(found, usual, equal_nan=True)
    for k, chunks in ((2, 1), (1, 2), (3, 1)):
        shown, found = measured(neighbours_used=k, retrieved_chunks=chunks)
        assert shown == (k, chunks) and np.isfinite(found).sum() == np.isfinite(usual).sum()
        assert not np.array_equal(found, usual, equal_nan=True)
    more = '{"retrieved_chunks": 3}'
    refused(dataset, "retrieved_chunks is 3", "trained with 2", run="retro-s1", mode="on", settings=more)


def test_a_gpt_has_no_retrieval(dataset):
    refused(dataset, "gpt-s1", "'on'", "none", mode="on")


def test_a_retro_is_not_measured_as_a_gpt(dataset):
    refused(dataset, "retro-s1", "on, off, random, shuffled", run="retro-s1")


def test_more_neighbours_than_were_saved_are_refused(dataset):
    refused(dataset, "9", "neighbours.saved", run="retro-s1", mode="on", settings='{"neighbours_used": 9}')


def test_an_empty_split_has_no_losses_and_is_refused_where_it_is_evaluated(dataset, monkeypatch):
    from retro.dataset.dataset import Dataset

    rows = Dataset.rows
    monkeypatch.setattr(Dataset, "rows", lambda self, split: rows(self, split)[: 0 if split == "valid" else None])
    losses = {"none": dataset.folder / "none/valid/manifest.json"}
    model = ("--model", dataset.folder / "runs/gpt-s1/model.json", "--settings", "{}", "--split", "valid")
    stage("retro.evaluation.losses", "--config", dataset.path, *model, "--mode", "none", "--output", losses["none"])
    found = read_manifest(losses["none"], "losses")
    assert found.array("losses.npy").shape == (0, M)
    assert found.counts == {"tokens": 0, "bytes": 0, "nats": 0, "bits_per_byte": None}
    with pytest.raises(UserError, match=r"the valid split is empty.*evaluate\.splits"):
        summarise(dataset, losses, settings={"splits": ["valid"]})


def read(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_summary_and_comparison(dataset, losses):
    summary, comparison, sections = map(read, summarise(dataset, losses))
    assert tuple(summary[0]) == tables.SUMMARY and tuple(comparison[0]) == tables.COMPARISON
    assert tuple(sections[0]) == tables.SECTIONS
    modes = {(row["run"], row["retrieval"]) for row in summary}
    assert modes == {("gpt-s1", "none"), ("retro-s1", "on"), ("retro-s1", "off"), ("retro-s1", "random")}
    for row in summary:
        if row["source"] == "all":
            counts = read_manifest(losses[row["retrieval"]]).counts
            assert float(row["bits_per_byte"]) == pytest.approx(counts["bits_per_byte"], abs=1e-6)
            assert (int(row["tokens"]), int(row["bytes"])) == (counts["tokens"], counts["bytes"])
    off = next(row for row in comparison if row["retrieval"] == "off")
    assert float(off["difference_percent"]) == 0  # untrained twins of one seed: off is the twin, bit for bit
    assert {row["run"] for row in comparison} == {"retro-s1", "retro"}
    assert {row["section"] for row in sections} == {"Geography", "Economy", "Energy"}
    assert {row["source"] for row in sections} == {"atlas"}


def test_each_document_has_its_bits_per_byte(dataset, losses, tmp_path):
    output = dataset.folder / "documents.csv"
    runs = {"gpt-s1": {"twin": None, "seed": 1}, "retro-s1": {"twin": "gpt-s1", "seed": 1}}
    given = ("--config", dataset.path, "--runs", json.dumps(runs), "--settings", '{"bootstrap": 100}')
    files = [part for name in ("summary", "comparison") for part in (f"--{name}", tmp_path / name)]
    stage("retro.evaluation.summarise", *given, "--losses", *losses.values(), *files, "--documents", output)
    rows = read(output)
    assert len({row["document"] for row in rows}) == len(rows)
    for mode, run in (("none", "gpt-s1"), ("on", "retro-s1")):
        bits = sum(float(row[f"{run} {mode}"]) * int(row["bytes"]) for row in rows)
        counts = read_manifest(losses[mode]).counts
        assert bits / counts["bytes"] == pytest.approx(counts["bits_per_byte"], abs=1e-6)
        assert sum(int(row["tokens"]) for row in rows) == counts["tokens"]


def test_losses_of_another_split_are_refused(dataset, losses, tmp_path):
    facts = json.loads(losses["on"].read_text())
    facts["settings"]["split"] = "valid"
    for name in ("losses.npy",):
        (tmp_path / name).write_bytes((losses["on"].parent / name).read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="shape"):
        given = ("--config", dataset.path, "--runs", '{"retro-s1": {"twin": null, "seed": 1}}')
        files = [part for name in ("summary", "comparison", "sections") for part in (f"--{name}", tmp_path / name)]
        settings = ("--settings", '{"splits": ["valid"]}')
        stage("retro.evaluation.summarise", *given, *settings, "--losses", tmp_path / "manifest.json", *files)


def test_sample_shows_both_ways_and_what_was_looked_up(dataset):
    output = dataset.folder / "runs/retro-s1/sample.json"
    settings = {"prompts": 2, "prompt_tokens": M, "new_tokens": M + 4}
    given = ("--config", dataset.path, "--settings", json.dumps(settings), "--output", output)
    stage("retro.generation.sample", *given, "--model", dataset.folder / "runs/retro-s1/model.json")
    found = read_json(output)
    assert found["run"] == "retro-s1" and len(found["samples"]) == 2
    for sample in found["samples"]:
        assert sample["prompt"] and sample["truth"] and sample["document"]["id"]
        assert [lookup["chunk"] for lookup in sample["on"]["lookups"]][:1] == [0]
        assert sample["on"]["lookups"][0]["neighbours"][0]["document"]["id"] != sample["document"]["id"]
        assert "lookups" not in sample["off"]
    first = output.read_bytes()
    stage("retro.generation.sample", *given, "--model", dataset.folder / "runs/retro-s1/model.json")
    assert output.read_bytes() == first


def test_generate_writes_to_the_terminal(dataset, capsys):
    run = dataset.folder / "runs/retro-s1"
    stage("retro.generation.generate", "--run", run, "--prompt", "Total area", "--tokens", 8, "--show")
    out, told = capsys.readouterr()
    assert out.startswith("Total area") and len(out) > len("Total area\n")
    assert "chunk 1 looked up" in told and "score" in told
    stage("retro.generation.generate", "--run", run, "--prompt", "Total area", "--tokens", 8, "--no-retrieval")
    assert capsys.readouterr().out.startswith("Total area")


@pytest.mark.parametrize(("name", "value"), [("--tokens", 0), ("--top-p", 0), ("--temperature", -1)])
def test_generate_refuses_senseless_wishes(dataset, name, value):
    with pytest.raises(UserError, match=name):
        stage("retro.generation.generate", "--run", dataset.folder / "runs/retro-s1", "--prompt", "x", name, value)
