"""Draw the figures of the report, each as .svg and .png: loss, bpb, sections, cost, neighbours.

Here are `loss`, training and validation loss of all runs against tokens and against seconds of training, and `cost`:
where the time went, and how fast the models trained. The others are in `retro.report.gains`.
"""

import argparse
import sys
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from retro.base import stage
from retro.base.log import duration, track
from retro.dataset.dataset import Dataset
from retro.evaluation.conditions import LABELS, NONE, ON, usual
from retro.report import style
from retro.report.gains import draw_bpb, draw_neighbours, draw_sections
from retro.report.read import Run, Stage, read_benchmarks, read_csv, read_runs
from retro.report.style import short

VALIDATED = [*usual("gpt"), *usual("retro")]  # the conditions that training validates under


def smoothed(values: list[float], span: int) -> np.ndarray:
    """Running mean over `span` values, of fewer at the ends."""
    kernel = np.ones(min(span, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def draw_loss(runs: list[Run], folder: Path) -> None:
    """Two panels, loss in nats a token: thin lines training, dots validation."""
    runs = [run for run in runs if run.training()]
    bases = list(dict.fromkeys(run.base for run in runs if run.architecture == "retro"))
    with style.figure(folder, "loss", 3.9, ncols=2, sharey=True) as (drawn, axes):
        if not runs:
            for each in axes:
                style.nothing(each, "No metrics were logged.")
            return
        for run in runs:
            dash = style.LINES[bases.index(run.base) % len(style.LINES)] if run.base in bases else "-"
            for each, key in zip(axes, ("tokens", "seconds"), strict=True):
                _draw(each, run, key, dash)
        _limits(axes[0], runs)
        axes[0].set(xlabel="tokens read", ylabel="loss, nats a token", title="For the same data")
        axes[0].xaxis.set_major_formatter(FuncFormatter(short))
        axes[1].set(xlabel="seconds of training", title="For the same time")
        axes[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        for each in axes:
            each.xaxis.set_major_locator(MaxNLocator(6))
            each.set_xlim(left=0)
        drawn.legend(handles=_legend(runs, bases), loc="outside lower center", ncols=4)


def _draw(axes: Axes, run: Run, key: str, dash: object) -> None:
    mode = NONE if run.architecture == "gpt" else ON
    lines = run.training()
    span = max(1, len(lines) // 16)
    x, y = [line[key] for line in lines], smoothed([line["loss"] for line in lines], span)
    axes.plot(x, y, color=style.colour(mode), linestyle=dash, linewidth=1.0, alpha=0.5)
    for shown in VALIDATED:
        found = run.validation(shown)
        x, points = [line[key] for line in found], [line["loss"] for line in found]
        axes.plot(x, points, color=style.colour(shown), linestyle=dash, marker="o", markersize=3.5)


def _limits(axes: Axes, runs: list[Run]) -> None:
    """Leave out the first steep fall, in which all models look alike."""
    ends = [run.training()[-1]["loss"] for run in runs] + [
        line["loss"] for run in runs for line in run.lines if "split" in line
    ]
    early = [np.interp(0.04, np.linspace(0, 1, len(run.training())), _losses(run)) for run in runs]
    late = [smoothed(_losses(run), max(1, len(run.training()) // 16)).min() for run in runs]
    low, high = min([*ends, *late]), max([*early, *ends])
    axes.set_ylim(low - 0.08 * (high - low) - 0.05, high + 0.05 * (high - low) + 0.05)


def _losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.training()]


def _legend(runs: list[Run], bases: list[str]) -> list[Line2D]:
    modes = [m for m in VALIDATED if any(run.validation(m) for run in runs)]
    found = [Line2D([], [], color=style.colour(m), marker="o", markersize=4, label=LABELS[m]) for m in modes]
    if len(bases) > 1:
        dashes = zip(bases, style.LINES * len(bases), strict=False)
        found += [Line2D([], [], color=style.SOFT, linestyle=dash, label=base) for base, dash in dashes]
    return [*found, Line2D([], [], color=style.SOFT, linewidth=1.1, alpha=0.55, label="training (thin)")]


def speed(run: Run) -> tuple[float, float]:
    """A run's median tokens a second and share of the machine's matrix-product rate."""
    lines = run.training()
    return median(line["tokens_per_s"] for line in lines), median(line["mfu"] for line in lines)


def draw_cost(stages: list[Stage], runs: list[Run], folder: Path) -> None:
    """Left: wall time of each stage, jobs summed. Right: tokens a second of each run, with its MFU."""
    stages = sorted(stages, key=lambda stage: -stage.seconds)[:14]
    runs = [run for run in runs if run.training()]
    height = 1.1 + 0.3 * max(len(stages), len(runs), 3)
    ratios = {"width_ratios": [1.15, 1]}
    with style.figure(folder, "cost", height, ncols=2, gridspec_kw=ratios) as (_, (left, right)):
        if stages:
            seconds = [stage.seconds for stage in stages]
            left.barh(range(len(stages)), seconds, color=style.SOURCES[1], height=0.7)
            for position, stage in enumerate(stages):
                jobs = f" · {stage.jobs} jobs" if stage.jobs > 1 else ""
                left.text(stage.seconds, position, f"  {duration(stage.seconds)}{jobs}", va="center", fontsize=8.5)
            left.set_yticks(range(len(stages)), [stage.name.replace("_", " ") for stage in stages])
            left.set_xlim(0, 1.45 * max(seconds))
            left.set(xlabel="seconds, jobs summed", title="Time of each stage")
            style.bars(left)
        else:
            style.nothing(left, "No benchmarks were recorded.")
        if not runs:
            style.nothing(right, "No metrics were logged.")
            return
        speeds = [speed(run) for run in runs]
        colours = [style.colour(NONE if run.architecture == "gpt" else ON) for run in runs]
        right.barh(range(len(runs)), [rate for rate, _ in speeds], color=colours, height=0.7)
        for position, (rate, share) in enumerate(speeds):
            right.text(rate, position, f"  {short(rate)}/s · MFU {share:.0%}", va="center", fontsize=8.5)
        right.set_yticks(range(len(runs)), [run.name for run in runs])
        right.set_xlim(0, 1.6 * max(rate for rate, _ in speeds))
        right.xaxis.set_major_formatter(short)
        right.set(xlabel="tokens a second (median)", title="Speed of training")
        style.bars(right)


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
    used = sorted({run.settings.train.neighbours_used for run in runs if run.architecture == "retro"}) or [2]
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
    stage.run(main)
