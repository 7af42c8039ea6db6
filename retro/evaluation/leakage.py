"""How much of each evaluated chunk stands, token by token, in what the model trained on or is shown (RETRO §2.6).

training.npy, int16 [C]: the longest run of tokens that a chunk shares with any of its 10 nearest chunks of the training
data and their continuations; what the weights may remember. shown.npy: the same with the neighbours that
retrieval shows; what can be copied. They differ where the database holds text that was not trained on.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from retro import errors, progress
from retro.arguments import given
from retro.artifacts import write_array, write_manifest
from retro.database.tables import HELD_OUT
from retro.errors import UserError
from retro.evaluation.overlaps import common_run, ratio
from retro.recorded import Dataset
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred
from retro.retrieval.vectors import Vectors

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
    with progress.bar(len(rows), f"nearest training chunks of {split}", "chunk") as shown:
        for low in range(0, len(rows), BLOCK):
            here = slice(low, low + BLOCK)
            found[here] = search.search(vectors.read(rows[here]), count, Barred([]), shown.update)[0]
    return np.where(found >= 0, train[np.maximum(found, 0)], -1)


def runs(dataset: Dataset, split: str, neighbours: np.ndarray, retrieved: int, what: str) -> np.ndarray:
    """Longest common run of each chunk of a split with its `neighbours`, global rows [C, k]: int16 [C]."""
    rows, found = dataset.rows(split), []
    with progress.bar(len(rows), what, "chunk") as shown:
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
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    options = parser.parse_args()
    dataset, settings, split = Dataset.open(options.config), options.settings, options.split
    rows = dataset.rows(split)
    if not len(rows):
        raise UserError(f"{options.config}: the {split} split is empty. Remove it from evaluate.splits.")
    ids = dataset.neighbour_ids(split)[:, : settings["shown"]]
    near = {
        "training": (nearest(dataset, split, settings["nearest"], options.threads), 2),
        "shown": (dataset.neighbour_rows(ids), settings["retrieved_chunks"]),
    }
    lengths, files, counts = dataset.store.chunks(rows)["length"], [], {"chunks": len(rows)}
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
    errors.run(main)
