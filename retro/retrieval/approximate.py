"""Approximate search: candidates from a faiss index, excluded ones dropped, the rest scored exactly.

Candidates are fetched in growing numbers until k of them are admissible. Queries for which the lists visited do not
hold enough visit more of them; those for which that is not enough either are searched exactly, so here too holes are
left only where fewer than k chunks are admissible.

`Sample` measures what an index finds and what a query costs, on a seeded sample of a split's chunks.
"""

import ctypes
import math
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from retro.dataset.dataset import Dataset
from retro.dataset.store import Vectors
from retro.retrieval import factory
from retro.retrieval.exact import ExactSearch, best
from retro.retrieval.exclusion import Barred, Exclusion, rules_of
from retro.retrieval.settings import IndexSettings

QUERIES = 1024  # queries a call of faiss; fewer where they would read more than RESIDENT of a mapped index
FEWEST = 8
RESIDENT = 1 << 25  # bytes of the index's file in memory
WIDER = (4, 16)  # times the lists, visited for queries whose usual lists hold too few
MOST = 2048  # candidates a query, the most faiss gives on a GPU


class MappedFile:
    """A file that a library has mapped, wherever it did, and keeps mapped."""

    def __init__(self, path: Path):
        self.size, self._places = path.stat().st_size, []
        maps, name = Path("/proc/self/maps"), str(path.resolve())
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines() if maps.exists() else []
        for line in lines:
            place, *_, mapped = line.split(maxsplit=5)
            if mapped == name:
                start, stop = (int(part, 16) for part in place.split("-"))
                self._places.append((ctypes.c_void_p(start), ctypes.c_size_t(stop - start)))

    def release(self) -> None:
        """Hand back its pages, as `retro.base.artifacts.release` does."""
        for start, size in self._places:
            ctypes.CDLL(None).madvise(start, size, mmap.MADV_DONTNEED)


def open_index(path: Path, settings: IndexSettings) -> faiss.Index:
    """Read an index, memory-mapped if asked for and its kind allows, ready to search; on GPUs if there are some."""
    index = read_mapped(path) if settings.mmap else faiss.read_index(str(path))
    factory.prepare(index, settings)
    return factory.to_gpus(index, settings)


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


LEAST = 0.5  # CPU seconds a measurement lasts at least


@dataclass
class Sample:
    """`count` random chunks of a split as queries, what is excluded for them, and their exact neighbours.

    As many neighbours are searched as the dataset saves; recall is that of the first `k`.
    """

    dataset: Dataset
    split: str
    count: int
    k: int
    threads: int = 1

    def __post_init__(self) -> None:
        faiss.omp_set_num_threads(self.threads)
        paths = {
            kind: [self.dataset.folder / kind / name / "manifest.json" for name in self.dataset.sources]
            for kind in ("embeddings", "chunks")
        }
        self.vectors, self.database = Vectors(paths["embeddings"]), self.dataset.database
        rows, random = self.dataset.rows(self.split), np.random.default_rng(self.dataset.facts["seed"])
        chosen = rows[np.sort(random.choice(len(rows), min(self.count, len(rows)), replace=False))]
        self.saved = max(self.k, self.dataset.facts["neighbours"]["saved"])
        rules = rules_of(self.dataset.facts["neighbours"]["exclude"])
        self.queries = self.vectors.read(chosen)
        self.barred = Exclusion(rules, paths["chunks"], self.database).of(chosen)
        self.exact = ExactSearch(self.vectors, self.database, self.threads)

    @cached_property
    def truth(self) -> np.ndarray:
        """int64 [q, k]: ids by exact search."""
        return self.exact.search(self.queries, self.saved, self.barred)[0][:, : self.k]

    def measure(self, index: faiss.Index | None, settings: IndexSettings) -> dict[str, float]:
        """`recall` of the first k, and `ms`, CPU milliseconds a query, exclusion and exact scores included; the
        best of several runs. None: this project's exact search.
        """
        search: ExactSearch | ApproximateSearch = self.exact
        if index is not None:
            factory.prepare(index, settings)
            search = ApproximateSearch(index, self.exact, settings)
        best, spent, ids = float("inf"), 0.0, np.empty((0, self.k), np.int64)
        while spent < LEAST or best == spent:  # at least twice: the first run warms caches
            start = time.process_time()
            ids = search.search(self.queries, self.saved, self.barred)[0][:, : self.k]
            took = time.process_time() - start
            best, spent = min(best, took), spent + took
        real = self.truth >= 0
        hit = (self.truth[:, :, None] == ids[:, None, :]).any(axis=2) & real
        share = float(hit.sum() / max(real.sum(), 1))
        return {"recall": round(share, 4), "ms": round(1000 * best / max(len(self.queries), 1), 4)}
