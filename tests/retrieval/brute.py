"""Neighbours by brute force, in exact integers: what every search is held against."""

from dataclasses import dataclass

import numpy as np

from retro.base.names import UNDATED
from retro.retrieval.exclusion import Barred, Rule, as_neighbours


class Plain:
    """Vectors in memory, as `retro.dataset.store.Vectors` offers them."""

    def __init__(self, array: np.ndarray):
        self.array, self.width = array, array.shape[1]

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


def units(random: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Random unit vectors, float32."""
    vectors = random.standard_normal((count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass
class Case:
    """A database, queries, the keys of both under each rule, and the dates of both, where what is later is excluded."""

    vectors: np.ndarray  # float32 [N, d]
    queries: np.ndarray  # float32 [q, d]
    database_keys: list[np.ndarray]
    query_keys: list[np.ndarray]
    database_dates: np.ndarray | None = None  # int64 [N], UNDATED where there is none
    query_dates: np.ndarray | None = None  # int64 [q]

    def barred(self) -> Barred:
        rules = [Rule(keys) for keys in self.database_keys]
        parts = [(rule, rule.look_up(keys)) for rule, keys in zip(rules, self.query_keys, strict=True)]
        if self.database_dates is None:
            return Barred(parts)
        return Barred(parts, [(as_neighbours(self.database_dates, np.arange(len(self.vectors))), self.query_dates)])

    def admissible(self) -> np.ndarray:
        """bool [q, N]"""
        same = np.zeros((len(self.queries), len(self.vectors)), bool)
        for ours, theirs in zip(self.query_keys, self.database_keys, strict=True):
            same |= ours[:, None] == theirs[None, :]
        if self.database_dates is not None:
            theirs, ours = self.database_dates[None, :], self.query_dates[:, None]
            same |= (theirs == UNDATED) | (ours == UNDATED) | (theirs > ours)
        return ~same

    def scores(self) -> np.ndarray:
        """int64 [q, N]: the documented score times 2^50, in integers."""
        left, right = (np.rint(a.astype(np.float64) * 2**25).astype(np.int64) for a in (self.queries, self.vectors))
        return left @ right.T

    def best(self, k: int) -> np.ndarray:
        """int64 [q, k]: highest score first, then smallest id; −1 where no chunk is left."""
        found = np.full((len(self.queries), k), -1)
        for row, (scores, allowed) in enumerate(zip(self.scores(), self.admissible(), strict=True)):
            order = sorted(np.flatnonzero(allowed), key=lambda place: (-int(scores[place]), place))[:k]
            found[row, : len(order)] = order
        return found


def make_case(
    seed: int, size: int, queries: int, width: int, documents: int, distinct: int, groups: int, dates: int = 0
) -> Case:
    """`size` chunks of `documents` documents, with only `distinct` different vectors, hence many exact ties.

    Half the queries are chunks of the database, half come from outside it. Of so many different `dates`; 0: they have
    none, and nothing is later. Some documents then have none.
    """
    random = np.random.default_rng(seed)
    base = units(random, distinct, width)
    vectors = base[random.integers(0, distinct, size)]
    document = np.sort(random.integers(0, documents, size)).astype(np.uint64)
    group = document % np.uint64(groups)
    text = random.integers(0, distinct * 3, size).astype(np.uint64)
    inside = random.integers(0, size, queries // 2)
    outside = queries - len(inside)
    query_vectors = np.concatenate([vectors[inside], base[random.integers(0, distinct, outside)]])
    fresh = [np.arange(outside) + 10**6, random.integers(0, groups, outside), random.integers(0, distinct, outside)]
    keys = [document, group, text]
    query_keys = [
        np.concatenate([known[inside], new.astype(np.uint64)]) for known, new in zip(keys, fresh, strict=True)
    ]
    case = Case(vectors, query_vectors, keys, query_keys)
    if dates:
        known = random.integers(-dates, dates, documents)
        known[random.random(documents) < 0.1] = UNDATED
        case.database_dates = known[document.astype(np.int64)]
        other = random.integers(-dates, dates, outside)
        other[random.random(outside) < 0.1] = UNDATED
        case.query_dates = np.concatenate([case.database_dates[inside], other])
    return case
