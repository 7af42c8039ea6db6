"""Approximate search: candidates from a faiss index, excluded ones dropped, the rest scored exactly.

Candidates are fetched in growing numbers until k of them are admissible. Queries for which the lists visited do not
hold enough visit more of them; those for which that is not enough either are searched exactly, so here too holes are
left only where fewer than k chunks are admissible.
"""

import math
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from retro.paging import MappedFile
from retro.retrieval import factory, gpu
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred
from retro.retrieval.scores import best
from retro.retrieval.settings import IndexSettings

QUERIES = 1024  # queries a call of faiss; fewer where they would read more than RESIDENT of a mapped index
FEWEST = 8
RESIDENT = 1 << 25  # bytes of the index's file in memory
WIDER = (4, 16)  # times the lists, visited for queries whose usual lists hold too few
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


def queries_a_call(lists: faiss.IndexIVF | None, size: int) -> int:
    """How many queries read about `RESIDENT` bytes of an index of `size` bytes; kinds without lists read all of it."""
    if lists is None:
        return QUERIES
    return min(max(RESIDENT * lists.nlist // (size * lists.nprobe), FEWEST), QUERIES)


class ApproximateSearch:
    """See `ExactSearch.search`. `fallen_back` counts the queries that had to be searched exactly."""

    def __init__(self, index: faiss.Index, exact: ExactSearch, settings: IndexSettings, mapped: Path | None = None):
        """`mapped`: the index's file, if what was read of it is to be handed back as the search goes on."""
        self.index, self.exact, self.k_factor = index, exact, settings.k_factor
        self.mapped = mapped and MappedFile(mapped)
        self.lists = faiss.try_extract_index_ivf(index)
        self.fallen_back = 0

    def search(
        self, queries: np.ndarray, k: int, barred: Barred, advance: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 and scores float64 [q, k] of unit vectors `queries` float32 [q, d]; −1 and −∞ for
        holes.
        """
        ids, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf)
        for start in range(0, len(queries), QUERIES):
            these = slice(start, min(start + QUERIES, len(queries)))
            self._search(queries[these], k, barred[these], ids[these], scores[these])
            if advance:
                advance(these.stop - start)
        return ids, scores

    def _search(self, queries: np.ndarray, k: int, barred: Barred, ids: np.ndarray, scores: np.ndarray) -> None:
        """Fill ids and scores; queries for which the index gives too few visit more lists, then all vectors."""
        left = self._candidates(queries, k, barred, np.arange(len(queries)), ids, scores)
        if self.lists is not None:
            usual = self.lists.nprobe
            for wider in WIDER:
                self.lists.nprobe = min(wider * usual, self.lists.nlist)
                if len(left):
                    left = self._candidates(queries, k, barred, left, ids, scores)
            self.lists.nprobe = usual
        if len(left):
            self.fallen_back += len(left)
            ids[left], scores[left] = self.exact.search(queries[left], k, barred[left])

    def _candidates(
        self,
        queries: np.ndarray,
        k: int,
        barred: Barred,
        open_: np.ndarray,
        ids: np.ndarray,
        scores: np.ndarray,
    ) -> np.ndarray:
        """Fill ids and scores of the queries at `open_`; those for which the lists visited hold too few."""
        given_up = [np.empty(0, np.int64)]
        limit = min(MOST, self.index.ntotal)
        fetch = min(max(k, math.ceil(k * self.k_factor)), limit)
        while len(open_):
            found = self._fetch(queries[open_], fetch)
            exhausted = (found < 0).any(axis=1) | (fetch >= limit)
            found = np.where(barred[open_].among(found), -1, found)
            ids[open_], scores[open_] = best(found, self.exact.score(queries[open_], found), k)
            short = ids[open_, k - 1] < 0
            given_up.append(open_[short & exhausted])
            open_, fetch = open_[short & ~exhausted], min(2 * fetch, limit)
        return np.concatenate(given_up)

    def _fetch(self, queries: np.ndarray, count: int) -> np.ndarray:
        """The first `count` ids of each query, int64 [q, count]; what was read of a mapped index is handed back."""
        if not self.mapped:
            return self.index.search(queries, count)[1]
        step, found = queries_a_call(self.lists, self.mapped.size), []
        for start in range(0, len(queries), step):
            found.append(self.index.search(queries[start : start + step], count)[1])
            self.mapped.release()
        return np.concatenate(found)
