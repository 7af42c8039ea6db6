"""The score of a pair of chunks and the order of neighbours, defined so that nothing can change them.

Matrix products round differently with every batch size, thread count and library, so what they give only
chooses candidates. The score that decides is

    score(q, x) = Σ_i round(q_i · 2^25) · round(x_i · 2^25) / 2^50

Rounding a component of a unit vector to 2^−25 costs less than float32 does. Products are then multiples of
2^−50, and no partial sum of a unit vector's products exceeds 1, so every sum fits the 53 bits of a float64:
the arithmetic is exact, whatever the order of summation. Equal vectors have equal scores. Neighbours are
ordered by score, highest first, and equal scores by id, smallest first.
"""

import numpy as np

GRID = np.float32(2.0**25)
PAIRS = 1024  # pairs scored at a time, so that they stay in a CPU core's cache


def slack(width: int) -> float:
    """How far a float32 dot product of unit vectors of `width` dimensions can be from their score.

    Summation in any order errs by at most width · 2^−24 for unit vectors; rounding to the grid, and norms
    that are off by a rounding, add less than the rest.
    """
    return (width + 64) * 2.0**-24


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """float64: components of float32 vectors as multiples of 2^−25, which are whole numbers."""
    scaled = vectors * GRID  # exact: a power of two
    return np.rint(scaled, out=scaled).astype(np.float64)


def score_pairs(queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """float64 [q, n]: exact scores of `queries` float32 [q, d] with each one's own vectors `found` [q, n,
    d].
    """
    return np.matmul(on_grid(found), on_grid(queries)[:, :, None])[:, :, 0] / np.float64(GRID) ** 2


def best(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each row's candidates in the order of neighbours: int64 and float64 [q, k].

    `ids` [q, n] has each candidate of a row once, in any order, −1 for none; `scores` [q, n] −∞ for none.
    Rows with fewer than k candidates are filled with −1 and −∞.
    """
    if ids.shape[1] < k:
        short = ((0, 0), (0, k - ids.shape[1]))
        ids, scores = np.pad(ids, short, constant_values=-1), np.pad(scores, short, constant_values=-np.inf)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
