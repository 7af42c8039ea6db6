"""Figures of what retrieval bought, with 95 % intervals, and of what was retrieved.

`bpb` and `sections` show bits per byte. `neighbours` shows how similar neighbours are, by rank and against random
pairs, and which sources they come from.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from retro.base.artifacts import read_manifest, write_text
from retro.base.names import ALL, LISTED
from retro.dataset.dataset import Dataset
from retro.evaluation import tables
from retro.evaluation.conditions import LABELS, NONE, ON
from retro.report import style
from retro.report.read import Row, where
from retro.report.style import interval, percent


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
        gpt = axes.barh(position, size, color=style.colour(NONE), height=0.72)
        style.tell(gpt[0], f"{twin}: {size:.4f} bits per byte")
        axes.text(size, position, f"  {size:.3f}", va="center", color=style.INK)
        labels.append("GPT" if len(twins) == 1 else twin)
        position += 1
        for row in mine:
            bar = axes.barh(position, row["bits_per_byte"], color=style.colour(row["retrieval"]), height=0.72)
            style.tell(bar[0], f"{_label(row, True)}: {row['bits_per_byte']:.4f} bits per byte, twin {size:.4f}")
            end = row["bits_per_byte"]
            if row["low"] is not None:
                low, high = (size * (1 + row[key] / 100) for key in ("low", "high"))
                style.whisker(axes, low, high, position)
                end = max(end, high)
            text = f"  {row['bits_per_byte']:.3f}   {percent(row['difference_percent'])}  {interval(row)}"
            axes.text(end, position, text, va="center", color=style.INK)
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
            colour = style.BETTER if value < 0 else style.WORSE
            bar = axes.barh(position, value, color=colour, alpha=1 if sure else 0.4, height=0.7)
            style.tell(bar[0], f"{row[name]}: {percent(value)} {interval(row)}, {row['documents']:.0f} documents")
            style.whisker(axes, row["low"], row["high"], position)
            edge = max(row["high"], value, 0)
            axes.text(edge, position, f"  {percent(value)}", va="center")
        if whole:
            axes.axvline(whole[0]["difference_percent"], color=style.SOFT, linestyle=(0, (4, 3)), linewidth=1)
            axes.text(
                whole[0]["difference_percent"], 1.01, f"all {percent(whole[0]['difference_percent'])}",
                ha="center", va="bottom", color=style.SOFT, fontsize=8.5, transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        axes.axvline(0, color=style.INK, linewidth=0.9)
        axes.set_yticks(range(len(rows)), [f"{row[name]}  ({row['documents']:.0f})" for row in rows])
        style.bars(axes)
        low = min(row["low"] for row in rows)
        high = max(max(row["high"], 0) for row in rows)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.14 * (high - low))
        axes.set_xlabel(f"bits per byte against the GPT twin, % by {what} (documents); left is better")


PAIRS = 20_000
BINS = 60


def random_scores(dataset: Dataset, split: str) -> np.ndarray | None:
    """Scores of seeded random pairs of a chunk of the split and a database chunk; None without embeddings."""
    names = [f"embeddings/{source}/manifest.json" for source in dataset.sources]
    if not all(name in dataset.facts["manifests"] for name in names):
        return None
    arrays = [dataset.manifest(name, "embeddings").array("embeddings.npy") for name in names]
    offsets = dataset.store.offsets

    def vectors(rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), arrays[0].shape[1]), np.float32)
        source = dataset.store.source(rows)
        for number in np.unique(source):
            here = np.flatnonzero(source == number)
            found[here] = arrays[number][rows[here] - offsets[number]]
        return found

    rng = np.random.default_rng(dataset.facts["seed"])
    rows = dataset.rows(split)
    left = rows[rng.integers(len(rows), size=PAIRS)]
    right = dataset.database[rng.integers(len(dataset.database), size=PAIRS)]
    return np.einsum("nd,nd->n", vectors(left), vectors(right))


def draw_neighbours(dataset: Dataset, split: str, used: list[int], folder: Path) -> None:
    """Left: densities of scores of the first, second and last neighbour and of random pairs. Right:
    sources of as many neighbours as the run with the most uses; `used` of all runs, ascending. neighbours.csv has both.
    """
    rows = _draw_neighbours(dataset, split, used, folder)
    write_text(folder / "neighbours.csv", tables.as_csv(("drawn", "at", "share"), rows))


def _draw_neighbours(dataset: Dataset, split: str, used: list[int], folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    manifest = read_manifest(dataset.folder / f"neighbours/{split}/manifest.json", "neighbours")
    scores, ids = manifest.array("scores.npy"), dataset.neighbour_ids(split)
    ratios = {"width_ratios": [1.7, 1]}
    with style.figure(folder, "neighbours", 3.3, ncols=2, gridspec_kw=ratios) as (_, (left, right)):
        if not len(ids) or not (ids >= 0).any():
            style.nothing(left, f"The {split} split has no neighbours.")
            style.nothing(right, "")
            return rows
        curves: dict[str, np.ndarray] = {}
        if (pairs := random_scores(dataset, split)) is not None:
            curves["random pairs"] = pairs
        ranks = sorted({1, 2, ids.shape[1]} & set(range(1, ids.shape[1] + 1)), reverse=True)
        for rank in ranks:
            ordinal = {1: "1st neighbour", 2: "2nd neighbour"}.get(rank, f"{rank}th neighbour")
            curves[ordinal] = np.asarray(scores[:, rank - 1], np.float32)[ids[:, rank - 1] >= 0]
        curves = {name: values for name, values in curves.items() if len(values)}
        everything = np.concatenate(list(curves.values()))
        edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-3), BINS + 1)
        middle = (edges[1:] + edges[:-1]) / 2
        colours = {
            "random pairs": style.colour(NONE),
            "1st neighbour": "#0072b2",
            "2nd neighbour": "#56b4e9",
        }
        for name, values in curves.items():
            density = _smooth(np.histogram(values, edges)[0] / len(values))
            colour = colours.get(name, "#009e73")
            left.fill_between(middle, density, color=colour, alpha=0.16, linewidth=0)
            (drawn,) = left.plot(middle, density, color=colour, label=name)
            style.tell(drawn, f"{name}: mean score {values.mean():.3f}, median {np.median(values):.3f}")
            rows += [
                {"drawn": name, "at": f"{at:.4f}", "share": f"{share:.5f}"}
                for at, share in zip(middle, density, strict=True)
            ]
        left.set(xlabel="score (cosine of the embeddings)", title=f"Similarity, {split} split")
        left.set_yticks([])
        left.spines["left"].set_visible(False)
        left.set_ylim(0, 1.3 * left.get_ylim()[1])
        left.legend(
            loc="upper center", ncols=min(len(curves), 2 + len(curves) % 2), columnspacing=1.2, handlelength=1.4
        )
        found = shares(dataset, np.asarray(ids[:, : used[-1]]))
        if not found:
            style.nothing(right, "No run uses neighbours.")
            return rows
        bars = right.barh(range(len(found)), found.values(), color=style.SOURCES[: len(found)], height=0.62)
        for bar, (name, share) in zip(bars, found.items(), strict=True):
            style.tell(bar, f"{name}: {100 * share:.1f} %")
            rows.append({"drawn": "source", "at": name, "share": f"{share:.5f}"})
        for position, share in enumerate(found.values()):
            right.text(share, position, "  <1%" if share < 0.005 else f"  {share:.0%}", va="center")
        right.set_yticks(range(len(found)), list(found))
        right.set_xlim(0, 1.2 * max(found.values()))
        right.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        most = f"{used[-1]} neighbours used"
        if len(used) > 1:
            most = f"first {used[-1]} neighbours; runs use {', '.join(map(str, used))}"
        right.set(xlabel=f"share of the {most}", title="Where they come from")
        style.bars(right)
    return rows


def _smooth(values: np.ndarray) -> np.ndarray:
    """A narrow binomial blur: a histogram's outline without its teeth."""
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    return np.convolve(values, kernel, "same")


MOST = 100_000  # chunks of a split that are looked at, evenly spaced


def shares(dataset: Dataset, ids: np.ndarray) -> dict[str, float]:
    """Share of neighbours that each source provides, largest first; `none found` for holes."""
    rows = dataset.neighbour_rows(ids).reshape(-1)
    real = rows[rows >= 0]
    counts = np.bincount(dataset.store.source(real), minlength=len(dataset.sources))
    found = {name: float(count) / len(rows) for name, count in zip(dataset.sources, counts, strict=True) if count}
    if len(real) < len(rows):
        found["none found"] = 1 - len(real) / len(rows)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def by_split(dataset: Dataset) -> dict[str, dict[str, float]]:
    """`shares` of all stored neighbours of every split that has chunks, of at most `MOST` chunks each."""
    found = {}
    for split in LISTED:
        ids = dataset.neighbour_ids(split)
        if len(ids):
            found[split] = shares(dataset, np.asarray(ids[:: -(-len(ids) // MOST)]))
    return found
