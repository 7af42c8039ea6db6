"""Figures `bpb` and `sections`: what retrieval bought, with 95 % intervals."""

from pathlib import Path

from matplotlib.axes import Axes

from retro.evaluation.conditions import LABELS, NONE, ON
from retro.naming import ALL
from retro.report import palette, style
from retro.report.read import Row, where
from retro.report.words import interval, percent


def _label(row: Row, several: bool) -> str:
    label = LABELS[row["retrieval"]]
    return label.replace("RETRO", row["run"]) if several else label


def draw_bpb(comparison: list[Row], folder: Path) -> None:
    """Bits per byte of the GPT and of RETRO in each mode, a panel a source; whiskers: interval against the
    GPT.
    """
    rows = [row for row in comparison if row["seed"] == ALL]
    split = rows[0]["split"] if rows else None
    rows = where(rows, split=split)
    sources = list(dict.fromkeys(row["source"] for row in rows))
    if len(sources) == 2:  # one source, so `all` says the same
        sources = sources[1:]
    several = len({row["run"] for row in rows}) > 1
    bars = sum(_count(where(rows, source=source)) for source in sources) or 1
    heights = [_count(where(rows, source=source)) + 1 for source in sources] or [1]
    with style.figure(
        folder, "bpb", 0.7 + 0.36 * bars + 0.55 * len(heights), nrows=len(heights), squeeze=False,
        sharex=True, gridspec_kw={"height_ratios": heights},
    ) as (_, axes):  # fmt: skip
        if not rows:
            style.nothing(axes[0, 0], "No RETRO run has a GPT twin to be compared with.")
            return
        for each, source in zip(axes[:, 0], sources, strict=True):
            _draw_source(each, where(rows, source=source), several)
            each.set_title("All sources" if source == ALL else source)
        axes[-1, 0].set_xlabel(f"bits per byte on the {split} split (less is better)")
        axes[-1, 0].set_xlim(0, 1.38 * max(max(row["bits_per_byte"], row["twin_bits_per_byte"]) for row in rows))


def _count(rows: list[Row]) -> int:
    return len(rows) + len({row["twin"] for row in rows})


def _draw_source(axes: Axes, rows: list[Row], several: bool) -> None:
    labels, position = [], 0
    twins = dict.fromkeys(row["twin"] for row in rows)
    for twin in twins:
        mine = where(rows, twin=twin)
        size = mine[0]["twin_bits_per_byte"]
        axes.barh(position, size, color=palette.colour(NONE), height=0.72)
        axes.text(size, position, f"  {size:.3f}", va="center", color=palette.INK)
        labels.append("GPT" if len(twins) == 1 else twin)
        position += 1
        for row in mine:
            axes.barh(position, row["bits_per_byte"], color=palette.colour(row["retrieval"]), height=0.72)
            end = row["bits_per_byte"]
            if row["low"] is not None:
                low, high = (size * (1 + row[key] / 100) for key in ("low", "high"))
                style.whisker(axes, low, high, position)
                end = max(end, high)
            text = f"  {row['bits_per_byte']:.3f}   {percent(row['difference_percent'])}  {interval(row)}"
            axes.text(end, position, text, va="center", color=palette.INK)
            labels.append(_label(row, several))
            position += 1
    axes.set_yticks(range(position), labels)
    style.bars(axes)


def draw_sections(sections: list[Row], comparison: list[Row], folder: Path, most: int = 24) -> None:
    """Relative gain of retrieval by section of the documents; by source where titles name no sections."""
    rows = [row for row in sections if row["seed"] == ALL and row["retrieval"] == ON and row["low"] is not None]
    name, what = "section", "section"
    if not rows:
        rows = [row for row in comparison if row["seed"] == ALL and row["retrieval"] == ON]
        rows = [row for row in rows if row["low"] is not None and row["source"] != ALL]
        name, what = "source", "source"
    rows = [row for row in rows if row["run"] == rows[0]["run"] and row["split"] == rows[0]["split"]]
    rows = sorted(rows, key=lambda row: -row["documents"])[:most]
    rows.sort(key=lambda row: row["difference_percent"])
    whole = where(comparison, seed=ALL, retrieval=ON, source=ALL)
    with style.figure(folder, "sections", 1.0 + 0.33 * max(len(rows), 2)) as (_, axes):
        if not rows:
            style.nothing(axes, "Too few documents to compare by section.")
            return
        for position, row in enumerate(rows):
            value = row["difference_percent"]
            sure = row["low"] > 0 or row["high"] < 0
            colour = palette.BETTER if value < 0 else palette.WORSE
            axes.barh(position, value, color=colour, alpha=1 if sure else 0.4, height=0.7)
            style.whisker(axes, row["low"], row["high"], position)
            edge = max(row["high"], value, 0)
            axes.text(edge, position, f"  {percent(value)}", va="center")
        if whole:
            axes.axvline(whole[0]["difference_percent"], color=palette.SOFT, linestyle=(0, (4, 3)), linewidth=1)
            axes.text(
                whole[0]["difference_percent"], 1.01, f"all {percent(whole[0]['difference_percent'])}",
                ha="center", va="bottom", color=palette.SOFT, fontsize=8.5, transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        axes.axvline(0, color=palette.INK, linewidth=0.9)
        axes.set_yticks(range(len(rows)), [f"{row[name]}  ({row['documents']:.0f})" for row in rows])
        style.bars(axes)
        low = min(row["low"] for row in rows)
        high = max(max(row["high"], 0) for row in rows)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.14 * (high - low))
        axes.set_xlabel(f"bits per byte against the GPT twin, % by {what} (documents); left is better")
