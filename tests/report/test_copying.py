"""copying.csv, its figure and section, from the losses of two untrained models with and without a copier."""

import csv
import io
import json
import re

import numpy as np
import pytest

from retro.base.artifacts import read_manifest, write_json
from retro.evaluation.bits_per_byte import ENOUGH
from retro.report import copying, story
from retro.report.copying import MATCHES, by_copier, part, sentences
from retro.report.read import read_csv, where
from retro.report.readers import BOTH, COPIER, RETRO
from retro.report.report_page import read_parts
from tests.evaluation.built import stage

RUNS = {"gpt-s1": {"twin": None, "seed": 1}, "retro-s1": {"twin": "gpt-s1", "seed": 1}}
MODELS = {"gpt-s1": ["none"], "retro-s1": ["on", "off", "on+k4"]}
MIXED = {
    "gpt-s1": {"none+k2+copy": "none", "none+k4+copy": "none"},
    "retro-s1": {"on+copy": "on", "on+k4+copy": "on+k4"},
}


@pytest.fixture(scope="module")
def losses(report):
    """Condition → manifest, on the test split."""
    found, config = {}, ("--config", report.dataset.path)

    def place(run, split, mode):
        return report.folder / "runs" / run / "evaluation" / split / mode / "manifest.json"

    for run, modes in MODELS.items():
        model = ("--model", report.folder / "runs" / run / "model.json", "--settings", "{}")
        for split in ("valid", "test"):
            for mode in modes:
                found[mode] = place(run, split, mode)
                where = ("--split", split, "--mode", mode, "--output", found[mode])
                stage("retro.evaluation.losses", *config, *model, *where)
        for mode, alone in MIXED[run].items():
            found[mode] = place(run, "test", mode)
            given = ("--losses", place(run, "test", alone), "--fitted", place(run, "valid", alone))
            stage("retro.evaluation.copying", *config, *given, "--mode", mode, "--output", found[mode])
    return found


def make(report, losses, folder, *more):
    """Run the stage; its rows."""
    given = ("--config", report.dataset.path, "--losses", *losses.values(), "--runs", json.dumps(RUNS))
    files = ("--table", folder / "copying.csv", "--output-folder", folder / "figures")
    part = ("--part", folder / "parts/copying.html")
    stage("retro.report.copying", *given, "--settings", '{"bootstrap": 200}', *files, *part, *more)
    return read_csv(folder / "copying.csv")


@pytest.fixture(scope="module")
def made(report, losses, tmp_path_factory):
    folder = tmp_path_factory.mktemp("copying")
    settings = json.dumps({"nearest": 10, "shown": 2, "retrieved_chunks": 2})
    overlap = folder / "overlap/test/manifest.json"
    given = ("--config", report.dataset.path, "--settings", settings, "--split", "test", "--output", overlap)
    stage("retro.evaluation.leakage", *given)
    return folder, make(report, losses, folder, "--overlap", overlap)


def test_the_table_has_every_condition_with_its_bits_per_byte(made, losses):
    folder, rows = made
    assert tuple(next(csv.reader(io.StringIO((folder / "copying.csv").read_text())))) == copying.COLUMNS
    whole = where(rows, kind="all")
    order = ["none", "off", "none+k2+copy", "none+k4+copy", "on", "on+k4", "on+copy", "on+k4+copy"]
    assert [row["retrieval"] for row in whole] == order
    assert [row["k"] for row in whole] == [0, 0, 2, 4, 2, 4, 2, 4]
    for row in whole:
        counts = read_manifest(losses[row["retrieval"]]).counts
        assert row["bits_per_byte"] == pytest.approx(counts["bits_per_byte"], abs=1e-6)
        assert (row["tokens"], row["bytes"]) == (counts["tokens"], counts["bytes"])
        assert row["nats"] == pytest.approx(counts["nats"] / counts["tokens"], abs=1e-6)


def test_each_is_compared_with_the_gpt_and_with_the_copier_of_as_many_neighbours(made):
    whole = {row["retrieval"]: row for row in where(made[1], kind="all")}
    for name, row in whole.items():
        against = {"difference_percent": "none", "copier_percent": f"none+k{row['k']:.0f}+copy"}
        for column, other in against.items():
            if name == "none" or other == name or other not in whole:
                assert row[column] is None, (name, column)
            else:
                wanted = 100 * (row["bits_per_byte"] / whole[other]["bits_per_byte"] - 1)
                assert row[column] == pytest.approx(wanted, abs=1e-3), (name, column)
    low, high = whole["on"]["copier_low"], whole["on"]["copier_high"]
    assert low is None if whole["on"]["units"] < ENOUGH else low < whole["on"]["copier_percent"] < high


def test_matches_are_those_of_the_copier_and_add_up(made, losses):
    for k, names in (
        (2, ["none", "none+k2+copy", "on", "on+copy"]),
        (4, ["none", "none+k4+copy", "on+k4", "on+k4+copy"]),
    ):
        rows = [row for row in where(made[1], kind="match") if row["k"] == k]
        assert list(dict.fromkeys(row["retrieval"] for row in rows)) == names
        assert {(row["least"], row["most"]) for row in rows} <= set(MATCHES)
        manifest = read_manifest(losses[f"none+k{k}+copy"])
        matched = manifest.counts["matched"]
        for name in names:
            mine, array = where(rows, retrieval=name), read_manifest(losses[name]).array("losses.npy")
            assert [row["tokens"] for row in mine] == [
                total for least, most in MATCHES if (total := sum(matched[least : most + 1]))
            ]
            total = sum(row["tokens"] * row["nats"] for row in mine)
            assert total == pytest.approx(np.nansum(array, dtype=np.float64), rel=1e-5)
        alone, copied = (where(rows, retrieval=name)[0] for name in names[:2])
        assert alone["least"] == 0 and alone["nats"] == copied["nats"], "where nothing matches nothing is mixed"


def test_chunks_are_told_by_what_they_share_with_what_the_run_is_shown(made, report):
    rows = where(made[1], kind="overlap")
    names = list(dict.fromkeys(row["retrieval"] for row in rows))
    assert names == ["none", "off", "none+k2+copy", "on", "on+copy"], (
        "of as many neighbours as overlap was measured with"
    )
    for name in names:
        mine = where(rows, retrieval=name)
        assert sum(row["chunks"] for row in mine) == len(report.dataset.rows("test"))
        size = sum(row["bytes"] for row in mine)
        bits = sum(row["bits_per_byte"] * row["bytes"] for row in mine)
        whole = where(made[1], kind="all", retrieval=name)[0]
        assert size == whole["bytes"] and bits / size == pytest.approx(whole["bits_per_byte"], abs=1e-5)


def test_without_overlap_there_are_no_rows_of_it_and_the_rest_is_the_same(made, report, losses, tmp_path):
    rows = make(report, losses, tmp_path)
    assert rows == [row for row in made[1] if row["kind"] != "overlap"]


def test_the_same_bytes_each_time(made, report, losses, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        make(report, losses, folder)
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.*")) for folder in (first, second)]
    assert files[0] == files[1] and len(files[0]) == 4
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files[0])


def test_the_section_tells_of_every_reader_and_a_page_takes_it(made):
    folder, _ = made
    text = (folder / "parts/copying.html").read_text()
    assert all(f"<td>{reader.label}</td>" in text for reader in (COPIER, RETRO, BOTH)) and 'id="figure-copying"' in text
    assert len(re.findall("<details>", text)) == 3, "two numbers of neighbours by match, one table by overlap"
    assert {part.name: part for part in read_parts([folder / "parts/copying.html"])}["copying"].html == text


def test_sentences_say_what_a_copier_gives_beside_retro(made):
    rows = made[1]
    whole = {row["retrieval"]: row for row in where(rows, kind="all")}
    own, more = sentences(rows)
    assert own.startswith("With 2 neighbours, as in training,") and more.startswith("With 4 neighbours a copier")
    for text, names in ((own, ["none", "none+k2+copy", "on", "on+copy"]), (more, ["none", "none+k4+copy", "on+k4"])):
        assert all(f"{whole[name]['bits_per_byte']:.3f}" in text for name in names)


def unfitted(losses, folder):
    """The same losses, those with a copier without weights: nothing in the valid split matched."""
    found = dict(losses)
    for mode, path in losses.items():
        if mode.endswith("+copy"):
            facts = json.loads(path.read_text())
            facts["counts"]["weights"], facts["counts"]["fitted_on"] = [0.0] * 8, [90, *[0] * 8]
            found[mode] = folder / mode / "manifest.json"
            for name in facts["files"]:
                found[mode].parent.mkdir(parents=True, exist_ok=True)
                (found[mode].parent / name).write_bytes((path.parent / name).read_bytes())
            write_json(found[mode], facts)
    return found


def test_a_copier_that_could_not_be_fitted_is_left_out_with_a_sentence(report, losses, tmp_path):
    rows = make(report, unfitted(losses, tmp_path / "unfitted"), tmp_path)
    assert {row["retrieval"] for row in rows} == {"none", "off", "on", "on+k4"} and not by_copier(rows)
    text = (tmp_path / "parts/copying.html").read_text()
    assert "Nothing was mixed" in text and "<table>" not in text
    assert story.copier(rows) is None and part(rows, tmp_path / "copying.svg")


def test_a_copier_of_some_numbers_of_neighbours_is_told_of_alone(report, losses, tmp_path):
    one = {**unfitted(losses, tmp_path / "unfitted"), **{mode: losses[mode] for mode in ("none+k4+copy", "on+k4+copy")}}
    rows = make(report, one, tmp_path)
    assert list(by_copier(rows)) == [4] and len(sentences(rows)) == 1 and story.copier(rows) is None


def test_the_headline_says_what_a_copier_gives(made, report, monkeypatch):
    monkeypatch.setattr(story, "READ", 0)  # the words that were trained on here are few, and the documents
    monkeypatch.setattr(story, "ENOUGH", 0)
    rows = made[1]
    row = story.copier(rows)
    assert row["retrieval"] == "none+k2+copy"
    comparison = read_csv(report.table("comparison"))
    first, alone = (story.headline(comparison, 80, 80, given)[0] for given in (row, None))
    assert first.startswith(alone[:-1]) and first.endswith(f"trained on nothing needs {story.amount(row)}.")
    page = report.page("--copying", made[0] / "copying.csv", "--parts", made[0] / "parts/copying.html")
    assert first[first.index("; the twin") :] in page and f"<b>{row['bits_per_byte']:.3f}</b>" in page
    assert "trained on nothing needs" not in report.page()


def test_a_copier_of_another_split_is_not_in_the_headline(made, report, tmp_path):
    text = (made[0] / "copying.csv").read_text()
    (tmp_path / "copying.csv").write_text(text.replace(",test,", ",valid,"))
    assert "trained on nothing needs" not in report.page("--copying", tmp_path / "copying.csv")


def test_a_copier_that_adds_nothing_is_shown_to_add_nothing(report, losses, tmp_path):
    """Weights of 0 that were fitted: a model that copies by itself."""
    found = unfitted(losses, tmp_path / "zero")
    for mode, path in found.items():
        if mode.endswith("+copy"):
            facts = json.loads(path.read_text())
            facts["counts"]["fitted_on"] = [0, *[90] * 8]
            write_json(path, facts)
    assert {row["retrieval"] for row in make(report, found, tmp_path)} == set(losses)
