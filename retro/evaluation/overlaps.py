"""Longest common runs of tokens, by dynamic programming over blocks of chunks. Pure functions."""

import numpy as np

CELLS = 1 << 22  # pairs of a chunk and a neighbour's token held at a time


def common_run(chunks: np.ndarray, real: np.ndarray, neighbours: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Length of the longest run of tokens that each chunk shares with any one of its neighbours, int64 [c].

    `chunks` [c, m] and `neighbours` [c, k, r] are tokens, `real` and `shown` bool of the same shapes: what is padding
    equals nothing and ends a run. Time c·m·k·r, memory a constant (RETRO §2.6).
    """
    count, m = chunks.shape
    found = np.zeros(count, np.int64)
    step = max(1, CELLS // max(1, neighbours.shape[1] * neighbours.shape[2]))
    for low in range(0, count, step):
        here = slice(low, low + step)
        there, seen = neighbours[here], shown[here]
        run = np.zeros((*there.shape[:2], there.shape[2] + 1), np.int32)  # runs that end at each place, and before
        for at in range(m):
            equal = (there == chunks[here, at][:, None, None]) & seen & real[here, at][:, None, None]
            run[..., 1:] = np.where(equal, run[..., :-1] + 1, 0)
            np.maximum(found[here], run.max(axis=(1, 2), initial=0), out=found[here])
    return found


def ratio(runs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """r = s/m, float64 [C]: the share of a chunk's own tokens that its longest common run is."""
    return runs / np.maximum(lengths, 1)
