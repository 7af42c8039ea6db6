"""Draw the figures of the report, each as .svg and .png: loss, bpb, sections, cost, neighbours; .csv where no table
has what they show.

Here are `loss`, training and validation loss of all runs against tokens and against seconds of training, and `cost`:
where the time went, and how fast the models trained. The others are in `retro.report.gains`.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from retro.base import stage
from retro.base.artifacts import write_text
from retro.base.log import duration, track
from retro.dataset.dataset import Dataset
from retro.evaluation import tables
from retro.evaluation.conditions import LABELS, NONE, OFF, ON, usual
from retro.report import style
from retro.report.gains import draw_bpb, draw_neighbours, draw_sections
from retro.report.read import Row, Run, Stage, read_benchmarks, read_csv, read_runs
from retro.report.style import short

VALIDATED = [*usual("gpt"), *usual("retro")]  # the conditions that training validates under


def smoothed(values: list[float], span: int) -> np.ndarray:
    """Running mean over `span` values, of fewer at the ends."""
    kernel = np.ones(min(span, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def draw_loss(runs: list[Run], folder: Path) -> None:
    """Two panels, loss in nats a token. Colours are runs, seeds averaged; what the line is like says what was read:
    thin for training, dots for validation, hollow with retrieval off. loss.csv has every run's own values.
    """
    runs = [run for run in runs if run.training()]
    bases = list(dict.fromkeys(run.base for run in runs))
    write_text(folder / "loss.csv", tables.as_csv(LOSS, [row for run in runs for row in _values(run)]))
    with style.figure(folder, "loss", 3.9, ncols=2, sharey=True) as (drawn, axes):
        if not runs:
            for each in axes:
                style.nothing(each, "No metrics were logged.")
            return
        colours = run_colours(runs)
        for base in bases:
            mine = [run for run in runs if run.base == base]
            for each, key in zip(axes, ("tokens", "seconds"), strict=True):
                _draw(each, mine, key, colours[base])
        _limits(axes[0], runs)
        axes[0].set(xlabel="tokens read", ylabel="loss, nats a token", title="For the same data")
        axes[0].xaxis.set_major_formatter(FuncFormatter(short))
        axes[1].set(xlabel="seconds of training", title="For the same time")
        axes[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        for each in axes:
            each.xaxis.set_major_locator(MaxNLocator(6))
            each.set_xlim(left=0)
        drawn.legend(handles=_legend(runs, colours), loc="outside lower center", ncols=max(len(colours), 3))


def run_colours(runs: list[Run]) -> dict[str, str]:
    """A colour for each run's name in the config: grey for the GPTs, blues first for the others."""
    found: dict[str, str] = {}
    left = [style.SOURCES[0], style.SOURCES[1], style.WORSE, *style.SOURCES[2:5]]
    for run in runs:
        if run.architecture == "gpt":
            found.setdefault(run.base, style.colour(NONE))
        elif run.base not in found:
            found[run.base] = left[sum(colour in left for colour in found.values()) % len(left)]
    return found


def _values(run: Run) -> Iterator[dict[str, Any]]:
    """Rows of loss.csv."""
    for line in run.training():
        yield {"run": run.name, "read": "training", **{key: line[key] for key in ("tokens", "seconds", "loss")}}
    for retrieval in VALIDATED:
        for line in run.validation(retrieval):
            shown = {key: line[key] for key in ("retrieval", "tokens", "seconds", "loss")}
            yield {"run": run.name, "read": "validation", **shown}


def _mean(curves: list[list[Row]]) -> list[Row]:
    """The mean of the seeds' lines, step by step, as far as all of them go."""
    keys = ("tokens", "seconds", "loss")
    return [
        {key: sum(line[key] for line in lines) / len(lines) for key in keys} for lines in zip(*curves, strict=False)
    ]


def _draw(axes: Axes, seeds: list[Run], key: str, colour: str) -> None:
    lines = _mean([run.training() for run in seeds])
    mean = smoothed([line["loss"] for line in lines], max(1, len(lines) // 16))
    axes.plot([line[key] for line in lines], mean, color=colour, linewidth=1.0, alpha=0.5)
    for shown in VALIDATED:
        found = _mean([run.validation(shown) for run in seeds])
        x, y = [line[key] for line in found], [line["loss"] for line in found]
        axes.plot(x, y, color=colour, markersize=4.5, **LOOKS[shown])
        told = f"{seeds[0].base}, {LABELS[shown].partition(', ')[2] or 'no retrieval'}"
        texts = [f"{told}: {line['loss']:.3f} nats after {short(line[key])} {key}" for line in found]
        style.points(axes, x, y, texts)


LOSS = ("run", "read", "retrieval", "tokens", "seconds", "loss")
OPEN: dict[str, Any] = {"marker": "o", "linestyle": (0, (4, 2)), "markerfacecolor": style.PAPER, "linewidth": 1.2}
OPEN["zorder"] = 1.9  # below the others, which it may coincide with
LOOKS: dict[str, dict[str, Any]] = {NONE: {"marker": "o"}, ON: {"marker": "o"}, OFF: OPEN}


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


def _legend(runs: list[Run], colours: dict[str, str]) -> list[Line2D]:
    """Runs by colour, then what was read by the look of a line."""
    found = [Line2D([], [], color=colour, linewidth=4, label=base) for base, colour in colours.items()]
    looks: list[tuple[str, dict[str, Any]]] = [("training", {"linewidth": 1.1, "alpha": 0.6})]
    names = {NONE: "validation", ON: "validation, retrieval on", OFF: "validation, retrieval off"}
    shown = [mode for mode in VALIDATED if any(run.validation(mode) for run in runs)]
    if ON in shown and NONE in shown:  # they look alike: a GPT has no retrieval
        names[ON] = "validation, retrieval on (GPT: none)"
        shown.remove(NONE)
    looks += [(names[mode], {"markersize": 4.5, **LOOKS[mode]}) for mode in shown]
    told = [Line2D([], [], color=style.SOFT, label=name, **look) for name, look in looks]
    blank = Line2D([], [], alpha=0, label="")
    return [line for column in zip_longest(found, told, fillvalue=blank) for line in column]  # filled by columns


def speed(run: Run) -> tuple[float, float]:
    """A run's median tokens a second and share of the machine's matrix-product rate."""
    lines = run.training()
    return median(line["tokens_per_s"] for line in lines), median(line["mfu"] for line in lines)


def draw_cost(stages: list[Stage], runs: list[Run], folder: Path) -> None:
    """Left: wall time of each stage, jobs summed. Right: tokens a second of each run, with its MFU."""
    write_text(folder / "cost.csv", tables.as_csv(COST, [*_costs(stages, runs)]))
    stages = sorted(stages, key=lambda stage: -stage.seconds)[:14]
    runs = [run for run in runs if run.training()]
    height = 1.1 + 0.3 * max(len(stages), len(runs), 3)
    ratios = {"width_ratios": [1.15, 1]}
    with style.figure(folder, "cost", height, ncols=2, gridspec_kw=ratios) as (_, (left, right)):
        if stages:
            seconds = [stage.seconds for stage in stages]
            drawn = left.barh(range(len(stages)), seconds, color=style.SOURCES[1], height=0.7)
            for bar, stage in zip(drawn, stages, strict=True):
                memory = f", {stage.memory:,.0f} MB at most" if stage.memory else ""
                style.tell(bar, f"{stage.name}: {stage.seconds:,.1f} s in {stage.jobs} jobs{memory}")
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
        by_name = run_colours(runs)
        colours = [by_name[run.base] for run in runs]
        drawn = right.barh(range(len(runs)), [rate for rate, _ in speeds], color=colours, height=0.7)
        for bar, run, (rate, share) in zip(drawn, runs, speeds, strict=True):
            style.tell(bar, f"{run.name}: {rate:,.0f} tokens a second, MFU {100 * share:.1f} %")
        for position, (rate, share) in enumerate(speeds):
            right.text(rate, position, f"  {short(rate)}/s · MFU {share:.0%}", va="center", fontsize=8.5)
        right.set_yticks(range(len(runs)), [run.name for run in runs])
        right.set_xlim(0, 1.6 * max(rate for rate, _ in speeds))
        right.xaxis.set_major_formatter(short)
        right.set(xlabel="tokens a second (median)", title="Speed of training")
        style.bars(right)


COST = ("stage", "jobs", "seconds", "memory_mb", "run", "tokens_per_s", "mfu")


def _costs(stages: list[Stage], runs: list[Run]) -> Iterator[dict[str, Any]]:
    """Rows of cost.csv: of stages, then of runs."""
    for each in stages:
        yield {"stage": each.name, "jobs": each.jobs, "seconds": each.seconds, "memory_mb": each.memory}
    for run in runs:
        if run.training():
            rate, share = speed(run)
            yield {"run": run.name, "tokens_per_s": rate, "mfu": share}


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
