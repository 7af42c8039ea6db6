import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from retro.base.artifacts import write_text
from retro.dataset.dataset import Dataset
from tests.evaluation.built import build_dataset, measure, stage, summarise, write_run


@dataclass
class Report:
    """A dataset, two untrained runs, and everything the report makes of them."""

    dataset: Dataset
    losses: dict[str, Path]

    @property
    def folder(self) -> Path:
        return self.dataset.folder

    def draw(self, folder: Path) -> None:
        runs = [self.folder / "runs" / name for name in ("gpt-s1", "retro-s1")]
        tables = [part for name in ("summary", "comparison", "sections") for part in (f"--{name}", self.table(name))]
        models, metrics = [run / "model.json" for run in runs], [run / "metrics.jsonl" for run in runs]
        given = ("--config", self.dataset.path, "--models", *models, "--metrics", *metrics, *tables)
        benchmarks = ("--benchmarks", self.folder / "benchmarks")
        stage("retro.report.figures", *given, *benchmarks, "--output-folder", folder)

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.csv"

    def explorer(self) -> str:
        shown = [self.losses[mode] for mode in ("none", "on", "off", "random")]
        given = ("--config", self.dataset.path, "--losses", *shown)
        stage("retro.report.explorer", *given, "--output", self.folder / "neighbours.html")
        return (self.folder / "neighbours.html").read_text()

    def page(self, *extra: object) -> str:
        """The report, with what `extra` arguments add to it."""
        runs = [self.folder / "runs" / name for name in ("gpt-s1", "retro-s1")]
        tables = [part for name in ("summary", "comparison", "sections") for part in (f"--{name}", self.table(name))]
        figures = sorted((self.folder / "figures").glob("*.svg"))
        given = ("--config", self.dataset.path, "--models", *[run / "model.json" for run in runs], *tables)
        more = ("--figures", *figures, "--samples", runs[1] / "sample.json")
        last = ("--explorer", self.folder / "neighbours.html", "--output", self.folder / "report.html")
        stage("retro.report.report_page", *given, *more, *extra, *last)
        return (self.folder / "report.html").read_text()


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    dataset = build_dataset(tmp_path_factory.mktemp("report") / "words")
    for name in ("gpt-s1", "retro-s1"):
        write_run(dataset, name)
    losses = measure(dataset)
    summarise(dataset, losses)
    for name in ("tokenize/atlas", "tokenize/speeches", "train/gpt-s1"):
        write_text(dataset.folder / f"benchmarks/{name}.jsonl", json.dumps({"s": 2.5, "max_rss": 100.0}) + "\n")
    settings = {"prompts": 2, "prompt_tokens": 16, "new_tokens": 20}
    run = dataset.folder / "runs/retro-s1"
    given = ("--config", dataset.path, "--settings", json.dumps(settings), "--output", run / "sample.json")
    stage("retro.generation.sample", *given, "--model", run / "model.json")
    made = Report(dataset, losses)
    made.draw(dataset.folder / "figures")
    return made
