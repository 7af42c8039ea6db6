"""Which chunks a training sample is made of: a function of the seed and the sample's number alone."""

import numpy as np

from retro.errors import UserError
from retro.recorded import Dataset
from retro.training import counter

BLOCK = 1 << 20


class Samples:
    """A stream of a split's chunks, cut into samples of `seq_chunks` chunks.

    Every epoch runs through all chunks once, its documents shuffled, each document's chunks in order. Epochs
    follow each other without a gap, so nothing is dropped. With `epochs` the stream ends after so many; what
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
        self.starts = np.flatnonzero(np.concatenate([[self.count > 0], changes])).astype(np.int64)
        self.lengths = np.diff(np.concatenate([self.starts, [self.count]]))
        self._orders: dict[int, np.ndarray] = {}

    @property
    def number(self) -> int | None:
        """How many samples there are, the padded last one included; None if they never end."""
        return None if self.epochs is None else -(-self.epochs * self.count // self.seq_chunks)

    def order(self, epoch: int) -> np.ndarray:
        """Positions in the split, int64 [C], in the order of an epoch."""
        if epoch not in self._orders:
            keys = counter.words(self.seed, counter.SHUFFLE, epoch, np.arange(len(self.starts)))
            shuffled = np.argsort(keys, kind="stable")
            lengths = self.lengths[shuffled]
            before = np.cumsum(lengths) - lengths
            order = np.repeat(self.starts[shuffled] - before, lengths) + np.arange(self.count)
            self._orders = {old: kept for old, kept in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]

    def sample(self, number: int) -> np.ndarray:
        """Positions in the split, int64 [seq_chunks + 1]: the sample's chunks and the one that follows them.

        The first token of the one that follows is the sample's last target. −1: the stream has ended.
        """
        at = number * self.seq_chunks + np.arange(self.seq_chunks + 1)
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
