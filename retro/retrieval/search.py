"""Live queries: text to its nearest database chunks, with the encoder and the index a dataset was made
with.
"""

from collections.abc import Iterable
from functools import cached_property

import faiss
import numpy as np

from retro.database.encoders import Encoder, open_encoder
from retro.database.settings import EncoderSettings
from retro.errors import UserError
from retro.recorded import Dataset
from retro.retrieval.approximate import ApproximateSearch, open_index
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred, Rule, read_keys
from retro.retrieval.settings import IndexSettings
from retro.retrieval.vectors import Vectors


class Searcher:
    """Searches the database of a dataset, on `threads` CPU cores. Opened on first use, kept open."""

    def __init__(self, dataset: Dataset, threads: int = 1):
        self.dataset, self.threads = dataset, threads

    def search(
        self, texts: list[str], k: int, exclude_documents: Iterable[tuple[str, int]] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Database ids int64 and scores float64 [n, k] of each text's neighbours, best first.

        Chunks of `exclude_documents`, pairs of a source's name and the number of one of its documents, are
        left out. Ids are −1 and scores −∞ where the database has fewer than k others.
        `Dataset.neighbour_rows` turns ids into global rows. Candidates come from the index; their scores
        are exact.
        """
        vectors = self.encoder.encode(list(texts))
        return self.search_vectors(vectors, k, exclude_documents)

    def search_vectors(
        self, vectors: np.ndarray, k: int, exclude_documents: Iterable[tuple[str, int]] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for unit vectors float32 [n, d]."""
        parts = []
        for source, document in exclude_documents:
            key = (self.dataset.sources.index(source) << 32) + document
            rank = self._documents.look_up(np.array([key], np.uint64))
            parts.append((self._documents, np.repeat(rank, len(vectors))))
        return self._search.search(vectors, k, Barred(parts))

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the database. Raises `UserError` if the one installed is not the one recorded."""
        settings = EncoderSettings(**self.dataset.facts["encoder"])
        encoder = open_encoder(settings, self.threads)
        recorded = self._vectors.encoder["identity"]
        if encoder.identity != recorded:
            raise UserError(
                f"{self.dataset.folder / 'embeddings'}: embedded by an encoder of sha256 {recorded[:16]}…, "
                f"but {settings.type} {settings.path or ''} now has {encoder.identity[:16]}…. Restore the "
                f"encoder, or run snakemake to embed again."
            )
        return encoder

    def _paths(self, kind: str) -> list:
        return [self.dataset.folder / kind / name / "manifest.json" for name in self.dataset.sources]

    @cached_property
    def _vectors(self) -> Vectors:
        return Vectors(self._paths("embeddings"))

    @cached_property
    def _documents(self) -> Rule:
        return Rule(read_keys("document", self._paths("chunks"))[self.dataset.database])

    @cached_property
    def _search(self) -> ApproximateSearch:
        faiss.omp_set_num_threads(self.threads)
        settings = IndexSettings(**self.dataset.facts["index"])
        path = self.dataset.manifest("index/manifest.json", "index").file("index.faiss")
        exact = ExactSearch(self._vectors, self.dataset.database, self.threads)
        return ApproximateSearch(open_index(path, settings), exact, settings)
