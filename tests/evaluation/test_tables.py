"""The rows of summary, comparison and sections."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from retro.evaluation import bits_per_byte, tables
from retro.evaluation.bits_per_byte import Documents

RUNS = {
    f"{name}-s{seed}": {
        "name": f"{name}-s{seed}",
        "seed": seed,
        "architecture": name,
        "twin": f"gpt-s{seed}" if name == "retro" else None,
    }
    for name in ("gpt", "retro")
    for seed in (1, 2)
}
GAIN = {1: 0.9, 2: 0.8}


@pytest.fixture
def measured():
    documents = Documents(
        first=np.arange(6),
        row=np.arange(6),
        source=np.array([0, 0, 0, 0, 1, 1]),
        tokens=np.full(6, 10),
        bytes=np.full(6, 20),
    )
    base = np.array([10.0, 11, 12, 13, 14, 15])
    nats = {("gpt-s1", "none"): base, ("gpt-s2", "none"): base}
    for seed, gain in GAIN.items():
        nats |= {(f"retro-s{seed}", "on"): gain * base, (f"retro-s{seed}", "off"): base}
    sections = ["Energy", "Space", "Energy", None, None, None]
    return tables.Measured("test", ["book", "speech"], documents, sections, nats)


def read(columns, rows):
    return list(csv.DictReader(io.StringIO(tables.as_csv(columns, list(rows)))))


def test_summary_has_all_and_each_source_for_every_run_and_mode(measured):
    rows = read(tables.SUMMARY, tables.summary_rows(measured, RUNS))
    assert list(rows[0]) == list(tables.SUMMARY)
    assert len(rows) == 6 * 3
    assert {row["source"] for row in rows} == {"all", "book", "speech"}
    row = next(r for r in rows if r["run"] == "retro-s1" and r["retrieval"] == "on" and r["source"] == "all")
    assert float(row["bits_per_byte"]) == pytest.approx(0.9 * 75 / (math.log(2) * 120), abs=1e-6)
    assert float(row["perplexity"]) == pytest.approx(math.exp(0.9 * 75 / 60), abs=1e-6)
    assert (row["model"], row["seed"], row["documents"], row["tokens"]) == ("retro", "1", "6", "60")


def test_of_six_documents_no_interval_is_told(measured):
    rows = read(tables.COMPARISON, tables.comparison_rows(measured, RUNS, 200, 1))
    whole = [row for row in rows if row["source"] == "all"]
    assert {(row["units"], row["unit"], row["low"], row["off_high"]) for row in whole} == {("6", "document", "", "")}


def test_comparison_pairs_seeds_and_pools_them(measured, monkeypatch):
    monkeypatch.setattr(bits_per_byte, "ENOUGH", 2)
    rows = read(tables.COMPARISON, tables.comparison_rows(measured, RUNS, 200, 1))
    assert {row["run"] for row in rows} == {"retro-s1", "retro-s2", "retro"}
    pooled = next(r for r in rows if r["seed"] == "all" and r["retrieval"] == "on" and r["source"] == "all")
    assert pooled["twin"] == "gpt" and pooled["seeds"] == "2"
    assert float(pooled["difference_percent"]) == pytest.approx(-15)
    assert (float(pooled["seeds_min"]), float(pooled["seeds_max"])) == pytest.approx((-20, -10))
    assert float(pooled["low"]) == pytest.approx(-20) and float(pooled["high"]) == pytest.approx(-10)
    off = next(r for r in rows if r["run"] == "retro-s1" and r["retrieval"] == "off")
    assert float(off["difference_percent"]) == 0 and float(off["documents_better"]) == 0


def test_sections_only_where_most_titles_name_one(measured):
    rows = read(tables.SECTIONS, tables.section_rows(measured, RUNS, 200, 1))
    assert {(row["source"], row["section"]) for row in rows} == {("book", "Energy"), ("book", "Space")}
    energy = next(r for r in rows if r["run"] == "retro-s2" and r["retrieval"] == "on")
    assert energy["documents"] == "2" and float(energy["difference_percent"]) == pytest.approx(-20)
    assert next(r for r in rows if r["run"] == "gpt-s1")["difference_percent"] == ""


def test_a_section_that_a_corpus_calls_all_is_a_section_like_any_other(measured):
    called = replace(measured, sections=["all" if name == "Energy" else name for name in measured.sections])
    rows, wanted = (read(tables.SECTIONS, tables.section_rows(each, RUNS, 200, 1)) for each in (called, measured))
    named = [row | {"section": {"all": "Energy"}.get(row["section"], row["section"])} for row in rows]
    assert sorted(map(str, named)) == sorted(map(str, wanted))


def test_a_run_without_a_measured_twin_is_not_compared(measured):
    runs = {**RUNS, "retro-s1": {**RUNS["retro-s1"], "twin": None}}
    rows = list(tables.comparison_rows(measured, runs, 50, 1))
    assert {row["run"] for row in rows} == {"retro-s2"}
