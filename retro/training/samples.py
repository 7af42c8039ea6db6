"""Which chunks a training sample is made of: a function of the seed and the sample's number alone.

An epoch's documents are shuffled and laid end to end, cut into samples, and the samples shuffled: what follows each
other in a document stands together in a sample, and samples that follow each other have nothing to do with each other.
A `Blend` is the same for sources with weights: how many samples come from each, and which. `prefetch` makes the next
items in a thread while the current one is used.
"""

import math
import queue
import threading
from collections.abc import Generator, Iterable
from fractions import Fraction
from typing import Any, Final, TypeVar

import numpy as np

from retro.base import hashing
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset

BLOCK = 1 << 20


class Samples:
    """A stream of a split's chunks, cut into samples of `seq_chunks` chunks, which are shuffled.

    Every epoch runs through all chunks once, its documents shuffled, each document's chunks in order. Epochs
    follow each other without a gap, so nothing is dropped: a sample belongs to the epoch that it begins in, and the
    samples of an epoch come in an order of their own. With `epochs` the stream ends after so many; what
    the last sample lacks is −1.

    `documents`: int [C], equal for neighbouring chunks of one document, in split order.
    """

    def __init__(self, documents: np.ndarray, seq_chunks: int, seed: int, epochs: int | None = None):
        """Raises UserError if an endless stream has too few chunks for one sample."""
        documents = np.asarray(documents)
        self.count, self.seq_chunks, self.seed, self.epochs = len(documents), seq_chunks, seed, epochs
        if epochs is None and self.count < seq_chunks:
            raise UserError(
                f"the training split has {self.count} chunks, fewer than the {seq_chunks} of one sample. Add "
                f"documents, give the train split a larger share, or lower samples.seq_length."
            )
        changes = documents[1:] != documents[:-1]
        self.documents = int(changes.sum()) + (self.count > 0)
        self.starts = np.flatnonzero(np.concatenate([[self.count > 0], changes])).astype(np.int64)
        self.lengths = np.diff(np.concatenate([self.starts, [self.count]]))
        self._orders: dict[int, np.ndarray] = {}
        self._shuffled: tuple[int, int, np.ndarray] = (0, 0, np.empty(0, np.int64))

    @property
    def number(self) -> int | None:
        """How many samples there are, the padded last one included; None if they never end."""
        return None if self.epochs is None else -(-self.epochs * self.count // self.seq_chunks)

    def order(self, epoch: int) -> np.ndarray:
        """Positions in the split, int64 [C], in the order of an epoch."""
        if epoch not in self._orders:
            keys = hashing.words(self.seed, hashing.SHUFFLE, epoch, np.arange(len(self.starts)))
            shuffled = np.argsort(keys, kind="stable")
            lengths = self.lengths[shuffled]
            before = np.cumsum(lengths) - lengths
            order = np.repeat(self.starts[shuffled] - before, lengths) + np.arange(self.count)
            self._orders = {old: kept for old, kept in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]

    def place(self, number: int) -> int:
        """Where a sample stands in the stream, in samples: shuffled within the epoch that it begins in."""
        first, last, shuffled = self._shuffled
        if not first <= number < last:
            epoch = number * self.seq_chunks // max(self.count, 1)
            first, last = (-(-each * self.count // self.seq_chunks) for each in (epoch, epoch + 1))
            keys = hashing.words(self.seed, hashing.SAMPLE, epoch, np.arange(last - first))
            shuffled = first + np.argsort(keys, kind="stable")
            self._shuffled = first, last, shuffled
        return int(shuffled[number - first])

    def sample(self, number: int) -> np.ndarray:
        """Positions in the split, int64 [seq_chunks + 1]: the sample's chunks and the one that follows them.

        The first token of the one that follows is the sample's last target. −1: the stream has ended.
        """
        at = self.place(number) * self.seq_chunks + np.arange(self.seq_chunks + 1)
        found = np.full(len(at), -1, np.int64)
        if self.count:
            epochs, inside = np.divmod(at, self.count)
            for epoch in np.unique(epochs):
                if self.epochs is None or epoch < self.epochs:
                    here = epochs == epoch
                    found[here] = self.order(int(epoch))[inside[here]]
        return found

    def samples(self, numbers: np.ndarray) -> np.ndarray:
        """`sample` of each number: int64 [len(numbers), seq_chunks + 1]."""
        found = [self.sample(int(number)) for number in numbers]
        return np.stack(found) if found else np.empty((0, self.seq_chunks + 1), np.int64)

    def read(self, number: int) -> int:
        """How many of the `documents` the first `number` samples have a chunk of."""
        if not number or number * self.seq_chunks >= self.count:
            return self.documents if number else 0
        self.place(0)
        places, seen = self._shuffled[2][:number], np.zeros(self.documents, bool)
        for low in range(0, number, BLOCK):
            at = (places[low : low + BLOCK, None] * self.seq_chunks + np.arange(self.seq_chunks)).ravel()
            for epoch in range(1 + int(at.max() >= self.count)):  # one sample may lead into the next epoch
                here = self.order(epoch)[at[at // self.count == epoch] % self.count]
                seen[np.searchsorted(self.starts, here, side="right") - 1] = True
        return int(seen.sum())


def documents_of(dataset: Dataset, split: str) -> np.ndarray:
    """Number the documents of a split as its chunks come: int64 [C], for `Samples`."""
    rows, store = dataset.rows(split), dataset.store
    found, last, seen = np.empty(len(rows), np.int64), (-1, -1), -1
    for start in range(0, len(rows), BLOCK):  # a large split's chunk records need not be in memory at once
        block = np.asarray(rows[start : start + BLOCK])
        source, document = store.source(block), store.chunks(block)["document"].astype(np.int64)
        new = (np.diff(source, prepend=last[0]) != 0) | (np.diff(document, prepend=last[1]) != 0)
        found[start : start + BLOCK] = seen + np.cumsum(new)
        last, seen = (int(source[-1]), int(document[-1])), int(found[start + len(block) - 1])
    return found


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
            self.streams.append(Samples(own, seq_chunks, hashing.derive(seed, hashing.BLEND, number)))

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

    @property
    def documents(self) -> int:
        """Documents of all sources."""
        return sum(stream.documents for stream in self.streams)

    def read(self, number: int) -> int:
        """How many of the `documents` the first `number` samples have a chunk of."""
        return sum(stream.read(int(given)) for stream, given in zip(self.streams, self.given(number), strict=True))

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


FEW, MANY = 0.2, 4  # epochs


def reach(samples: Samples | Blend, number: int) -> dict[str, Any]:
    """What the first `number` samples come to, for log and manifest: documents, those read, epochs; of a blend also
    `samples_by_source`.
    """
    by_source = {"samples_by_source": samples.facts(number)} if isinstance(samples, Blend) else {}
    epochs = round(number * samples.seq_chunks / samples.count, 4)
    return {"documents": samples.documents, "documents_read": samples.read(number), "epochs": epochs, **by_source}


def doubt(reached: dict[str, Any]) -> str | None:
    """What is wrong with how often a training reads its corpus, or None."""
    epochs, read, documents = reached["epochs"], reached["documents_read"], reached["documents"]
    if epochs > MANY:
        return (
            f"reads its corpus {epochs:.1f} times, and what is read more than {MANY} times is learnt by heart: lower "
            f"dataset.samples.train_samples or epochs, leave both out, or add text."
        )
    if 0 < epochs < FEW:
        return (
            f"reads {epochs:.2f} of an epoch, {read:,} of {documents:,} documents: set "
            f"dataset.samples.epochs to what may be read, or take a smaller corpus, which is quicker to prepare."
        )
    return None


def describe(samples: Samples | Blend, number: int) -> list[str]:
    """Lines for the training log: what each source of a blend gives."""
    if not isinstance(samples, Blend):
        return []
    return [
        f"blend      {name}: {facts['samples']:,} samples, {facts['share']:.2%} (weight {facts['wanted']:.2%}), "
        f"{facts['epochs']:.2f} epochs"
        for name, facts in samples.facts(number).items()
    ]


Item = TypeVar("Item")


def prefetch(items: Iterable[Item], depth: int = 2) -> Generator[Item]:
    """Yield `items` in order, up to `depth` of them made ahead; an error in the making is raised here.

    Closing the generator ends the thread.
    """
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(entry: tuple) -> bool:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
        except BaseException as error:
            put((None, error))
        else:
            put((None, StopIteration()))

    threading.Thread(target=work, name="prefetch", daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
