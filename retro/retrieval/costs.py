"""What an index finds and what a query costs: measured on a seeded sample of a split's chunks."""

import time
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np

from retro.recorded import Dataset
from retro.retrieval import factory
from retro.retrieval.approximate import ApproximateSearch
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Exclusion, rules_of
from retro.retrieval.settings import IndexSettings
from retro.retrieval.vectors import Vectors

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
