"""From nats of tokens to bits per byte and perplexity, and how sure a difference is. Pure functions.

Bits per byte counts every token's nats, the end of a document's included, over the UTF-8 bytes of the text,
so it compares models of any tokenizer. Perplexity is per token and compares models of one tokenizer only.

Differences have intervals by a paired bootstrap: documents are drawn with replacement, the same draw for every loss,
and the ratio of the sums is taken for each draw. Two losses of the same documents have the same bytes, so their ratio
of nats is their ratio of bits per byte.
"""

import math
from dataclasses import dataclass
from typing import Any, overload

import numpy as np


@overload
def bits_per_byte(nats: float, size: float) -> float: ...
@overload
def bits_per_byte(nats: np.ndarray, size: np.ndarray) -> np.ndarray: ...
def bits_per_byte(nats: Any, size: Any) -> Any:
    """`nats` of a text of `size` bytes as bits per byte."""
    return nats / (math.log(2) * size)


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean nats a token."""
    return math.exp(nats / tokens)


@dataclass(frozen=True)
class Documents:
    """What is known of each evaluated document, in the split's order; D of them.

    `first`: position in the split of each document's first chunk, int64 [D]. `row`: global row of that chunk,
    int64 [D]. `source`: number of its source, int64 [D]. `tokens`, `bytes`: int64 [D].
    """

    first: np.ndarray
    row: np.ndarray
    source: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def nats(self, losses: np.ndarray) -> np.ndarray:
        """Sum of each document's losses, float64 [D], from `losses` [C, m] with NaN where there is no
        token.
        """
        chunk = np.nansum(losses, axis=1, dtype=np.float64)
        return np.add.reduceat(chunk, self.first) if len(self) else np.zeros(0)


def group_documents(rows: np.ndarray, source: np.ndarray, chunks: np.ndarray) -> Documents:
    """The documents of a split from its chunks in order.

    `rows`: global row, int64 [C]; `source`: number of the source, [C]; `chunks`: records of the chunk
    table, [C].
    """
    change = (np.diff(source) != 0) | (np.diff(chunks["document"]) != 0)
    first = np.flatnonzero(np.concatenate([[len(rows) > 0], change]))

    def total(field: str) -> np.ndarray:
        return np.add.reduceat(chunks[field].astype(np.int64), first) if len(first) else np.zeros(0, np.int64)

    return Documents(first, np.asarray(rows)[first], np.asarray(source)[first], total("length"), total("bytes"))


def section(title: str) -> str | None:
    """The section a title names: `Algeria: Geography` → `Geography`; None for a title without `: `."""
    before, mark, after = title.rpartition(": ")
    return after.strip() if mark and before.strip() and after.strip() else None


ENOUGH = 10  # documents, or groups, below which a bootstrap's interval is too narrow to be one: docs/evaluation.md
BLOCK = 4_000_000  # documents times resamplings held at a time: 32 MB of weights


@dataclass(frozen=True)
class Difference:
    """A loss against its twin, in percent of the twin's bits per byte: negative is better.

    `low`, `high`: 95 % interval, NaN for fewer than `ENOUGH` `units` drawn. `better`: share of documents with a lower
    loss.
    """

    percent: float
    low: float
    high: float
    better: float
    units: int


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
    if documents < ENOUGH:
        return Difference(percent, float("nan"), float("nan"), better, documents)
    sums = resampled_sums(np.concatenate([nats, twin], axis=1), resamplings, seed)
    ours, theirs = sums[:, :seeds], sums[:, seeds:]
    if seeds > 1:
        rng = np.random.default_rng([seed, seeds])
        drawn = rng.integers(seeds, size=(resamplings, seeds))
        ours, theirs = (np.take_along_axis(x, drawn, axis=1) for x in (ours, theirs))
    ratios = 100 * (ours.sum(1) / theirs.sum(1) - 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Difference(percent, float(low), float(high), better, documents)
