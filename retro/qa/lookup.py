"""Neighbours of questions: chunks that resemble the question, of pages whose title does.

A chunk from the middle of a page often does not say what the page is about; its title does. So the candidates that
the index finds are put in the order of their own similarity plus `title_weight` times their title's.
"""

import numpy as np

from retro.qa.files import Example
from retro.recorded import Dataset
from retro.retrieval.search import Searcher


class QuestionLookup:
    """Finds `k` database chunks a text; opened on first use."""

    def __init__(self, dataset: Dataset, k: int, candidates: int, title_weight: float, threads: int = 1):
        self.dataset, self.k, self.weight = dataset, k, title_weight
        self.candidates = min(max(candidates, k), len(dataset.database))
        self.searcher = Searcher(dataset, threads)
        self._titles: dict[tuple[int, int], tuple[str, str, str | None]] = {}  # (source, document) → id, title, group
        self._trained = [dataset.facts["sources"][name]["train"] for name in dataset.sources]
        self._vectors: dict[str, np.ndarray] = {"": np.zeros(0)}

    def __call__(self, texts: list[str], own: list[Example] | None = None) -> np.ndarray:
        """Global rows int64 [n, k], best first, ties by id, −1 for holes.

        `own`, the examples that ask: never a chunk of the page that one was made from, or, where that is not known, of
        its group's pages in sources that are trained on. For held-out groups these are in no database.
        """
        vectors = self.searcher.encoder.encode(list(texts))
        ids, scores = self.searcher.search_vectors(vectors, self.candidates)
        rows = self.dataset.neighbour_rows(ids)
        pages = self._pages(rows)
        found = np.full((len(texts), self.k), -1, np.int64)
        for i, vector in enumerate(vectors):
            mine = pages[i]
            bonus = np.array([self._similarity(vector, title) for _, title, _ in mine])
            total = scores[i] + self.weight * bonus
            barred = np.array([own is not None and self._owns(own[i], name, group) for name, _, group in mine])
            total[barred | (rows[i] < 0)] = -np.inf
            order = np.lexsort((ids[i], -total))[: self.k]
            order = order[np.isfinite(total[order])]
            found[i, : len(order)] = rows[i, order]
        return found

    @staticmethod
    def _owns(example: Example, page: str, group: str | None) -> bool:
        return page == example.document if example.document is not None else group == example.group

    def _similarity(self, vector: np.ndarray, title: str) -> float:
        return float(vector.astype(np.float64) @ self._vectors[title]) if title else 0.0

    def _pages(self, rows: np.ndarray) -> list[list[tuple[str, str, str | None]]]:
        """Id, title and, in a source trained on, group of the document of each row; the titles embedded, each once."""
        store, flat = self.dataset.store, np.maximum(rows, 0)
        source, number = store.source(flat), store.chunks(flat)["document"]
        for row, key in zip(
            flat.ravel(), zip(source.ravel().tolist(), number.ravel().tolist(), strict=True), strict=True
        ):
            if key not in self._titles:
                document = store.document(int(row))
                group = document.get("group") if self._trained[key[0]] else None
                self._titles[key] = document["id"], document.get("title") or "", group
        new = sorted({title for _, title, _ in self._titles.values()} - self._vectors.keys())
        if new and self.weight:
            found = self.searcher.encoder.encode(new).astype(np.float64)
            self._vectors |= dict(zip(new, found, strict=True))
        elif new:
            self._vectors |= dict.fromkeys(new, np.zeros(self.searcher.encoder.width))
        keys = zip(source.tolist(), number.tolist(), strict=True)
        return [[self._titles[key] for key in zip(*pair, strict=True)] for pair in keys]
