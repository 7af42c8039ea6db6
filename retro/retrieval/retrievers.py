"""Where a chunk's neighbours come from: dense, BM25, both together, or a control, behind one call.

Every retriever answers `find(positions, k, advance)` for positions in a split with ids int64 and scores
float64 [n, k]. What it answers for a position depends on nothing else that is asked: blocks, shards and
threads do not matter.

Controls are what retrieval must beat to have helped. `random`: admissible chunks of the database, drawn evenly.
`shuffled`: the nearest neighbours of another chunk of the split, which are as much like each other as real ones, and
the database's text, but of another subject.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from retro.retrieval.exact import ExactSearch, best
from retro.retrieval.exclusion import Barred, Exclusion
from retro.retrieval.settings import TOGETHER, IndexSettings

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

    def score(self, positions: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """float64 [n, k]: BM25 scores of chunks with database positions `ids` int64 [n, k], −∞ for −1."""
        return self.search.score(texts(self.store, self.tokenizer, self.rows[positions]), ids)


RANKED = 60  # the constant of reciprocal rank fusion


def rerank(ids: np.ndarray, scores: np.ndarray, candidates: int) -> Found:
    """The first `candidates` of each row by their BM25 scores, ties by id; those after them as they are.

    `ids` int64 [q, n] are dense neighbours, best first, `scores` float64 those of BM25; holes, −1 and −∞, stay last.
    (Doostmohammadi et al. 2023, who take the best of what dense search finds by BM25.)
    """
    first, score = best(ids[:, :candidates], scores[:, :candidates], min(candidates, ids.shape[1]))
    return np.concatenate([first, ids[:, candidates:]], 1), np.concatenate([score, scores[:, candidates:]], 1)


def fuse(dense: np.ndarray, lexical: np.ndarray, k: int) -> Found:
    """Reciprocal rank fusion (Cormack et al. 2009): the k of each row with the highest Σ 1 / (60 + rank), ties by id.

    `lexical` int64 [q, c] are the candidates by BM25, `dense` [q, n ≥ c] those by embeddings, both best first, −1 for
    none. A rank counts up to c; dense neighbours after that are candidates only where the others are fewer than k, so
    that the order does not depend on k.
    """
    candidates = lexical.shape[1]
    value = 1 / (RANKED + np.arange(1, dense.shape[1] + 1))
    ids = np.concatenate([lexical, dense], axis=1)
    scores = np.broadcast_to(np.concatenate([value[:candidates], value]), ids.shape)
    order = np.argsort(ids, axis=1, kind="stable")  # of an id that both have, the lexical rank first
    ids, scores = np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)
    twice = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] >= 0)
    scores[:, :-1] += np.where(twice & (scores[:, 1:] >= value[candidates - 1]), scores[:, 1:], 0)
    ids[:, 1:][twice] = -1
    return best(ids, np.where(ids < 0, -np.inf, scores), k)


@dataclass(frozen=True)
class Together:
    """Dense search and BM25 over the same chunks. Their first `candidates` are fused, or, to `reorder`, the dense ones
    put in BM25's order. Further dense neighbours follow, so that the first k are the same whatever k.
    """

    dense: Dense
    lexical: Lexical
    candidates: int
    reorder: bool

    @property
    def complete(self) -> bool:
        return self.dense.complete

    @property
    def about(self) -> str | None:
        return "exact search and exact BM25: 1 by construction" if self.complete else None

    @property
    def fallen_back(self) -> int:
        return self.dense.fallen_back

    def find(self, positions: np.ndarray, k: int, advance: Advance = None) -> Found:
        ids, _ = self.dense.find(positions, max(k, self.candidates), advance)
        if not self.reorder:
            return fuse(ids, self.lexical.find(positions, self.candidates)[0], k)
        ids, scores = rerank(ids, self.lexical.score(positions, ids), self.candidates)
        return ids[:, :k], scores[:, :k]


def exactly(retriever: Retriever, dense: Dense) -> Retriever:
    """What a retriever's neighbours are compared with for recall, where `dense` searches exactly."""
    return replace(retriever, dense=dense) if isinstance(retriever, Together) else dense


def open_retriever(
    name: str,
    *,
    rows: np.ndarray,
    indexes: list[Manifest],
    settings: IndexSettings,
    exclusion: Exclusion,
    exact: ExactSearch,
    words: tuple[ChunkStore, Tokenizer] | None,
    seed: int,
    threads: int,
) -> Retriever:
    """The retriever of that name, for a split's `rows`; `indexes` are faiss's, BM25's or both. `words` is needed where
    BM25's is. Raises `UserError` if an index is of another kind, or lacks.
    """
    by_kind = {BM25_INDEX in each.facts["files"]: each for each in indexes}
    if by_kind.keys() != ({True, False} if name in TOGETHER else {name == "bm25"}):
        told = ", ".join(str(each.path) for each in indexes)
        raise UserError(f"{told}: not an index for retriever {name}. Run snakemake: it makes the one needed.")
    lexical = None
    if True in by_kind:
        assert words is not None
        lexical = Lexical(Bm25Search(by_kind[True].folder, threads), *words, exclusion, rows)
        if name == "bm25":
            return lexical
    index = by_kind[False]
    search: ExactSearch | ApproximateSearch = exact
    vectors = exact.vectors
    if name == "random":
        return Random(exact, vectors, exclusion, rows, seed)
    if not index.settings["exact"]:
        path = index.file("index.faiss")
        search = ApproximateSearch(open_index(path, settings), exact, settings, path if settings.mmap else None)
    dense = Dense(search, vectors, exclusion, rows)
    if lexical is not None:
        return Together(dense, lexical, settings.candidates, reorder=name == "bm25-rerank")
    return Shuffled(dense, exact, seed) if name == "shuffled" else dense
