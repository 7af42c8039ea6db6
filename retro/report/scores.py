"""Figure `neighbours`: how similar neighbours are, by rank and against random pairs, and where they come
from.
"""

from pathlib import Path

import numpy as np

from retro.artifacts import read_manifest
from retro.evaluation.conditions import NONE
from retro.recorded import Dataset
from retro.report import palette, style
from retro.report.shares import shares

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


def draw_neighbours(dataset: Dataset, split: str, used: int, folder: Path) -> None:
    """Left: densities of scores of the first, second and last neighbour and of random pairs. Right:
    sources.
    """
    manifest = read_manifest(dataset.folder / f"neighbours/{split}/manifest.json", "neighbours")
    scores, ids = manifest.array("scores.npy"), dataset.neighbour_ids(split)
    ratios = {"width_ratios": [1.7, 1]}
    with style.figure(folder, "neighbours", 3.3, ncols=2, gridspec_kw=ratios) as (_, (left, right)):
        if not len(ids) or not (ids >= 0).any():
            style.nothing(left, f"The {split} split has no neighbours.")
            style.nothing(right, "")
            return
        curves = {"random pairs": random_scores(dataset, split)}
        ranks = sorted({1, 2, ids.shape[1]} & set(range(1, ids.shape[1] + 1)), reverse=True)
        for rank in ranks:
            ordinal = {1: "1st neighbour", 2: "2nd neighbour"}.get(rank, f"{rank}th neighbour")
            curves[ordinal] = np.asarray(scores[:, rank - 1], np.float32)[ids[:, rank - 1] >= 0]
        curves = {name: values for name, values in curves.items() if values is not None and len(values)}
        everything = np.concatenate(list(curves.values()))
        edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-3), BINS + 1)
        middle = (edges[1:] + edges[:-1]) / 2
        colours = {
            "random pairs": palette.colour(NONE),
            "1st neighbour": "#0072b2",
            "2nd neighbour": "#56b4e9",
        }
        for name, values in curves.items():
            density = _smooth(np.histogram(values, edges)[0] / len(values))
            colour = colours.get(name, "#009e73")
            left.fill_between(middle, density, color=colour, alpha=0.16, linewidth=0)
            left.plot(middle, density, color=colour, label=name)
        left.set(xlabel="score (cosine of the embeddings)", title=f"Similarity, {split} split")
        left.set_yticks([])
        left.spines["left"].set_visible(False)
        left.set_ylim(0, 1.3 * left.get_ylim()[1])
        left.legend(
            loc="upper center", ncols=min(len(curves), 2 + len(curves) % 2), columnspacing=1.2, handlelength=1.4
        )
        found = shares(dataset, np.asarray(ids[:, :used]))
        right.barh(range(len(found)), found.values(), color=palette.SOURCES[: len(found)], height=0.62)
        for position, share in enumerate(found.values()):
            right.text(share, position, "  <1%" if share < 0.005 else f"  {share:.0%}", va="center")
        right.set_yticks(range(len(found)), list(found))
        right.set_xlim(0, 1.2 * max(found.values()))
        right.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        right.set(xlabel=f"share of the {used} neighbours used", title="Where they come from")
        style.bars(right)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A narrow binomial blur: a histogram's outline without its teeth."""
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    return np.convolve(values, kernel, "same")
