"""A 64-bit mixing function over whole arrays: the same on every machine, in every process."""

import numpy as np

STEP, FIRST, SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(values: np.ndarray) -> np.ndarray:
    """Scatter uint64 `values` over all 64 bits, one to one (the output function of SplitMix64)."""
    mixed = values.astype(np.uint64) + STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
    return mixed ^ (mixed >> np.uint64(31))
