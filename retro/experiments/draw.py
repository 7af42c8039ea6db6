"""Table and figure of one experiment: <name>.csv, <name>.svg, <name>.png."""

import argparse
import sys
from pathlib import Path

from retro import errors
from retro.artifacts import read_manifest, write_text
from retro.evaluation import tables
from retro.experiments import rows
from retro.experiments.catalogue import CATALOGUE
from retro.experiments.figures import draw
from retro.report.read import read_csv, read_runs

STAGE = "retro.experiments.draw"


def recalls(paths: list[Path], own: str) -> dict[str, float]:
    """Recall of the searches whose neighbours are at `paths`, by condition; `own` is the folder of the dataset's."""
    found = {}
    for path in paths:
        manifest, name = read_manifest(path, "neighbours"), path.parent.parent.parent.name
        shares = manifest.counts.get("recall") or {}
        if shares:
            found["on" if name == own else name] = shares[max(shares, key=int)]
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
    runs = {}
    for run in read_runs(options.models, options.metrics):
        runs.setdefault(run.base, run)
    recall = recalls(options.neighbours, options.config.parent.name)
    found = rows.rows_of(options.name, read_csv(options.comparison), runs, recall)
    columns = (*rows.LABELS, *rows.EXTRA.get(options.name, ()), *tables.COMPARISON)
    write_text(options.output, tables.as_csv(columns, found))
    draw(options.name, CATALOGUE[options.name], found, options.output.parent)
    print(f"{options.name}: {len(found)} rows → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
