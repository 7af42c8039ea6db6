"""Figures: all of them, in both formats, the same bytes each time."""

import xml.etree.ElementTree as ElementTree

import pytest

from retro.base.log import duration
from retro.dataset.dataset import Dataset
from retro.report.figures import draw_cost, draw_loss
from retro.report.gains import draw_bpb, draw_neighbours, draw_sections
from retro.report.read import read_benchmarks, read_csv, read_runs
from retro.report.style import interval, percent, short

pytestmark = pytest.mark.slow

NAMES = ["loss", "bpb", "sections", "cost", "neighbours"]


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn(report, name):
    svg = report.folder / "figures" / f"{name}.svg"
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert svg.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_same_inputs_give_the_same_bytes(report, tmp_path):
    report.draw(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (report.folder / "figures" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("used", [[2, 4], [0], [0, 4]], ids=str)
def test_the_neighbours_of_runs_that_use_different_numbers_are_drawn_and_said(report, tmp_path, used):
    draw_neighbours(Dataset.open(report.folder / "config.json"), "test", used, tmp_path)
    told = "runs use " + ", ".join(map(str, used)) if len(used) > 1 else "No run uses neighbours."
    assert told in (tmp_path / "neighbours.svg").read_text(encoding="utf-8")


def test_runs_carry_their_curves(report):
    folders = [report.folder / "runs" / name for name in ("retro-s1", "gpt-s1")]
    runs = read_runs([f / "model.json" for f in folders], [f / "metrics.jsonl" for f in folders])
    assert [run.name for run in runs] == ["gpt-s1", "retro-s1"]
    assert runs[1].base == "retro" and len(runs[1].training()) == 8
    assert [line["tokens"] for line in runs[1].validation("off")] == [1024, 2048]


def test_benchmarks_are_summed_by_stage(report):
    stages = {stage.name: stage for stage in read_benchmarks([report.folder / "benchmarks"])}
    assert stages["tokenize"].jobs == 2 and stages["tokenize"].seconds == 5.0


def test_tables_without_rows_still_give_figures(tmp_path):
    draw_bpb([], tmp_path)
    draw_sections([], [], tmp_path)
    draw_loss([], tmp_path)
    draw_cost([], [], tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["bpb.svg", "cost.svg", "loss.svg", "sections.svg"]


def test_empty_cells_are_none(report):
    rows = read_csv(report.table("sections"))
    assert rows[0]["difference_percent"] is None and isinstance(rows[0]["bits_per_byte"], float)


def test_numbers_as_a_reader_wants_them():
    assert percent(-12.04) == "−12.0 %" and percent(0.04) == "±0.0 %" and percent(3) == "+3.0 %"
    assert interval({"low": -15.1, "high": 0.5}) == "(−15.1 … +0.5)" and interval({"low": None}) == ""
    assert (short(614400), short(1.25e6), short(12)) == ("614k", "1.25M", "12")
    assert (duration(8.04), duration(200), duration(7500)) == ("8.04 s", "3 min 20 s", "2 h 5 min")
