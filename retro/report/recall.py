"""Recall against the cost of a query: for the settings of one index, or for many indexes."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from retro.report import palette, style

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 0.2, not 2 × 10⁻¹


def draw(rows: list[dict[str, Any]], folder: Path, name: str, title: str, wanted: float | None = None) -> None:
    """A point a row (`name`, `recall`, `ms`); the cheapest for each recall joined by a line."""
    best, front = -1.0, []
    for row in sorted(rows, key=lambda row: (row["ms"], -row["recall"])):
        if row["recall"] > best:
            best = row["recall"]
            front.append(row)
    with style.figure(folder, name, 4.2) as (_, axes):
        axes.plot([r["ms"] for r in front], [r["recall"] for r in front], color=palette.BETTER, zorder=2)
        axes.scatter([r["ms"] for r in rows], [r["recall"] for r in rows], s=22, color=palette.BETTER, zorder=3)
        exact = next(row for row in rows if row["name"] == "exact search")
        axes.scatter(exact["ms"], exact["recall"], s=60, marker="D", color=palette.WORSE, zorder=4)
        axes.annotate("exact search", (exact["ms"], exact["recall"]), (0, -14), textcoords="offset points", ha="center")
        if wanted is not None:
            axes.axhline(wanted, color=palette.SOFT, linewidth=0.8, linestyle="--")
        axes.set(xscale="log", xlabel="CPU milliseconds a query", ylabel="recall", title=title)
        plain(axes)


def draw_indexes(rows: list[dict[str, Any]], folder: Path, k: int) -> None:
    """Figure `indexes`: a labelled point an index (`label`, `recall`, `ms`, `bytes`), as large as its vectors."""
    with style.figure(folder, "indexes", 5.2) as (_, axes):
        axes.scatter(
            [row["ms"] for row in rows],
            [row["recall"] for row in rows],
            s=[20 + row["bytes"] / 8 for row in rows],
            color=palette.BETTER,
            alpha=0.6,
            linewidth=0,
        )
        gap, above = 0.045, 2.0
        span = max(1.0 - min(row["recall"] for row in rows), 0.02)
        for row in sorted(rows, key=lambda row: (-row["recall"], row["ms"])):
            height = min(row["recall"], above - gap * span)  # labels, one below the other, never overlap
            above = height
            axes.annotate(
                f"{row['label']} · {row['bytes']:.0f} B",
                (row["ms"], row["recall"]),
                (1.02, height),
                textcoords=axes.get_yaxis_transform(),
                fontsize=8.5,
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": palette.SOFT, "linewidth": 0.5},
            )
        axes.set(
            xscale="log",
            xlabel="CPU milliseconds a query (exclusion and exact scores included)",
            ylabel=f"recall@{k}",
            title="Indexes: recall against cost; areas are bytes a vector",
        )
        plain(axes)


def plain(axes: Axes) -> None:
    """Numbers as people write them on the logarithmic axis."""
    axes.xaxis.set_major_formatter(PLAIN)
    low, high = axes.get_xlim()
    if high < 10 * low:  # hardly a power of ten to label
        axes.xaxis.set_minor_formatter(PLAIN)
