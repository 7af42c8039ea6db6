"""Neighbours that are controls: what retrieval must beat to have helped.

`random`: admissible chunks of the database, drawn evenly. `shuffled`: the nearest neighbours of another chunk
of the split, which are as much like each other as real ones, and the database's text, but of another subject.
"""

import numpy as np

from retro.database.hashing import mix
from retro.errors import UserError
from retro.retrieval.exclusion import Barred

DRAWS = (4, 32)  # candidates drawn, as multiples of k, before a chunk's admissible ones are listed


def draw(positions: np.ndarray, barred: Barred, size: int, k: int, seed: int) -> np.ndarray:
    """int64 [q, k]: k different admissible positions of a database of `size`, in the order drawn, −1 where
    there are fewer.

    A chunk's draws are a function of the seed and its position in the split: not of the block it is in.
    """
    streams = mix(np.asarray(positions).astype(np.uint64) + mix(np.array([seed], np.uint64)))
    found, open_ = np.full((len(streams), k), -1, np.int64), np.arange(len(streams))
    for times in DRAWS:
        steps = mix(np.arange(times * k, dtype=np.uint64))
        drawn = (mix(streams[open_, None] + steps) % np.uint64(size)).astype(np.int64)
        drawn[barred[open_].among(drawn)] = -1
        for row, candidates in zip(open_, drawn, strict=True):
            _, places = np.unique(candidates, return_index=True)
            chosen = candidates[np.sort(places)]
            chosen = chosen[chosen >= 0][:k]
            found[row, : len(chosen)] = chosen
        open_ = open_[found[open_, -1] < 0]
    for row in open_:
        excluded = barred[row : row + 1].within(0, size)[1]
        allowed = np.setdiff1d(np.arange(size), excluded)
        order = np.argsort(mix(streams[row] + mix(allowed.astype(np.uint64))), kind="stable")
        found[row] = -1
        found[row, : min(k, len(allowed))] = allowed[order[:k]]
    return found


def others(count: int, seed: int) -> np.ndarray:
    """int64 [count]: another position for each of `count`, each taken once: a seeded cycle through all."""
    if count == 1:
        raise UserError(
            "dataset.retriever shuffled: a split of one chunk has no other chunk to take neighbours from. Add "
            "documents to it."
        )
    order, found = np.random.default_rng(seed).permutation(count), np.empty(count, np.int64)
    found[order] = np.roll(order, 1)
    return found


def both(first: Barred, second: Barred) -> Barred:
    """What either excludes."""
    return Barred(first.parts + second.parts)
