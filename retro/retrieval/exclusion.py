"""Which database chunks may not be neighbours of a chunk: those that share a key with it, and those that are later.

A rule (document, group, group_of_any_source, text) gives every chunk a 64-bit key. The rules of a search
are looked up by key, so a document of thousands of chunks, or a group spread over the whole database, costs
what it holds.

The rule `later` compares dates (`retro.corpus.dates`): a neighbour is never younger than its chunk; of the same date it
may be. Where one of two dates is not known, the neighbour may be younger: without a date a chunk has no neighbours, and
is none.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro.base.artifacts import read_manifest, release
from retro.base.hashing import mix
from retro.base.names import UNDATED, dates_of
from retro.database.assemble import by_chunk


def rules_of(exclude: Sequence[str]) -> list[str]:
    """The rules that apply: the document always, each rule once."""
    return list(dict.fromkeys(["document", *exclude]))


def read_keys(rule: str, manifests: list[Path]) -> np.ndarray:
    """uint64 [chunks]: key under `rule` of every global row; `manifests` are those of the chunk tables, in
    order.
    """
    parts = []
    for number, path in enumerate(manifests):
        table = read_manifest(path, "chunks").array("chunks.npy")
        parts.append(key_of(rule, number, table["document"], table["group"], table["text"]))
        release(table)
    return np.concatenate(parts)


LATER = "later"
NEVER = np.iinfo(np.int64).max  # the date of a database chunk that has none: later than all


def read_dates(manifests: list[Path]) -> np.ndarray:
    """int64 [chunks]: date of every global row, UNDATED where there is none; `manifests` as for `read_keys`."""
    parts = []
    for path in manifests:
        table = read_manifest(path, "chunks").array("chunks.npy")
        parts.append(dates_of(table))
        release(table)
    return np.concatenate(parts)


def as_neighbours(dates: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Of `dates` [chunks] those of the database's positions, int64 [N]: NEVER where there is none."""
    found = dates[database]
    found[found == UNDATED] = NEVER
    return found


def key_of(rule: str, source: int, document: np.ndarray, group: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Keys of chunks of one source. Keys under different rules are never compared."""
    match rule:
        case "document":
            return (np.uint64(source) << np.uint64(32)) + np.asarray(document).astype(np.uint64)
        case "group":
            return mix(np.asarray(group) + mix(np.array([source], np.uint64)))
        case "group_of_any_source":
            return np.array(group)
        case "text":
            return np.array(text)
    raise ValueError(rule)


class Rule:
    """The database's chunks by their key under one rule. Costs 16 bytes a database chunk."""

    def __init__(self, keys: np.ndarray):
        """`keys`: uint64 [N], of each database position."""
        self.size = len(keys)
        self._unique, ranks = np.unique(keys, return_inverse=True)
        self.ranks = ranks.astype(np.int64)  # number of each position's key
        # Sorted pairs (rank, position), packed in one integer so that both can be searched at once.
        self._members = np.sort(self.ranks * self.size + np.arange(self.size))

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """int64: number of each key, −1 where no database chunk has it."""
        ranks = np.minimum(np.searchsorted(self._unique, keys), len(self._unique) - 1)
        return np.where(self._unique[ranks] == keys, ranks, -1)

    def members(self, ranks: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """All positions within start .. stop of each rank: indices into `ranks`, and positions."""
        real = np.flatnonzero(ranks >= 0)
        first = np.searchsorted(self._members, ranks[real] * self.size + start)
        last = np.searchsorted(self._members, ranks[real] * self.size + stop)
        counts = last - first
        begins = np.cumsum(counts) - counts
        at = np.arange(int(counts.sum())) + np.repeat(first - begins, counts)
        return np.repeat(real, counts), self._members[at] % self.size


Late = tuple[np.ndarray, np.ndarray]  # int64: date of each database position [N], and up to when a query may see [q]


class Barred:
    """What is excluded for a list of queries: pairs of a `Rule` and the rank int64 [q] of each query under
    it, and what is `late` for them.
    """

    def __init__(self, parts: list[tuple[Rule, np.ndarray]], late: Sequence[Late] = ()):
        self.parts, self.late = parts, late

    def __getitem__(self, queries: slice | np.ndarray) -> "Barred":
        """Of some of the queries."""
        parts = [(rule, ranks[queries]) for rule, ranks in self.parts]
        return Barred(parts, [(dates, until[queries]) for dates, until in self.late])

    def among(self, ids: np.ndarray) -> np.ndarray:
        """bool [q, n]: which database positions `ids` [q, n] are excluded; −1 is."""
        found, places = ids < 0, np.maximum(ids, 0)
        for rule, ranks in self.parts:
            found |= rule.ranks[places] == ranks[:, None]
        for dates, until in self.late:
            found |= dates[places] > until[:, None]
        return found

    def within(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions in start .. stop that share a key: number of the query, and position; a pair may come twice.

        What is late is told by `later`: it may be most of the database.
        """
        found = [rule.members(ranks, start, stop) for rule, ranks in self.parts]
        rows, positions = zip(*found, strict=True) if found else ((), ())
        nothing = [np.empty(0, np.int64)]
        return np.concatenate(nothing + list(rows)), np.concatenate(nothing + list(positions))

    def later(self, query: int) -> np.ndarray:
        """All positions that are late for one query, int64, perhaps twice."""
        found = [np.flatnonzero(dates > until[query]) for dates, until in self.late]
        return np.concatenate([np.empty(0, np.int64), *found])


class Exclusion:
    """The rules of a search between global rows."""

    def __init__(self, rules: list[str], chunks: list[Path], database: np.ndarray, duplicates: Path | None = None):
        """`chunks` are the manifests of the chunk tables, `database` the global row of each position, `duplicates`
        the manifest of clusters of documents of which none is a neighbour of another.
        """
        self._keys = [read_keys(rule, chunks) for rule in rules if rule != LATER]
        if duplicates is not None:
            self._keys.append(np.concatenate(by_chunk("clusters.npy", duplicates, chunks)).astype(np.uint64))
        self._rules = [Rule(keys[database]) for keys in self._keys]
        self._dates = read_dates(chunks) if LATER in rules else None
        if self._dates is not None:
            self._database = as_neighbours(self._dates, database)

    def of(self, rows: np.ndarray) -> Barred:
        """What is excluded for the chunks of global `rows`."""
        pairs = zip(self._rules, self._keys, strict=True)
        late = [] if self._dates is None else [(self._database, self._dates[rows])]
        return Barred([(rule, rule.look_up(keys[rows])) for rule, keys in pairs], late)

    def counts(self, rows: np.ndarray) -> dict[str, dict[str, int]]:
        """For the manifest of the neighbours of global `rows`; nothing without the rule `later`.

        Pairs of a chunk and a database chunk that are excluded as later, chunks of both sides that have no date, and
        chunks with a date for which the database has nothing that is old enough.
        """
        if self._dates is None:
            return {}
        until = self._dates[rows]
        old_enough = np.searchsorted(np.sort(self._database), until, side="right")
        return {
            LATER: {
                "pairs": int(len(self._database) * len(rows) - old_enough.sum()),
                "chunks_without_date": int((until == UNDATED).sum()),
                "database_without_date": int((self._database == NEVER).sum()),
                "chunks_with_nothing_older": int(((old_enough == 0) & (until != UNDATED)).sum()),
            }
        }
