"""Live retrieval while text is written: a chunk's tokens to the neighbours a dataset has for them."""

import numpy as np

from retro.evaluation.decoding import Found
from retro.recorded import Dataset
from retro.retrieval.search import Searcher


class LiveLookup:
    """Decodes, embeds and searches; `k` neighbours a chunk.

    `excluded`: (source, document number) pairs that are never found.
    """

    def __init__(self, dataset: Dataset, k: int, threads: int = 1, excluded: list[tuple[str, int]] = ()):
        self.dataset, self.k, self.excluded = dataset, k, excluded
        self.searcher = Searcher(dataset, threads)

    def __call__(self, tokens: np.ndarray) -> Found:
        text = self.dataset.tokenizer.decode(tokens)
        if not text.strip():  # nothing to look up
            return Found(np.full(self.k, -1, np.int64), np.full(self.k, -np.inf))
        ids, scores = self.searcher.search([text], self.k, self.excluded)
        return Found(self.dataset.neighbour_rows(ids[0]), scores[0])

    def describe(self, found: Found) -> list[dict]:
        """What was found, best first: score, text, the text that follows it, and its document."""
        store, described = self.dataset.store, []
        for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
            if row >= 0:
                following = int(store.following(np.array([row]))[0])
                described.append(
                    {
                        "score": round(score, 4),
                        "text": chunk_text(self.dataset, row),
                        "continuation": chunk_text(self.dataset, following),
                        "document": store.document(row),
                    }
                )
        return described


def chunk_text(dataset: Dataset, row: int) -> str:
    """The text of the chunk at a global row; nothing for −1."""
    tokens, mask = dataset.store.tokens(np.array(row))
    return dataset.tokenizer.decode(tokens[mask])


def excluded_documents(dataset: Dataset, row: int) -> list[tuple[str, int]]:
    """Documents that the dataset's rules keep from a held-out document, given by one of its global rows.

    The document itself is in no database; what its rules can bar is what shares its group, for instance an
    older edition of the same page.
    """
    rules = dataset.facts["neighbours"]["exclude"]
    mine = int(dataset.store.source(np.array(row)))
    group = dataset.store.chunks(np.array([row]))["group"][0]
    found = []
    for number, name in enumerate(dataset.sources):
        if "group_of_any_source" in rules or ("group" in rules and number == mine):
            table = dataset.store.tables[number]
            found += [(name, int(each)) for each in np.unique(table["document"][table["group"] == group])]
    return found
