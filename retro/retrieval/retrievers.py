"""Where a chunk's neighbours come from: dense, BM25, or a control, behind one call.

Every retriever answers `find(positions, k, advance)` for positions in a split with ids int64 and scores
float64 [n, k]. What it answers for a position depends on nothing else that is asked: blocks, shards and
threads do not matter.

Controls are what retrieval must beat to have helped. `random`: admissible chunks of the database, drawn evenly.
`shuffled`: the nearest neighbours of another chunk of the split, which are as much like each other as real ones, and
the database's text, but of another subject.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from retro.base.artifacts import Manifest
from retro.base.hashing import mix
from retro.base.names import BM25_FILES
from retro.base.stage import UserError
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.store import ChunkStore, Vectors, texts
from retro.retrieval.approximate import ApproximateSearch, open_index
from retro.retrieval.bm25 import Bm25Search
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred, Exclusion
from retro.retrieval.settings import IndexSettings

DRAWS = (4, 32)  # candidates drawn, as multiples of k, before a chunk's admissible ones are listed


def draw(positions: np.ndarray, barred: Barred, size: int, k: int, seed: int) -> np.ndarray:
    """int64 [q, k]: k different admissible positions of a database of `size`, in the order drawn, −1 where
    there are fewer.

    A chunk's draws are a function of the seed and its position in the split: not of the block it is in.
    """
    streams = mix(np.asarray(positions).astype(np.uint64) + mix(np.array([seed], np.uint64)))
    found, open_ = np.full((len(streams), k), -1, np.int64), np.arange(len(streams))
    for times in DRAWS:
        steps = mix(np.arange(times * k, dtype=np.uint64))
        drawn = (mix(streams[open_, None] + steps) % np.uint64(size)).astype(np.int64)
        drawn[barred[open_].among(drawn)] = -1
        for row, candidates in zip(open_, drawn, strict=True):
            _, places = np.unique(candidates, return_index=True)
            chosen = candidates[np.sort(places)]
            chosen = chosen[chosen >= 0][:k]
            found[row, : len(chosen)] = chosen
        open_ = open_[found[open_, -1] < 0]
    for row in open_:
        excluded = [barred[row : row + 1].within(0, size)[1], barred.later(int(row))]
        allowed = np.setdiff1d(np.arange(size), np.concatenate(excluded))
        order = np.argsort(mix(streams[row] + mix(allowed.astype(np.uint64))), kind="stable")
        found[row] = -1
        found[row, : min(k, len(allowed))] = allowed[order[:k]]
    return found


def others(count: int, seed: int) -> np.ndarray:
    """int64 [count]: another position for each of `count`, each taken once: a seeded cycle through all."""
    if count == 1:
        raise UserError(
            "dataset.retriever shuffled: a split of one chunk has no other chunk to take neighbours from. Add "
            "documents to it."
        )
    order, found = np.random.default_rng(seed).permutation(count), np.empty(count, np.int64)
    found[order] = np.roll(order, 1)
    return found


def both(first: Barred, second: Barred) -> Barred:
    """What either excludes."""
    return Barred(first.parts + second.parts, [*first.late, *second.late])


BM25_INDEX = BM25_FILES[0]
Advance = Callable[[int], object] | None
Found = tuple[np.ndarray, np.ndarray]


class Retriever(Protocol):
    """`about` says in the manifest what recall of its neighbours means; None: compare with exact search.
    `complete`: nothing is missed, recall is 1 by construction.
    """

    @property
    def about(self) -> str | None: ...
    @property
    def complete(self) -> bool: ...
    @property
    def fallen_back(self) -> int:
        """Queries searched exactly because the index gave too few."""

    def find(self, positions: np.ndarray, k: int, advance: Advance = None) -> Found: ...


class Dense:
    """The nearest vectors, by a faiss index or exactly."""

    def __init__(
        self, search: ExactSearch | ApproximateSearch, vectors: Vectors, exclusion: Exclusion, rows: np.ndarray
    ):
        """`rows`: global row of each position of the split."""
        self.search, self.vectors, self.exclusion, self.rows = search, vectors, exclusion, rows
        self.complete = isinstance(search, ExactSearch)
        self.about = "exact search: 1 by construction" if self.complete else None

    @property
    def fallen_back(self) -> int:
        return getattr(self.search, "fallen_back", 0)

    def find(self, positions: np.ndarray, k: int, advance: Advance = None) -> Found:
        here = self.rows[positions]
        return self.search.search(self.vectors.read(here), k, self.exclusion.of(here), advance)


class Shuffled:
    """The nearest neighbours of another chunk of the split, without those either chunk may not have.

    The scores stored are those with the chunk itself, not with the other.
    """

    about, complete = "a control: neighbours of another chunk", False

    def __init__(self, dense: Dense, exact: ExactSearch, seed: int):
        self.dense, self.exact = dense, exact
        self.other = others(len(dense.rows), seed)

    @property
    def fallen_back(self) -> int:
        return self.dense.fallen_back

    def find(self, positions: np.ndarray, k: int, advance: Advance = None) -> Found:
        dense = self.dense
        here, there = dense.rows[positions], dense.rows[self.other[positions]]
        barred = both(dense.exclusion.of(here), dense.exclusion.of(there))
        ids, _ = dense.search.search(dense.vectors.read(there), k, barred, advance)
        return ids, self.exact.score(dense.vectors.read(here), ids)


class Random:
    """Admissible chunks drawn evenly, in the order drawn, with their scores."""

    about, complete = "a control: random chunks", False
    fallen_back = 0

    def __init__(self, exact: ExactSearch, vectors: Vectors, exclusion: Exclusion, rows: np.ndarray, seed: int):
        self.exact, self.vectors, self.exclusion, self.rows, self.seed = exact, vectors, exclusion, rows, seed

    def find(self, positions: np.ndarray, k: int, advance: Advance = None) -> Found:
        here = self.rows[positions]
        ids = draw(positions, self.exclusion.of(here), len(self.exact.database), k, self.seed)
        if advance:
            advance(len(positions))
        return ids, self.exact.score(self.vectors.read(here), ids)


class Lexical:
    """The highest BM25 scores."""

    about, complete = "exact BM25: 1 by construction", True
    fallen_back = 0

    def __init__(
        self, search: Bm25Search, store: ChunkStore, tokenizer: Tokenizer, exclusion: Exclusion, rows: np.ndarray
    ):
        self.search, self.store, self.tokenizer = search, store, tokenizer
        self.exclusion, self.rows = exclusion, rows

    def find(self, positions: np.ndarray, k: int, advance: Advance = None) -> Found:
        here = self.rows[positions]
        return self.search.search(texts(self.store, self.tokenizer, here), k, self.exclusion.of(here), advance)


def open_retriever(
    name: str,
    *,
    rows: np.ndarray,
    index: Manifest,
    settings: IndexSettings,
    exclusion: Exclusion,
    exact: ExactSearch,
    words: tuple[ChunkStore, Tokenizer] | None,
    seed: int,
    threads: int,
) -> Retriever:
    """The retriever of that name, for a split's `rows`; `index` is faiss's, or BM25's. `words` is needed for
    bm25 alone. Raises `UserError` if the index is of another kind.
    """
    lexical = BM25_INDEX in index.facts["files"]
    if lexical != (name == "bm25"):
        raise UserError(f"{index.path}: not an index for retriever {name}. Run snakemake: it makes the one needed.")
    if lexical:
        assert words is not None
        return Lexical(Bm25Search(index.folder, threads), *words, exclusion, rows)
    search: ExactSearch | ApproximateSearch = exact
    vectors = exact.vectors
    if name == "random":
        return Random(exact, vectors, exclusion, rows, seed)
    if not index.settings["exact"]:
        path = index.file("index.faiss")
        search = ApproximateSearch(open_index(path, settings), exact, settings, path if settings.mmap else None)
    dense = Dense(search, vectors, exclusion, rows)
    return Shuffled(dense, exact, seed) if name == "shuffled" else dense
