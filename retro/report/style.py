"""One look for all figures: a calm palette that colour-blind readers can tell apart, no chart junk.

The colours are after Okabe and Ito.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retro.evaluation.conditions import NONE, OFF, ON, RANDOM, Condition

INK, SOFT, FAINT, PAPER = "#1f2933", "#64707d", "#e3e7eb", "#ffffff"
COLOURS = {NONE: "#7b8794", ON: "#0072b2", OFF: "#e69f00", RANDOM: "#cc79a7"}
BETTER, WORSE = "#0072b2", "#d55e00"
SOURCES = ["#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#7b8794"]


def colour(condition: str) -> str:
    """What a condition is drawn in."""
    return COLOURS[Condition.parse(condition).colour]


matplotlib.use("Agg")


LINES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5))]  # one a run name
WIDTH = 8.2  # inches

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.dpi": 100,
    "svg.fonttype": "path",
}


@contextmanager
def figure(folder: Path, name: str, height: float, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure that becomes <folder>/<name>.svg and .png, the same bytes for the same content.

    `options` go to `plt.subplots`; yields what that returns: the figure and its `Axes`, one or an array.
    """
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        drawn, axes = plt.subplots(figsize=(WIDTH, height), **options)
        try:
            yield drawn, axes
            folder.mkdir(parents=True, exist_ok=True)
            drawn.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            drawn.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
        finally:
            plt.close(drawn)


def bars(axes: Axes) -> None:
    """Horizontal bars at 0, 1, …: only the vertical grid, no left spine, first bar on top."""
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=INK)
    low, high = sorted(axes.get_ylim())
    axes.set_ylim(max(high, low + 3.2), low)  # a single bar is no thicker than one of three


def whisker(axes: Axes, low: float, high: float, position: float) -> None:
    """A 95 % interval across a horizontal bar, edged in white so that it stands out on any colour."""
    for colour, width in ((PAPER, 3.2), (INK, 1.3)):
        axes.plot(
            [low, high],
            [position] * 2,
            "|-",
            color=colour,
            linewidth=width,
            markersize=6,
            markeredgewidth=width,
        )


def nothing(axes: Axes, text: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=SOFT, transform=axes.transAxes, wrap=True)
