"""What the report reads: CSV tables, metrics, benchmarks, models. Plain rows, numbers as numbers."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.base.artifacts import read_manifest, read_text
from retro.base.stage import UserError
from retro.training.settings import TrainedRun

Row = dict[str, Any]
TEXT = {"run", "twin", "model", "seed", "retrieval", "split", "source", "section", "unit", "label", "overlap", "kind"}


def read_csv(path: Path) -> list[Row]:
    """Rows of one of our tables: names as text, the rest as float, None where a cell is empty."""
    try:
        return [
            {key: value if key in TEXT else (float(value) if value else None) for key, value in row.items()}
            for row in csv.DictReader(io.StringIO(read_text(path), newline=""))
        ]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of ours ({error}). Delete it and run snakemake again.") from None


def where(rows: Iterable[Row], **wanted: str | None) -> list[Row]:
    """The rows whose columns have the wanted values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


@dataclass(frozen=True)
class Run:
    """A trained model: its model.json and, if given, its metrics.jsonl."""

    settings: TrainedRun
    counts: dict[str, Any]
    lines: list[Row]

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def base(self) -> str:
        """The run's name in the config, without its seed."""
        return self.settings.base

    @property
    def architecture(self) -> str:
        return self.settings.architecture

    @property
    def seconds(self) -> float | None:
        """Of training; None without metrics."""
        lines = self.training()
        return lines[-1]["seconds"] if lines else None

    def training(self) -> list[Row]:
        """Logged training steps."""
        return [line for line in self.lines if "split" not in line]

    def validation(self, retrieval: str) -> list[Row]:
        """Validations in a mode of retrieval, with the tokens and seconds of training before them."""
        steps = {line["step"]: line for line in self.training()}
        found = []
        for line in self.lines:
            if "split" in line and line["retrieval"] == retrieval:
                before = [steps[step] for step in steps if step <= line["step"]]
                if before:
                    found.append({**line, "tokens": before[-1]["tokens"], "seconds": before[-1]["seconds"]})
        return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of one of our files of JSON lines."""
    try:
        found = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not lines of JSON ({error}). Delete it and run snakemake again.") from None
    if not all(isinstance(line, dict) for line in found):
        raise UserError(f"{path}: not lines of JSON objects. Delete it and run snakemake again.")
    return found


def read_runs(models: list[Path], metrics: Sequence[Path] = ()) -> list[Run]:
    """Runs by their model.json; a metrics.jsonl belongs to the model in its folder. GPT first, else
    as given.
    """
    curves = {path.parent: path for path in metrics}
    runs = []
    for path in models:
        manifest = read_manifest(path, "model")
        lines = read_lines(curves[path.parent]) if path.parent in curves else []
        runs.append(Run(TrainedRun.of(manifest.settings, str(path)), manifest.counts, lines))
    return sorted(runs, key=lambda run: run.architecture != "gpt")


@dataclass(frozen=True)
class Stage:
    """What the jobs of one rule took: wall seconds, summed over its jobs, and the largest memory in MB."""

    name: str
    jobs: int
    seconds: float
    memory: float | None


def read_benchmarks(paths: list[Path]) -> list[Stage]:
    """Stages by Snakemake's benchmark files (.jsonl), or folders of them; in the order given by their
    names.
    """
    found: dict[str, list[tuple[float, float | None]]] = {}
    for path in paths:
        for file in sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]:
            name = (file.relative_to(path).parts[0] if path.is_dir() else file.name).removesuffix(".jsonl")
            lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
            if lines:
                facts = json.loads(lines[-1])
                found.setdefault(name, []).append((float(facts["s"]), _number(facts.get("max_rss"))))
    return [
        Stage(name, len(jobs), sum(s for s, _ in jobs), max((m for _, m in jobs if m is not None), default=None))
        for name, jobs in found.items()
    ]


def _number(value: Any) -> float | None:
    """A benchmark's number; jobs too short to be measured have text there."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
