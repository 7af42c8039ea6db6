"""The figures of experiments: bars of differences, lines and points of bits per byte, with 95 % intervals."""

from pathlib import Path

from retro.experiments.catalogue import Experiment
from retro.report import palette, style
from retro.report.read import Row
from retro.report.words import percent


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
            if not line:
                axes.annotate(
                    f" {row['label']}  {row['bits_per_byte']:.3f}", (row["x"], row["bits_per_byte"]), xytext=(5, 4),
                    textcoords="offset points", fontsize=8.5,
                )  # fmt: skip
        if line:
            xs = sorted({row["x"] for row in rows})
            means = [_mean([row["bits_per_byte"] for row in rows if row["x"] == x]) for x in xs]
            axes.plot(xs, means, color=palette.COLOURS["on"], zorder=2, label="RETRO, retrieval on")
            row = rows[-1]
            off = row["bits_per_byte"] / (1 + (row["off_percent"] or 0) / 100)
            for level, mode, label in ((off, "off", "retrieval off"), (row["twin_bits_per_byte"], "none", "GPT")):
                axes.axhline(level, color=palette.COLOURS[mode], linestyle=(0, (4, 3)), linewidth=1.2, label=label)
            axes.legend()
        if experiment.log and min(row["x"] for row in rows) > 0:
            axes.set_xscale("log")
        elif not line:
            axes.margins(x=0.25)
        if name == "database":
            axes.set_xticks(xs, [f"{x:.0%}" for x in xs])
            axes.minorticks_off()
        if name == "neighbours":
            axes.set_xticks(xs)
        if name == "cost":
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        axes.set(xlabel=experiment.x, ylabel="bits per byte")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
