"""Exact search: every query against the whole database, excluded chunks left out before the best are chosen.

The score of a pair and the order of neighbours are defined so that nothing can change them. Matrix products round
differently with every batch size, thread count and library, so what they give only chooses candidates. The score
that decides is

    score(q, x) = Σ_i round(q_i · 2^25) · round(x_i · 2^25) / 2^50

Rounding a component of a unit vector to 2^−25 costs less than float32 does. Products are then multiples of
2^−50, and no partial sum of a unit vector's products exceeds 1, so every sum fits the 53 bits of a float64:
the arithmetic is exact, whatever the order of summation. Equal vectors have equal scores. Neighbours are
ordered by score, highest first, and equal scores by id, smallest first.

Scores of a batch of queries and a slice of the database come from a float32 matrix product. Excluded pairs
are set to −∞, the rest of the slice is reduced to the maxima of small groups, and only groups that can hold
one of the k best are looked into. All pairs within twice the rounding error of the k-th best survive, so
the exact scores that decide at the end do not depend on how the products were rounded. There are holes only
where fewer than k chunks are admissible.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import local

import numpy as np
import torch

from retro.base.machine import best_device
from retro.dataset.store import Vectors
from retro.retrieval.exclusion import Barred

GRID = np.float32(2.0**25)
PAIRS = 1024  # pairs scored at a time, so that they stay in a CPU core's cache
QUERIES = 384  # a batch; more of them share the cost of packing the database for a matrix product
BLOCK = 1 << 14  # database vectors a batch is scored against before candidates are chosen
SLICE = 1024  # vectors a matrix product, a multiple of GROUP: reduced while still in a CPU core's cache
GPU_QUERIES, GPU_SLICE = 2048, 1 << 16
SPAN = 16  # slices whose excluded pairs are looked up at once
GROUP = 32  # scores a group
CROWD = 512  # candidates a query, beyond 8k, that are thinned out by their exact scores


def slack(width: int) -> float:
    """How far a float32 dot product of unit vectors of `width` dimensions can be from their score.

    Summation in any order errs by at most width · 2^−24 for unit vectors; rounding to the grid, and norms
    that are off by a rounding, add less than the rest.
    """
    return (width + 64) * 2.0**-24


def on_grid(vectors: np.ndarray) -> np.ndarray:
    """float64: components of float32 vectors as multiples of 2^−25, which are whole numbers."""
    scaled = vectors * GRID  # exact: a power of two
    return np.rint(scaled, out=scaled).astype(np.float64)


def score_pairs(queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """float64 [q, n]: exact scores of `queries` float32 [q, d] with each one's own vectors `found` [q, n,
    d].
    """
    return np.matmul(on_grid(found), on_grid(queries)[:, :, None])[:, :, 0] / np.float64(GRID) ** 2


def best(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each row's candidates in the order of neighbours: int64 and float64 [q, k].

    `ids` [q, n] has each candidate of a row once, in any order, −1 for none; `scores` [q, n] −∞ for none.
    Rows with fewer than k candidates are filled with −1 and −∞.
    """
    if ids.shape[1] < k:
        short = ((0, 0), (0, k - ids.shape[1]))
        ids, scores = np.pad(ids, short, constant_values=-1), np.pad(scores, short, constant_values=-np.inf)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


class Candidates:
    """Pairs that may be among the k best of a batch of queries, and the k-th best score seen so far, [q]."""

    def __init__(self, queries: int, k: int, margin: float):
        self.queries, self.k, self.margin = queries, k, margin
        self.rows, self.ids = np.empty(0, np.int64), np.empty(0, np.int64)
        self.scores, self.kth = np.empty(0, np.float32), np.full(queries, -np.inf, np.float32)

    def floor(self) -> np.ndarray:
        """float32 [q]: what a score must reach to matter; excluded pairs, −∞, never do."""
        return np.maximum(self.kth - np.float32(self.margin), np.finfo(np.float32).min)

    def add(self, rows: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> None:
        """Take in pairs, then drop those that are out of the race."""
        rows, ids = np.concatenate([self.rows, rows]), np.concatenate([self.ids, ids])
        scores = np.concatenate([self.scores, scores])
        order = np.argsort(rows * 8.0 - scores)  # by row, then score; unit vectors score between −1 and 1
        rows, ids, scores = rows[order], ids[order], scores[order]
        bounds = np.searchsorted(rows, np.arange(self.queries + 1))
        filled = np.diff(bounds) >= self.k
        self.kth[filled] = scores[bounds[:-1][filled] + self.k - 1]
        kept = scores >= self.kth[rows] - self.margin
        self.rows, self.ids, self.scores = rows[kept], ids[kept], scores[kept]


class ExactSearch:
    """Search of `vectors` at the global rows `database`, whose positions are the ids found."""

    def __init__(self, vectors: Vectors, database: np.ndarray, threads: int):
        self.vectors, self.database, self.threads = vectors, database, threads
        self.margin = 2 * slack(vectors.width)
        self._device = best_device().type
        self._memory = local()
        torch.set_num_threads(1)  # one batch a thread is faster than several threads a batch
        torch.set_float32_matmul_precision("highest")

    def search(
        self, queries: np.ndarray, k: int, barred: Barred, advance: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 and scores float64 [q, k] of unit vectors `queries` float32 [q, d]; −1 and −∞ for holes.

        The database is read once for all queries. `advance` is called with the number of queries' worth of
        work done.
        """
        gpu = self._device != "cpu"
        size = GPU_QUERIES if gpu else QUERIES
        batches = [slice(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
        pools = [Candidates(batch.stop - batch.start, k, self.margin) for batch in batches]
        worked, told = 0, 0  # pairs of a query and a vector looked at; queries told to `advance`
        with ThreadPoolExecutor(1 if gpu else self.threads) as workers:
            for start in range(0, len(self.database), BLOCK):
                read = self.vectors.read(self.database[start : start + BLOCK])
                block = torch.from_numpy(read).to(self._device)

                def scan(number: int, block: torch.Tensor = block, start: int = start) -> int:
                    batch = batches[number]
                    there = torch.from_numpy(queries[batch]).to(self._device)
                    self._scan(there, block, start, barred[batch], pools[number])
                    return batch.stop - batch.start

                for done in workers.map(scan, range(len(batches))):
                    worked += done * len(read)
                    if advance:
                        advance(worked // len(self.database) - told)
                        told = worked // len(self.database)

            def finish(number: int) -> tuple[np.ndarray, np.ndarray]:
                return self._finish(queries[batches[number]], pools[number])

            found = list(workers.map(finish, range(len(batches))))
        nothing = (np.empty((0, k), np.int64), np.empty((0, k)))
        ids, scores = zip(*[nothing, *found], strict=True)
        return np.concatenate(ids), np.concatenate(scores)

    def _scan(self, queries: torch.Tensor, block: torch.Tensor, start: int, barred: Barred, pool: Candidates) -> None:
        """Add the candidates of one batch in one block of the database, which begins at position `start`."""
        scores, highest = self._products(queries, block, start, barred, pool.k)
        rows, columns, values = _above(scores, highest, pool.k, pool.floor(), pool.margin)
        pool.add(rows, columns + start, values)
        if len(pool.rows) > pool.queries * (8 * pool.k + CROWD):
            self._thin(queries.cpu().numpy(), pool)

    def _products(
        self, queries: torch.Tensor, block: torch.Tensor, start: int, barred: Barred, k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (slices, queries, group, groups) of a batch with a block, excluded pairs −∞, and the
        highest of each group (queries, slices, groups). The scores are memory that the thread's next batch
        overwrites.
        """
        group = _group_size(len(block), k)
        width = min(SLICE if self._device == "cpu" else GPU_SLICE, -(-len(block) // group) * group)
        slices = -(-len(block) // width)
        scores = self._buffer(slices, len(queries), width)
        grouped = scores.view(slices, len(queries), group, width // group)
        highest = torch.empty(len(queries), slices, width // group, device=self._device)
        for number in range(slices):
            if number % SPAN == 0:
                excluded = self._excluded(barred, start + number * width, start + len(block), width)
            part, here = block[number * width : (number + 1) * width], scores[number]
            torch.mm(queries, part.T, out=here[:, : len(part)])
            here[:, len(part) :] = -torch.inf
            rows, columns = excluded[number % SPAN]
            if len(rows):
                here[rows, columns] = -torch.inf
            for dates, until in barred.late:
                begin = start + number * width
                there = torch.from_numpy(dates[begin : begin + len(part)]).to(self._device)
                late = there > torch.from_numpy(until).to(self._device)[:, None]
                here[:, : len(part)].masked_fill_(late, -torch.inf)
            torch.amax(grouped[number], 1, out=highest[:, number])
        return grouped, highest

    def _excluded(self, barred: Barred, start: int, stop: int, width: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Query numbers and columns of the excluded pairs of each of the next `SPAN` slices from `start`
        on.
        """
        queries, columns = barred.within(start, min(start + SPAN * width, stop))
        columns -= start
        order = np.argsort(columns // width, kind="stable")
        ends = np.cumsum(np.bincount(columns // width, minlength=SPAN))
        rows = torch.from_numpy(queries[order]).to(self._device)
        places = torch.from_numpy(columns[order] % width).to(self._device)
        return [(rows[a:b], places[a:b]) for a, b in pairwise([0, *ends.tolist()])]

    def _thin(self, queries: np.ndarray, pool: Candidates) -> None:
        """Keep only the k best so far: of thousands of chunks of equal text, all within a rounding error."""
        ids, scores = self._finish(queries, pool)
        pool.rows, place = np.nonzero(ids >= 0)
        pool.ids, pool.scores = ids[pool.rows, place], scores[pool.rows, place].astype(np.float32)

    def _buffer(self, *shape: int) -> torch.Tensor:
        """Uninitialised float32, in memory that this thread uses again and again."""
        size = math.prod(shape)
        flat = getattr(self._memory, "flat", None)
        if flat is None or len(flat) < size:
            flat = self._memory.flat = torch.empty(size, device=self._device)
        return flat[:size].view(shape)

    def _finish(self, queries: np.ndarray, pool: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Score the candidates of a batch exactly and keep the k best."""
        most = int(np.bincount(pool.rows, minlength=1).max())
        place = np.arange(len(pool.rows)) - np.searchsorted(pool.rows, pool.rows)  # rows are sorted
        ids = np.full((pool.queries, most), -1, np.int64)
        ids[pool.rows, place] = pool.ids
        return best(ids, self.score(queries, ids), pool.k)

    def score(self, queries: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Exact scores float64 [q, n] of database positions int64 [q, n]; −∞ for −1."""
        scores = np.empty(ids.shape)
        step = max(1, PAIRS // max(ids.shape[1], 1))
        for begin in range(0, len(ids), step):
            these = slice(begin, begin + step)
            found = self.vectors.read(self.database[np.maximum(ids[these], 0).reshape(-1)])
            scores[these] = score_pairs(queries[these], found.reshape(*ids[these].shape, self.vectors.width))
        scores[ids < 0] = -np.inf
        return scores


def _group_size(width: int, k: int) -> int:
    """Scores a group: as many as leave at least 4k groups, `GROUP` at most."""
    group = GROUP
    while group > 1 and width // group < 4 * k:
        group //= 2
    return group


def _above(
    scores: torch.Tensor, highest: torch.Tensor, k: int, floor: np.ndarray, margin: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query numbers, columns and scores of the pairs that may be among the k best; see `_products`.

    Nothing below `floor` [q] is wanted, nor below the k-th highest group maximum, which the k-th highest
    score cannot be below either.
    """
    _, queries, group, groups = scores.shape
    highest, bound = highest.view(queries, -1), torch.from_numpy(floor).to(scores.device)
    if highest.shape[1] > k:
        if scores.is_cuda:
            kth = torch.topk(highest, k).values[:, -1]
        else:
            at = highest.shape[1] - k
            kth = torch.from_numpy(np.partition(highest.numpy(), at, axis=1)[:, at])
        bound = torch.maximum(bound, kth - margin)
    rows, place = torch.nonzero(highest >= bound[:, None], as_tuple=True)
    number, offset = place // groups, place % groups
    values = scores[number, rows, :, offset]  # (pairs of query and group, members)
    pair, member = torch.nonzero(values >= bound[rows][:, None], as_tuple=True)
    columns = (number[pair] * group + member) * groups + offset[pair]
    return rows[pair].cpu().numpy(), columns.cpu().numpy(), values[pair, member].cpu().numpy()
