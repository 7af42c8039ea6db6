"""The figures of experiments: bars of differences, lines and points of bits per byte, with 95 % intervals."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retro.experiments.catalogue import Experiment
from retro.report import palette, style
from retro.report.read import Row
from retro.report.words import percent

LINE, WIDE = 11, 130  # height and width that the name of a point takes, points (1/72 inch)


def draw(name: str, experiment: Experiment, rows: list[Row], folder: Path) -> None:
    """<folder>/<name>.svg and .png."""
    if experiment.kind == "bars":
        _bars(name, rows, folder)
    else:
        _plane(name, experiment, rows, folder)


def _bars(name: str, rows: list[Row], folder: Path) -> None:
    """Differences in percent: against retrieval off for controls, against the GPT twin else."""
    against = ("off_percent", "off_low", "off_high") if name == "controls" else ("difference_percent", "low", "high")
    with style.figure(folder, name, 1.1 + 0.36 * max(len(rows), 3)) as (_, axes):
        if not rows:
            style.nothing(axes, "No run of the config belongs here.")
            return
        for position, row in enumerate(rows):
            value, low, high = (row[key] for key in against)
            kind = "random" if row["retrieval"] == "shuffled" else row["retrieval"]  # both are controls
            colour = palette.COLOURS.get(kind, palette.COLOURS["on"])
            axes.barh(position, value, color=colour, height=0.7)
            edge = max(value, 0)
            if low is not None:
                style.whisker(axes, low, high, position)
                edge = max(high, edge)
            axes.text(edge, position, f"  {percent(value)}", va="center")
        axes.axvline(0, color=palette.INK, linewidth=0.9)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        style.bars(axes)
        axes.margins(x=0.16)
        twin = "the same weights with retrieval off" if name == "controls" else "the GPT"
        axes.set_xlabel(f"bits per byte against {twin}, %; left is better")


def _plane(name: str, experiment: Experiment, rows: list[Row], folder: Path) -> None:
    """Bits per byte over `x`; for lines, the mean of the rows of one x, the interval, and the two levels without
    retrieval.
    """
    with style.figure(folder, name, 3.9) as (_, axes):
        if not rows:
            style.nothing(axes, "No run of the config belongs here.")
            return
        line = experiment.kind == "line"
        for row in rows:
            colour = palette.COLOURS["none"] if row["retrieval"] == "none" else palette.COLOURS["on"]
            if line and row.get("low") is not None:
                ends = [row["twin_bits_per_byte"] * (1 + row[key] / 100) for key in ("low", "high")]
                axes.plot([row["x"]] * 2, ends, color=palette.FAINT, linewidth=4, zorder=1)
            axes.plot(row["x"], row["bits_per_byte"], "o", color=colour, markersize=4.5, zorder=3)
        if line:
            xs = sorted({row["x"] for row in rows})
            means = [_mean([row["bits_per_byte"] for row in rows if row["x"] == x]) for x in xs]
            axes.plot(xs, means, color=palette.COLOURS["on"], zorder=2, label="RETRO, retrieval on")
            row = rows[-1]
            off = row["bits_per_byte"] / (1 + (row["off_percent"] or 0) / 100)
            for level, mode, label in ((off, "off", "retrieval off"), (row["twin_bits_per_byte"], "none", "GPT")):
                axes.axhline(level, color=palette.COLOURS[mode], linestyle=(0, (4, 3)), linewidth=1.2, label=label)
            axes.legend(loc="lower left" if experiment.log else "center right")
        if experiment.log and min(row["x"] for row in rows) > 0:
            axes.set_xscale("log")
        elif not line:
            axes.margins(x=0.25, y=0.1)
        if name == "database":
            axes.set_xticks(xs, [f"{x:.0%}" for x in xs])
            axes.minorticks_off()
        if name == "neighbours":
            axes.set_xticks(xs)
        if name == "cost":
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        if name == "retrievers":
            axes.set_xticks([x for x in axes.get_xticks() if x <= 1])
        axes.set(xlabel=experiment.x, ylabel="bits per byte")
        if not line:
            _label(axes, rows)


def _label(axes: Axes, rows: list[Row]) -> None:
    """Name the points, to their right, from the lowest up; a name that would cover one below is moved above it."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    placed: list[tuple[float, float]] = []
    scale = 72 / figure.dpi  # points (1/72 inch) a pixel; where names stand
    for row in sorted(rows, key=lambda row: row["bits_per_byte"]):
        point = (row["x"], row["bits_per_byte"])
        x, y = axes.transData.transform(point) * scale
        below = [top for left, top in placed if abs(left - x) < WIDE]
        top = max([y, *(other + LINE for other in below)])
        placed.append((x, top))
        name = f" {row['label']}  {row['bits_per_byte']:.3f}"
        axes.annotate(name, point, xytext=(5, top - y), textcoords="offset points", fontsize=8.5, va="center")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
