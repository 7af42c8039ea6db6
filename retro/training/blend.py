"""Weighted blends: how many training samples come from each source, and which ones."""

import math
from fractions import Fraction
from typing import Final

import numpy as np

from retro.errors import UserError
from retro.recorded import Dataset
from retro.training import counter
from retro.training.samples import Samples, documents_of

PERIOD: Final = 1 << 16  # samples after which the assignment repeats, at most


def shares(weights: list[float]) -> np.ndarray:
    """Weights as whole numbers, int64: samples of each source in a period.

    As written where that gives a period of at most `PERIOD`, else rounded to shares of `PERIOD` (largest remainders
    first, ties to the earlier source), at least one sample each.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(each.denominator for each in exact))
    whole = [int(each * scale) for each in exact]
    whole = [each // math.gcd(*whole) for each in whole]
    total = sum(whole)
    if total <= PERIOD:
        return np.array(whole, np.int64)
    found = [max(1, PERIOD * each // total) for each in whole]
    owed = sorted(range(len(whole)), key=lambda i: (-(PERIOD * whole[i] % total), i))
    for i in range(PERIOD - sum(found)):
        found[owed[i % len(owed)]] += 1
    return np.array(found, np.int64)


def assignment(samples: np.ndarray) -> np.ndarray:
    """Source of each sample of a period, int64 [sum(samples)]: always the one furthest below its share.

    Ties go to the earlier source. At the end of a period every source has its share exactly, so it can begin again.
    """
    period = int(samples.sum())
    given, found = np.zeros(len(samples), np.int64), np.empty(period, np.int64)
    for number in range(period):
        source = int(np.argmax(samples * (number + 1) - period * given))
        found[number] = source
        given[source] += 1
    return found


class Blend:
    """A stream of samples of several sources in fixed shares; `sample` and `samples` as those of `Samples`.

    Each source is a stream of its own: its documents shuffled anew in each of its epochs, which follow each other
    without a gap, the next sample of a source beginning where its last one ended. Which source a sample comes from,
    and which of its samples it is, are functions of the sample's number alone.
    """

    def __init__(
        self, documents: np.ndarray, bounds: np.ndarray, weights: dict[str, float], seq_chunks: int, seed: int
    ):
        """`documents` as for `Samples`; `bounds` int64 [sources + 1]: where each source begins in the split, and its
        end; `weights` by source. Raises UserError if a source has too few chunks for one sample.
        """
        self.count, self.seq_chunks, self.names = len(documents), seq_chunks, list(weights)
        self.bounds, self.shares = bounds, shares(list(weights.values()))
        self._sources = assignment(self.shares)
        is_source = self._sources[:, None] == np.arange(len(weights))
        self._given = np.concatenate([np.zeros((1, len(weights)), np.int64), np.cumsum(is_source, axis=0)])
        self.streams = []
        for number, name in enumerate(self.names):
            own = documents[bounds[number] : bounds[number + 1]]
            if len(own) < seq_chunks:
                raise UserError(
                    f"source {name} has {len(own)} chunks in the training split, fewer than the {seq_chunks} of one "
                    f"sample, but a weight. Add documents to it, or set train: false and leave out its weight."
                )
            self.streams.append(Samples(own, seq_chunks, counter.derive(seed, counter.BLEND, number)))

    def given(self, number: int) -> np.ndarray:
        """How many of the first `number` samples come from each source, int64 [sources]."""
        periods, rest = divmod(number, len(self._sources))
        return periods * self.shares + self._given[rest]

    def sample(self, number: int) -> np.ndarray:
        """Positions in the split, int64 [seq_chunks + 1]: the sample's chunks and the one that follows them."""
        source = int(self._sources[number % len(self._sources)])
        return self.bounds[source] + self.streams[source].sample(int(self.given(number)[source]))

    def samples(self, numbers: np.ndarray) -> np.ndarray:
        """`sample` of each number: int64 [len(numbers), seq_chunks + 1]."""
        found = [self.sample(int(number)) for number in numbers]
        return np.stack(found) if found else np.empty((0, self.seq_chunks + 1), np.int64)

    def facts(self, number: int) -> dict[str, dict[str, float]]:
        """What the first `number` samples came to: by source samples, their share, the wanted one, epochs begun."""
        given, chunks = self.given(number), np.diff(self.bounds)
        return {
            name: {
                "samples": int(given[i]),
                "share": round(int(given[i]) / max(number, 1), 6),
                "wanted": round(int(self.shares[i]) / len(self._sources), 6),
                "epochs": round(int(given[i]) * self.seq_chunks / int(chunks[i]), 4),
            }
            for i, name in enumerate(self.names)
        }


def open_samples(dataset: Dataset, seed: int) -> Samples | Blend:
    """The training stream of a dataset: one shuffle of all chunks, or a blend where its sources have weights."""
    documents, seq_chunks = documents_of(dataset, "train"), dataset.seq_length // dataset.chunk_length
    sources = dataset.facts.get("sources", {})
    weights = {name: sources[name]["weight"] for name in dataset.sources if "weight" in sources.get(name, {})}
    if not weights:
        return Samples(documents, seq_chunks, seed)
    rows, offsets = dataset.rows("train"), dataset.store.offsets
    begins = [offsets[number] for number, name in enumerate(dataset.sources) if name in weights]
    # Sources without a weight have no chunk in the split, so that each weighted one ends where the next begins.
    bounds = np.append(np.searchsorted(rows, begins), len(rows)).astype(np.int64)
    return Blend(documents, bounds, weights, seq_chunks, seed)


def blend_facts(samples: Samples | Blend, number: int) -> dict[str, dict]:
    """For the manifest of a model: `samples_by_source` of a blend, nothing otherwise."""
    return {"samples_by_source": samples.facts(number)} if isinstance(samples, Blend) else {}


def describe(samples: Samples | Blend, number: int) -> list[str]:
    """Lines for the training log: what each source of a blend gives."""
    if not isinstance(samples, Blend):
        return []
    return [
        f"blend      {name}: {facts['samples']:,} samples, {facts['share']:.2%} (weight {facts['wanted']:.2%}), "
        f"{facts['epochs']:.2f} epochs"
        for name, facts in samples.facts(number).items()
    ]
