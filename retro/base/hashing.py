"""Numbers that depend on keys alone, the same on every machine and in every process.

`mix` scatters keys over 64 bits (SplitMix64). Random numbers come by counter: each depends on a seed and its own
coordinates, never on what was drawn before.
"""

from typing import Final

import numpy as np

STEP, FIRST, SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(values: np.ndarray) -> np.ndarray:
    """Scatter uint64 `values` over all 64 bits, one to one (the output function of SplitMix64)."""
    mixed = values.astype(np.uint64) + STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
    return mixed ^ (mixed >> np.uint64(31))


MASK: Final = (1 << 64) - 1

# What a number is for; two purposes never share numbers.
SHUFFLE: Final = 1
HIDE_CHUNK: Final = 2
HIDE_SAMPLE: Final = 3
RANDOM_NEIGHBOUR: Final = 4
TORCH: Final = 5
DATA: Final = 6
BLEND: Final = 7
SAMPLE: Final = 8
SHOW_AHEAD: Final = 9
PLACE_AHEAD: Final = 10


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
