"""Which sources neighbours come from."""

import numpy as np

from retro.database.tables import LISTED
from retro.recorded import Dataset

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
