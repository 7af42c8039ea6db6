"""Neighbours that give away what is evaluated: found by their tokens, and replaced by the next ones.

The neighbours of a chunk are read while the chunk after it in the split is predicted, its continuation. A neighbour is
caught if what is shown of it, itself and the chunks that follow it in its document, has a run of so many tokens in
common with that text (RETRO §2.6 measures such runs), or if one of these chunks has mostly the same tokens
(Jaccard similarity of the sets of tokens). Nothing is estimated: all tokens are compared.
"""

import numpy as np

from retro.dataset.store import ChunkStore
from retro.retrieval.retrievers import Advance, Found, Retriever
from retro.retrieval.settings import FilterSettings

CELLS = 1 << 22  # pairs of a chunk and a neighbour's token held at a time


def common_runs(chunks: np.ndarray, real: np.ndarray, neighbours: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Length of the longest run of tokens that each chunk shares with each of its neighbours, int64 [c, k].

    `chunks` [c, m] and `neighbours` [c, k, r] are tokens, `real` and `shown` bool of the same shapes: what is padding
    equals nothing and ends a run. Time c·m·k·r, memory a constant (RETRO §2.6).
    """
    count, m = chunks.shape
    found = np.zeros(neighbours.shape[:2], np.int64)
    step = max(1, CELLS // max(1, neighbours.shape[1] * neighbours.shape[2]))
    for low in range(0, count, step):
        here = slice(low, low + step)
        there, seen = neighbours[here], shown[here]
        run = np.zeros((*there.shape[:2], there.shape[2] + 1), np.int32)  # runs that end at each place, and before
        for at in range(m):
            equal = (there == chunks[here, at][:, None, None]) & seen & real[here, at][:, None, None]
            run[..., 1:] = np.where(equal, run[..., :-1] + 1, 0)
            np.maximum(found[here], run.max(axis=2, initial=0), out=found[here])
    return found


def jaccard(chunks: np.ndarray, real: np.ndarray, neighbours: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Tokens that each chunk and each of its neighbours both have, as a share of those that either has: float64 [c, k].

    Arguments as of `common_runs`. Every token counts once, however often it comes; 0 where neither has any.
    """
    same = (chunks[:, :, None] == chunks[:, None, :]) & real[:, None, :]
    first = real & ~np.tril(same, -1).any(axis=2)  # [c, m]: the token stands nowhere before
    theirs = np.sort(np.where(shown, neighbours, -1), axis=2)
    different = (theirs[..., 1:] != theirs[..., :-1]) & (theirs[..., 1:] >= 0)
    own, other = first.sum(axis=1)[:, None], different.sum(axis=2) + (theirs[..., :1] >= 0).sum(axis=2)
    both = np.zeros(neighbours.shape[:2], np.int64)
    for at in range(chunks.shape[1]):
        both += first[:, at, None] & ((neighbours == chunks[:, at, None, None]) & shown).any(axis=2)
    return both / np.maximum(own + other - both, 1)


class Filter:
    """Tells which neighbours of a split's chunks are caught."""

    def __init__(self, settings: FilterSettings, store: ChunkStore, rows: np.ndarray, database: np.ndarray):
        """`rows` and `database`: global rows of the positions of the split and of the database."""
        self.settings, self.store, self.rows, self.database = settings, store, rows, database

    def caught(self, positions: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """bool [q, n]: which of the neighbours `ids` [q, n] of the chunks at `positions` are; -1 is not."""
        found = np.zeros(ids.shape, bool)
        shown = self.settings.chunks * self.store.length
        step = max(1, CELLS // max(1, ids.shape[1] * shown))
        for low in range(0, len(ids), step):
            here = slice(low, low + step)
            found[here] = self._caught(positions[here], ids[here])
        return found

    def _caught(self, positions: np.ndarray, ids: np.ndarray) -> np.ndarray:
        following = np.append(self.rows[1:], -1)[positions]
        read = {"chunk": self.rows[positions], "continuation": following}
        texts = [self.store.tokens(read[name]) for name in read if name in self.settings.against]
        rows = np.where(ids >= 0, self.database[np.maximum(ids, 0)], -1)
        tokens, mask = self.store.retrieved(rows, self.settings.chunks)
        found = np.zeros(ids.shape, bool)
        if self.settings.run:
            whole = [np.concatenate(parts, axis=1) for parts in zip(*texts, strict=True)]
            found |= common_runs(whole[0], whole[1], tokens, mask) >= self.settings.run
        if self.settings.jaccard:
            shape = (*ids.shape, self.settings.chunks, self.store.length)
            for text in texts:
                for number in range(self.settings.chunks):
                    part = tokens.reshape(shape)[:, :, number], mask.reshape(shape)[:, :, number]
                    found |= jaccard(*text, *part) >= self.settings.jaccard
        return found


DEEPEST = 1024  # candidates a chunk that are looked at, or twice as many as are wanted


class Filtered:
    """The neighbours of another retriever without those that are caught; see `retro.retrieval.retrievers.Retriever`."""

    def __init__(self, retriever: Retriever, filter: Filter):
        self.retriever, self.filter = retriever, filter
        self.about, self.complete = retriever.about, retriever.complete

    @property
    def fallen_back(self) -> int:
        return self.retriever.fallen_back

    def find(self, positions: np.ndarray, k: int, advance: Advance = None) -> Found:
        return self.find_and_count(positions, k, advance)[:2]

    def find_and_count(
        self, positions: np.ndarray, k: int, advance: Advance = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `find`, and how many were caught before the last that is kept: int64 [n]."""
        ids, scores = np.full((len(positions), k), -1, np.int64), np.full((len(positions), k), -np.inf)
        caught, open_ = np.zeros(len(positions), np.int64), np.arange(len(positions))
        fetch, deepest = 2 * k, min(max(2 * k, DEEPEST), max(len(self.filter.database), 1))
        while len(open_):
            fetch = min(fetch, deepest)
            found, theirs = self.retriever.find(positions[open_], fetch, advance)
            bad = self.filter.caught(positions[open_], found)
            good = (found >= 0) & ~bad
            place = np.cumsum(good, axis=1) - good  # how many good ones stand before
            row, column = np.nonzero(good & (place < k))
            ids[open_[row], place[row, column]] = found[row, column]
            scores[open_[row], place[row, column]] = theirs[row, column]
            caught[open_] = (bad & (place < k)).sum(axis=1)
            ended = (good.sum(axis=1) >= k) | (found[:, -1] < 0) | (fetch == deepest)
            open_, fetch, advance = open_[~ended], 4 * fetch, None
        return ids, scores, caught
