"""Paired bootstrap over documents: how sure is a difference in bits per byte?

Documents are drawn with replacement, the same draw for every loss, and the ratio of the sums is taken for
each draw. Two losses of the same documents have the same bytes, so their ratio of nats is their ratio of
bits per byte.
"""

from dataclasses import dataclass

import numpy as np

BLOCK = 4_000_000  # documents times resamplings held at a time: 32 MB of weights


@dataclass(frozen=True)
class Difference:
    """A loss against its twin, in percent of the twin's bits per byte: negative is better.

    `low`, `high`: 95 % interval, NaN for a single document. `better`: share of documents with a lower loss.
    """

    percent: float
    low: float
    high: float
    better: float


def resampled_sums(nats: np.ndarray, resamplings: int, seed: int) -> np.ndarray:
    """Sums of `nats` [D, columns] over documents drawn with replacement: float64 [resamplings, columns]."""
    documents = len(nats)
    rng = np.random.default_rng(seed)
    share = np.full(documents, 1 / documents)
    found = np.empty((resamplings, nats.shape[1]))
    step = max(1, BLOCK // documents)
    for low in range(0, resamplings, step):
        high = min(low + step, resamplings)
        weights = rng.multinomial(documents, share, size=high - low)  # (block, D)
        found[low:high] = weights @ nats
    return found


def by_unit(values: np.ndarray, units: np.ndarray | None) -> np.ndarray:
    """Sums of `values` [D, ...] over the documents of each unit [U, ...]; as they are where `units` is None."""
    if units is None:
        return values
    numbers = np.unique(units, return_inverse=True)[1].reshape(-1)
    found = np.zeros((int(numbers.max(initial=-1)) + 1, *values.shape[1:]), values.dtype)
    np.add.at(found, numbers, values)
    return found


def compare(
    nats: np.ndarray, twin: np.ndarray, resamplings: int, seed: int, units: np.ndarray | None = None
) -> Difference:
    """Compare `nats` with its `twin`: float64 [D], or [D, S] for S seeds, seed s paired with seed s.

    With several seeds documents and seeds are both drawn with replacement, so that the interval covers both.
    `units`, int [D]: documents of one unit are drawn together (a country's pages); default: each by itself.
    """
    nats, twin = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (nats, twin))
    percent = float(100 * (nats.sum() / twin.sum() - 1))
    better = float(np.mean(nats.sum(1) < twin.sum(1)))
    nats, twin = (by_unit(x, units) for x in (nats, twin))
    documents, seeds = nats.shape
    if documents < 2:
        return Difference(percent, float("nan"), float("nan"), better)
    sums = resampled_sums(np.concatenate([nats, twin], axis=1), resamplings, seed)
    ours, theirs = sums[:, :seeds], sums[:, seeds:]
    if seeds > 1:
        rng = np.random.default_rng([seed, seeds])
        drawn = rng.integers(seeds, size=(resamplings, seeds))
        ours, theirs = (np.take_along_axis(x, drawn, axis=1) for x in (ours, theirs))
    ratios = 100 * (ours.sum(1) / theirs.sum(1) - 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Difference(percent, float(low), float(high), better)
