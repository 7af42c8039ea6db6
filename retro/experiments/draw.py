"""Table and figure of one experiment: <name>.csv, <name>.svg, <name>.png."""

import argparse
import sys
from pathlib import Path

from retro import errors
from retro.artifacts import read_manifest, write_text
from retro.evaluation import tables
from retro.evaluation.conditions import ON
from retro.experiments.catalogue import CATALOGUE, LABELS, rows_of
from retro.experiments.figures import draw
from retro.report.read import Run, read_csv, read_runs

STAGE = "retro.experiments.draw"


def recalls(paths: list[Path], own: Path) -> dict[str, float]:
    """Recall of the searches whose neighbours are at `paths`, by condition; `own` is the dataset's folder."""
    found = {}
    for path in paths:
        folder = path.parent.parent.parent  # <folder>/neighbours/<split>/manifest.json
        shares = read_manifest(path, "neighbours").counts.get("recall") or {}
        if shares:
            found[ON if folder.resolve() == own.resolve() else folder.name] = shares[max(shares, key=int)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, choices=list(CATALOGUE), help="the experiment")
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--comparison", required=True, type=Path, help="comparison.csv of its conditions")
    parser.add_argument("--models", required=True, nargs="+", type=Path, help="model.json of every run")
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help="metrics.jsonl of every run")
    parser.add_argument("--neighbours", nargs="*", default=[], type=Path, help="manifests of the retrievals compared")
    parser.add_argument("--output", required=True, type=Path, help="<name>.csv to write, the figure beside it")
    options = parser.parse_args()
    runs: dict[str, Run] = {}
    for run in read_runs(options.models, options.metrics):
        runs.setdefault(run.base, run)
    recall = recalls(options.neighbours, options.config.parent)
    found = rows_of(options.name, read_csv(options.comparison), runs, recall)
    experiment = CATALOGUE[options.name]
    columns = (*LABELS, *experiment.extra, *tables.COMPARISON)
    write_text(options.output, tables.as_csv(columns, found))
    draw(options.name, experiment, found, options.output.parent)
    print(f"{options.name}: {len(found)} rows → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
