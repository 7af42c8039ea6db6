"""Draw the figures of the report, each as .svg and .png: loss, bpb, sections, cost, neighbours."""

import argparse
import sys
from pathlib import Path

from retro import errors
from retro.progress import track
from retro.recorded import Dataset
from retro.report.costs import draw_cost
from retro.report.curves import draw_loss
from retro.report.gains import draw_bpb, draw_sections
from retro.report.read import read_benchmarks, read_csv, read_runs
from retro.report.scores import draw_neighbours

STAGE = "retro.report.figures"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--models", required=True, nargs="+", type=Path, help="model.json of every run")
    parser.add_argument("--metrics", nargs="*", default=[], type=Path, help="metrics.jsonl of every run")
    parser.add_argument("--summary", required=True, type=Path, help="summary.csv")
    parser.add_argument("--comparison", required=True, type=Path, help="comparison.csv")
    parser.add_argument("--sections", required=True, type=Path, help="sections.csv")
    parser.add_argument("--benchmarks", nargs="*", default=[], type=Path, help="benchmark .jsonl files, or folders")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the figures")
    options = parser.parse_args()
    dataset, folder = Dataset.open(options.config), options.output_folder
    runs = read_runs(options.models, options.metrics)
    summary, comparison = read_csv(options.summary), read_csv(options.comparison)
    split = summary[0]["split"] if summary else "test"
    used = max((run.settings.train.neighbours_used for run in runs if run.architecture == "retro"), default=2)
    drawings = {
        "loss": lambda: draw_loss(runs, folder),
        "bpb": lambda: draw_bpb(comparison, folder),
        "sections": lambda: draw_sections(read_csv(options.sections), comparison, folder),
        "cost": lambda: draw_cost(read_benchmarks(options.benchmarks), runs, folder),
        "neighbours": lambda: draw_neighbours(dataset, split, used, folder),
    }
    for draw in track(drawings.values(), len(drawings), "draw", "figure"):
        draw()
    print(f"{', '.join(drawings)} → {folder}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
