"""Approximate search: candidates from a faiss index, excluded ones dropped, the rest scored exactly.

Candidates are fetched in growing numbers until k of them are admissible. Queries for which the index does not
give enough are searched exactly, so here too holes are left only where fewer than k chunks are admissible.
"""

import math
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from retro.retrieval import factory, gpu
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred
from retro.retrieval.scores import best
from retro.retrieval.settings import IndexSettings

QUERIES = 1024  # queries a call of faiss
MOST = 2048  # candidates a query, the most faiss gives on a GPU


def open_index(path: Path, settings: IndexSettings) -> faiss.Index:
    """Read an index, memory-mapped if asked for and its kind allows, ready to search; on GPUs if there are some."""
    index = read_mapped(path) if settings.mmap else faiss.read_index(str(path))
    factory.prepare(index, settings)
    return gpu.to_gpus(index, settings)


def read_mapped(path: Path) -> faiss.Index:
    """Map an index; its kinds that cannot be mapped are read."""
    try:
        return faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP))
    except RuntimeError:
        return faiss.read_index(str(path))


class ApproximateSearch:
    """See `ExactSearch.search`. `fallen_back` counts the queries that had to be searched exactly."""

    def __init__(self, index: faiss.Index, exact: ExactSearch, settings: IndexSettings):
        self.index, self.exact, self.k_factor = index, exact, settings.k_factor
        self.fallen_back = 0

    def search(
        self, queries: np.ndarray, k: int, barred: Barred, advance: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 and scores float64 [q, k] of unit vectors `queries` float32 [q, d]; −1 and −∞ for
        holes.
        """
        parts = []
        for start in range(0, len(queries), QUERIES):
            these = slice(start, start + QUERIES)
            parts.append(self._search(queries[these], k, barred[these]))
            if advance:
                advance(len(parts[-1][0]))
        ids, scores = zip(*[(np.empty((0, k), np.int64), np.empty((0, k))), *parts], strict=True)
        return np.concatenate(ids), np.concatenate(scores)

    def _search(self, queries: np.ndarray, k: int, barred: Barred) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf)
        open_, given_up = np.arange(len(queries)), [np.empty(0, np.int64)]
        limit = min(MOST, self.index.ntotal)
        fetch = min(max(k, math.ceil(k * self.k_factor)), limit)
        while len(open_):
            found = self.index.search(queries[open_], fetch)[1]
            exhausted = (found < 0).any(axis=1) | (fetch >= limit)
            found = np.where(barred[open_].among(found), -1, found)
            ids[open_], scores[open_] = best(found, self.exact.score(queries[open_], found), k)
            short = ids[open_, k - 1] < 0
            given_up.append(open_[short & exhausted])
            open_, fetch = open_[short & ~exhausted], min(2 * fetch, limit)
        rest = np.concatenate(given_up)
        if len(rest):
            self.fallen_back += len(rest)
            ids[rest], scores[rest] = self.exact.search(queries[rest], k, barred[rest])
        return ids, scores
