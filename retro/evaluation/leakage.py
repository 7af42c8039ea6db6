"""How much of each evaluated chunk stands, token by token, in what the model trained on or is shown (RETRO §2.6).

training.npy, int16 [C]: the longest run of tokens that a chunk shares with any of its 10 nearest chunks of the training
data and their continuations; what the weights may remember. shown.npy: the same with the neighbours that
retrieval shows; what can be copied. They differ where the database holds text that was not trained on. Where runs see
different numbers of neighbours, or of their chunks, each has an array of its own: shown-<neighbours>x<chunks>.npy.

Runs are found by dynamic programming over blocks of chunks (`retro.retrieval.filter.common_runs`).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from retro.base import log, stage
from retro.base.artifacts import write_array, write_manifest
from retro.base.names import HELD_OUT
from retro.base.stage import UserError, given, whole
from retro.dataset.dataset import Dataset
from retro.dataset.store import Vectors
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred
from retro.retrieval.filter import common_runs


def common_run(chunks: np.ndarray, real: np.ndarray, neighbours: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Length of the longest run of tokens that each chunk shares with any one of its neighbours, int64 [c];
    arguments as of `common_runs`.
    """
    return common_runs(chunks, real, neighbours, shown).max(axis=1, initial=0)


def ratio(runs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """r = s/m, float64 [C]: the share of a chunk's own tokens that its longest common run is."""
    return runs / np.maximum(lengths, 1)


def views(settings: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """What runs are shown: neighbours a chunk and chunks of each, by the name of the array of its overlap."""
    found = {"shown": (settings["shown"], settings["retrieved_chunks"])}
    return found | {name: (count, retrieved) for name, (count, retrieved) in settings.get("others", {}).items()}


STAGE = "retro.evaluation.leakage"
BLOCK = 4096  # chunks whose neighbours' tokens are read at a time


def nearest(dataset: Dataset, split: str, count: int, threads: int) -> np.ndarray:
    """Global rows int64 [C, count] of each chunk's nearest training chunks, −1 where there are fewer.

    The stored neighbours where the database is the training data and only their own document is excluded; an exact
    search of the training chunks otherwise, of which nothing is excluded: evaluated documents are not among them.
    """
    train, ids = dataset.rows("train"), dataset.neighbour_ids(split)
    stored = dataset.facts["neighbours"]["exclude"] == ["document"] and ids.shape[1] >= count
    if stored and np.array_equal(train, dataset.database):
        return dataset.neighbour_rows(ids[:, :count])
    vectors = Vectors([dataset.folder / "embeddings" / name / "manifest.json" for name in dataset.sources])
    rows, search = dataset.rows(split), ExactSearch(vectors, train, threads)
    found = np.empty((len(rows), count), np.int64)
    with log.bar(len(rows), f"nearest training chunks of {split}", "chunk") as shown:
        for low in range(0, len(rows), BLOCK):
            here = slice(low, low + BLOCK)
            found[here] = search.search(vectors.read(rows[here]), count, Barred([]), shown.update)[0]
    return np.where(found >= 0, train[np.maximum(found, 0)], -1)


def runs(dataset: Dataset, split: str, neighbours: np.ndarray, retrieved: int, what: str) -> np.ndarray:
    """Longest common run of each chunk of a split with its `neighbours`, global rows [C, k]: int16 [C]."""
    rows, found = dataset.rows(split), []
    with log.bar(len(rows), what, "chunk") as shown:
        for low in range(0, len(rows), BLOCK):
            here = slice(low, low + BLOCK)
            seen = dataset.store.retrieved(np.asarray(neighbours[here]), retrieved)
            found.append(common_run(*dataset.store.tokens(rows[here]), *seen))
            shown.update(len(found[-1]))
    return np.concatenate(found).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--settings", required=True, type=given, help="nearest, shown, retrieved_chunks, as JSON")
    parser.add_argument("--split", required=True, choices=HELD_OUT, help="split to measure")
    parser.add_argument("--output", required=True, type=Path, help="manifest.json to write")
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
    options = parser.parse_args()
    dataset, settings, split = Dataset.open(options.config), options.settings, options.split
    rows = dataset.rows(split)
    if not len(rows):
        raise UserError(f"{options.config}: the {split} split is empty. Remove it from evaluate.splits.")
    ids = dataset.neighbour_ids(split)
    near = {"training": (nearest(dataset, split, settings["nearest"], options.threads), 2)}
    for name, (count, retrieved) in views(settings).items():
        near[name] = (dataset.neighbour_rows(ids[:, :count]), retrieved)
    lengths, files = dataset.store.chunks(rows)["length"], []
    counts: dict[str, float] = {"chunks": len(rows)}
    for name, (neighbours, retrieved) in near.items():
        found = runs(dataset, split, neighbours, retrieved, f"overlap of {split}, {name}")
        files.append(options.output.parent / f"{name}.npy")
        write_array(files[-1], found)
        counts[f"mean_ratio_{name}"] = round(float(ratio(found, lengths).mean()), 6)
    write_manifest(
        options.output,
        kind="overlap",
        stage=STAGE,
        files=files,
        inputs=[options.config],
        settings={**settings, "split": split},
        counts=counts,
        seed=dataset.facts["seed"],
    )
    told = ", ".join(f"{name} {counts[f'mean_ratio_{name}']:.3f}" for name in near)
    print(f"mean share of a chunk in its longest common run: {told} → {options.output.parent}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
