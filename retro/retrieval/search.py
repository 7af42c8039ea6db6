"""Live queries: text to its nearest database chunks, as a dataset, or one of its other retrievals, finds them."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from retro.artifacts import Manifest, read_manifest
from retro.database.encoders import Encoder, open_encoder
from retro.database.settings import EncoderSettings
from retro.errors import UserError
from retro.recorded import Dataset
from retro.retrieval.approximate import ApproximateSearch, open_index
from retro.retrieval.bm25 import Bm25Search
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred, Rule, read_keys
from retro.retrieval.settings import IndexSettings
from retro.retrieval.vectors import Vectors


class Searcher:
    """Searches the database of a dataset, on `threads` CPU cores. Opened on first use, kept open.

    `neighbours`, a manifest, stands for the retrieval that made it: the dataset's own if there is none. Controls
    (random, shuffled) are no search: text is looked up in the index they were made beside.
    """

    def __init__(self, dataset: Dataset, threads: int = 1, neighbours: Manifest | None = None):
        self.dataset, self.threads, self._neighbours = dataset, threads, neighbours

    def search(
        self, texts: list[str], k: int, exclude_documents: Iterable[tuple[str, int]] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Database ids int64 and scores float64 [n, k] of each text's neighbours, best first.

        Chunks of `exclude_documents`, pairs of a source's name and the number of one of its documents, are
        left out. Ids are −1 and scores −∞ where the database has fewer than k others.
        `Dataset.neighbour_rows` turns ids into global rows. Candidates come from the index; their scores
        are exact.
        """
        if self._lexical:
            return self._words.search(list(texts), k, self._barred(len(texts), exclude_documents))
        return self.search_vectors(self.encoder.encode(list(texts)), k, exclude_documents)

    def search_vectors(
        self, vectors: np.ndarray, k: int, exclude_documents: Iterable[tuple[str, int]] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for unit vectors float32 [n, d]; always dense."""
        return self._search.search(vectors, k, self._barred(len(vectors), exclude_documents))

    def _barred(self, count: int, documents: Iterable[tuple[str, int]]) -> Barred:
        """The chunks of `documents`, for each of `count` queries."""
        parts = []
        for source, document in documents:
            key = (self.dataset.sources.index(source) << 32) + document
            rank = self._documents.look_up(np.array([key], np.uint64))
            parts.append((self._documents, np.repeat(rank, count)))
        return Barred(parts)

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the database. Raises `UserError` if the one installed is not the one recorded."""
        facts = self._vectors.encoder
        settings = EncoderSettings(**{key: facts[key] for key in EncoderSettings.model_fields if key in facts})
        if self._neighbours is None:
            settings = EncoderSettings(**self.dataset.facts["encoder"])
        encoder, recorded = open_encoder(settings, self.threads), facts["identity"]
        if encoder.identity != recorded:
            raise UserError(
                f"{self.dataset.folder / 'embeddings'}: embedded by an encoder of sha256 {recorded[:16]}…, "
                f"but {settings.type} {settings.path or ''} now has {encoder.identity[:16]}…. Restore the "
                f"encoder, or run snakemake to embed again."
            )
        return encoder

    @property
    def _lexical(self) -> bool:
        made = self._neighbours.settings if self._neighbours else self.dataset.facts
        return made.get("retriever", "dense") == "bm25"

    def _paths(self, kind: str) -> list[Path]:
        if self._neighbours and kind == "embeddings":
            return self._made_from(self._neighbours, "embeddings")
        return [self.dataset.folder / kind / name / "manifest.json" for name in self.dataset.sources]

    def _made_from(self, neighbours: Manifest, kind: str) -> list[Path]:
        """Manifests of that kind that the neighbours were made from, in order."""
        paths = [neighbours.folder / name for name in neighbours.facts["inputs"]]
        return sorted(path for path in paths if read_manifest(path).facts["kind"] == kind)

    def _index(self, name: str) -> Manifest:
        path = self.dataset.folder / name / "manifest.json"
        if self._neighbours:
            path = self._made_from(self._neighbours, "index")[0]
        return read_manifest(path, "index")

    @cached_property
    def _words(self) -> Bm25Search:
        return Bm25Search(self._index("bm25").folder, self.threads)

    @cached_property
    def _vectors(self) -> Vectors:
        return Vectors(self._paths("embeddings"))

    @cached_property
    def _documents(self) -> Rule:
        return Rule(read_keys("document", self._paths("chunks"))[self.dataset.database])

    @cached_property
    def _search(self) -> ApproximateSearch:
        faiss.omp_set_num_threads(self.threads)
        settings = IndexSettings(**(self._neighbours.settings if self._neighbours else self.dataset.facts)["index"])
        path = self._index("index").file("index.faiss")
        exact = ExactSearch(self._vectors, self.dataset.database, self.threads)
        return ApproximateSearch(open_index(path, settings), exact, settings)
