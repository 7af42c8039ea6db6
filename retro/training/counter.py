"""Random numbers by counter: each depends on a seed and its own coordinates, never on what was drawn before.

So a run that is resumed, split over processes or read in another order sees the same shuffles, dropouts and
random neighbours. The generator is SplitMix64 (Steele, Lea and Flood 2014) used as a keyed counter.
"""

from typing import Final

import numpy as np

from retro.database.hashing import STEP, mix

MASK: Final = (1 << 64) - 1

# What a number is for; two purposes never share numbers.
SHUFFLE: Final = 1
HIDE_CHUNK: Final = 2
HIDE_SAMPLE: Final = 3
RANDOM_NEIGHBOUR: Final = 4
TORCH: Final = 5
DATA: Final = 6
BLEND: Final = 7


def words(seed: int, *coordinates: int | np.ndarray) -> np.ndarray:
    """64 random bits, uint64, for each combination of coordinates (non-negative integers, broadcast)."""
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64
        key = mix(np.asarray([seed & MASK], np.uint64))
        for coordinate in coordinates:
            key = mix(key + STEP * np.asarray(coordinate).astype(np.uint64))
    return key if np.broadcast(*coordinates, 0).ndim else key[0]


def uniform(seed: int, *coordinates: int | np.ndarray) -> np.ndarray:
    """Random float64 in [0, 1) for each combination of coordinates."""
    return (words(seed, *coordinates) >> np.uint64(11)) * 2.0**-53


def derive(seed: int, *coordinates: int) -> int:
    """Another seed, below 2^63."""
    return int(words(seed, *coordinates)) >> 1
