"""Figure `loss`: training and validation loss of all runs, against tokens and against seconds of training."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from retro.evaluation.conditions import LABELS, NONE, ON, usual
from retro.report import palette, style
from retro.report.read import Run
from retro.report.words import short

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
    axes.plot(x, y, color=palette.colour(mode), linestyle=dash, linewidth=1.0, alpha=0.5)
    for shown in VALIDATED:
        found = run.validation(shown)
        x, y = [line[key] for line in found], [line["loss"] for line in found]
        axes.plot(x, y, color=palette.colour(shown), linestyle=dash, marker="o", markersize=3.5)


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
    found = [Line2D([], [], color=palette.colour(m), marker="o", markersize=4, label=LABELS[m]) for m in modes]
    if len(bases) > 1:
        dashes = zip(bases, style.LINES * len(bases), strict=False)
        found += [Line2D([], [], color=palette.SOFT, linestyle=dash, label=base) for base, dash in dashes]
    return [*found, Line2D([], [], color=palette.SOFT, linewidth=1.1, alpha=0.55, label="training (thin)")]
