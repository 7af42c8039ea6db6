"""Table and figure of one experiment: <name>.csv, <name>.svg, <name>.png.

Bars of differences, lines and points of bits per byte, with 95 % intervals.
"""

import argparse
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retro.base import stage
from retro.base.artifacts import read_manifest, write_text
from retro.evaluation import tables
from retro.evaluation.conditions import BUILT_IN, NONE, OFF, ON
from retro.evaluation.conditions import LABELS as CONDITION_LABELS
from retro.experiments.catalogue import CATALOGUE, LABELS, Experiment, rows_of
from retro.report import copying, style
from retro.report.read import Row, Run, read_csv, read_runs
from retro.report.style import percent

AGAINST = {  # what bars differ from: its columns and its name
    "twin": (("difference_percent", "low", "high"), "the GPT"),
    "off": (("off_percent", "off_low", "off_high"), "the same weights with retrieval off"),
}
LINE, WIDE = 11, 130  # height and width that the name of a point takes, points (1/72 inch)


def draw(name: str, experiment: Experiment, rows: list[Row], folder: Path) -> None:
    """<folder>/<name>.svg and .png."""
    if experiment.kind == "bars":
        _bars(name, experiment, rows, folder)
    elif experiment.kind == "curves":
        _curves(name, experiment, rows, folder)
    elif experiment.kind == "readers":
        copying.draw([{**row, "k": row["x"]} for row in rows], folder)
    else:
        _plane(name, experiment, rows, folder)


def _bars(name: str, experiment: Experiment, rows: list[Row], folder: Path) -> None:
    """Differences in percent."""
    columns, other = AGAINST[experiment.against]
    with style.figure(folder, name, 1.1 + 0.36 * max(len(rows), 3)) as (_, axes):
        if not rows:
            style.nothing(axes, "No run of the config belongs here.")
            return
        for position, row in enumerate(rows):
            value, low, high = (row[key] for key in columns)
            bar = axes.barh(position, value, color=style.colour(row["retrieval"]), height=0.7)
            style.tell(bar[0], f"{row['label']}: {row['bits_per_byte']:.4f} bits per byte, {percent(value)}")
            edge = max(value, 0)
            if low is not None:
                style.whisker(axes, low, high, position)
                edge = max(high, edge)
            axes.text(edge, position, f"  {percent(value)}", va="center")
        axes.axvline(0, color=style.INK, linewidth=0.9)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        style.bars(axes)
        axes.margins(x=0.16)
        axes.set_xlabel(f"bits per byte against {other}, %; left is better")


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
            colour = style.colour(NONE if row["retrieval"] == NONE else ON)
            if line and row.get("low") is not None:
                ends = [row["twin_bits_per_byte"] * (1 + row[key] / 100) for key in ("low", "high")]
                axes.plot([row["x"]] * 2, ends, color=style.FAINT, linewidth=4, zorder=1)
            (point,) = axes.plot(row["x"], row["bits_per_byte"], "o", color=colour, markersize=4.5, zorder=3)
            style.tell(point, f"{row['label']}: {row['bits_per_byte']:.4f} bits per byte")
        if line:
            xs = sorted({row["x"] for row in rows})
            means = [_mean([row["bits_per_byte"] for row in rows if row["x"] == x]) for x in xs]
            axes.plot(xs, means, color=style.colour(ON), zorder=2, label=CONDITION_LABELS[ON])
            row = rows[-1]
            off = row["bits_per_byte"] / (1 + (row["off_percent"] or 0) / 100)
            for level, mode, label in (
                (off, OFF, BUILT_IN[OFF].shows),
                (row["twin_bits_per_byte"], NONE, CONDITION_LABELS[NONE]),
            ):
                axes.axhline(level, color=style.colour(mode), linestyle=(0, (4, 3)), linewidth=1.2, label=label)
            axes.legend(loc="lower left" if experiment.log else "center right")
        if experiment.log and min(row["x"] for row in rows) > 0:
            axes.set_xscale("log")
        elif not line:
            axes.margins(x=0.25, y=0.1)
        AXES[experiment.axis](axes, sorted({row["x"] for row in rows}))
        axes.set(xlabel=experiment.x, ylabel="bits per byte")
        if not line:
            _label(axes, rows)


def _curves(name: str, experiment: Experiment, rows: list[Row], folder: Path) -> None:
    """Differences in percent, a curve for each label."""
    columns, other = AGAINST[experiment.against]
    with style.figure(folder, name, 3.6) as (_, axes):
        labels = list(dict.fromkeys(row["label"] for row in rows))
        if not labels:
            style.nothing(axes, "No run of the config belongs here.")
            return
        for number, label in enumerate(labels):
            mine = [row for row in rows if row["label"] == label]
            colour = style.SOURCES[number % len(style.SOURCES)]
            axes.plot(
                [row["x"] for row in mine],
                [row[columns[0]] for row in mine],
                "o-",
                markersize=3,
                color=colour,
                label=label,
            )
        axes.axhline(0, color=style.INK, linewidth=0.9)
        AXES[experiment.axis](axes, sorted({row["x"] for row in rows}))
        axes.set(xlabel=experiment.x, ylabel=f"against {other}, %")
        axes.legend()


def _values(axes: Axes, xs: list[float]) -> None:
    axes.set_xticks(xs)


def _shares(axes: Axes, xs: list[float]) -> None:
    axes.set_xticks(xs, [f"{x:.0%}" for x in xs])
    axes.minorticks_off()


def _from_zero(axes: Axes, xs: list[float]) -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _to_one(axes: Axes, xs: list[float]) -> None:
    axes.set_xticks([x for x in axes.get_xticks() if x <= 1])


AXES = {"values": _values, "shares": _shares, "from zero": _from_zero, "to one": _to_one}  # forms of the x axis


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
    parser.add_argument(
        "--shown", nargs="?", type=int, help="neighbours that evaluation shows; default: as in training"
    )
    parser.add_argument("--output", required=True, type=Path, help="<name>.csv to write, the figure beside it")
    options = parser.parse_args()
    runs: dict[str, Run] = {}
    for run in read_runs(options.models, options.metrics):
        runs.setdefault(run.base, run)
    recall = recalls(options.neighbours, options.config.parent)
    found = rows_of(options.name, read_csv(options.comparison), runs, recall, options.shown)
    experiment = CATALOGUE[options.name]
    columns = (*LABELS, *experiment.extra, *tables.COMPARISON)
    write_text(options.output, tables.as_csv(columns, found))
    draw(options.name, experiment, found, options.output.parent)
    print(f"{options.name}: {len(found)} rows → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
