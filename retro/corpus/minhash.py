"""MinHash signatures of documents and the groups of those that resemble each other (Broder 1997).

A document is the set of its shingles, runs of `shingle` tokens. The share of equal numbers in two signatures
estimates the Jaccard similarity of the sets. Candidates share a band of their signatures. Memory: some forty bytes
a document, and a block of tokens; signatures lie in a file.
"""

from collections.abc import Iterator

import numpy as np
import rensa

from retro.corpus.mmididx import TokenStore
from retro.database.hashing import mix

BLOCK_TOKENS = 1 << 20
BLOCK_DOCUMENTS = 4096
LAGS = 32  # documents of one band are compared with so many before them
FOUND = 0.99  # chance, at least, that a pair just as similar as the threshold becomes a candidate


def blocks(store: TokenStore) -> Iterator[tuple[int, int]]:
    """Ranges of documents of limited size, at least one in each."""
    start = 0
    while start < len(store):
        stop = int(np.searchsorted(store.offsets, store.offsets[start] + BLOCK_TOKENS, side="right")) - 1
        stop = min(max(stop, start + 1), start + BLOCK_DOCUMENTS, len(store))
        yield start, stop
        start = stop


def hashes(tokens: np.ndarray, offsets: np.ndarray, shingle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of documents' tokens, `offsets` int64 [d + 1]: a hash of each whole document, uint64 [d], the hashes of their
    shingles, uint64 [s], and where each document's shingles begin, int64 [d + 1].

    A document that is shorter than a shingle is one shingle. No document may be empty.
    """
    lengths, tokens = np.diff(offsets), tokens.astype(np.uint64)
    place = (np.arange(len(tokens)) - np.repeat(offsets[:-1], lengths)).astype(np.uint64)
    whole = mix(np.add.reduceat(mix((place + 1 << 32) + tokens), offsets[:-1]) + lengths.astype(np.uint64))
    windows = np.zeros(len(tokens), np.uint64)
    for step in range(shingle):
        windows[: len(tokens) - step] += mix(tokens[step:] + np.uint64(step + 1 << 32))
    windows = mix(windows)
    short = lengths < shingle
    windows[offsets[:-1][short]] = whole[short]
    kept = place.astype(np.int64) < np.repeat(np.maximum(lengths - shingle + 1, 1), lengths)
    counts = np.add.reduceat(kept.astype(np.int64), offsets[:-1])
    return whole, windows[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def sign(store: TokenStore, shingle: int, seed: int, whole: np.ndarray, signatures: np.ndarray) -> Iterator[int]:
    """Fill `whole` uint64 [d] and `signatures` uint32 [d, permutations] of a store's documents, EOD left out; yields
    the number of documents done.
    """
    for start, stop in blocks(store):
        offsets = store.offsets[start : stop + 1] - store.offsets[start]
        tokens = np.asarray(store.tokens[store.offsets[start] : store.offsets[stop]])
        ends = np.zeros(len(tokens), bool)
        ends[offsets[1:] - 1] = True
        whole[start:stop], flat, at = hashes(tokens[~ends], offsets - np.arange(len(offsets)), shingle)
        found = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, at, signatures.shape[1], seed)
        signatures[start:stop] = np.array(found.to_rows(), np.uint32)
        yield stop - start


def rows_of(permutations: int, threshold: float) -> int:
    """Numbers a band: as many as still make a pair at the threshold a candidate with a chance of `FOUND`."""
    for rows in range(permutations, 1, -1):
        if 1 - (1 - threshold**rows) ** (permutations // rows) >= FOUND:
            return rows
    return 1


class Groups:
    """Disjoint sets of documents; the smallest number stands for its set."""

    def __init__(self, count: int):
        self.parent = np.arange(count)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """The number that stands for the set of each."""
        found = self.parent[numbers]
        while not np.array_equal(above := self.parent[found], found):
            found = above
        return found

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unite the sets of each pair."""
        for pair in np.stack([left, right], axis=1):
            low, high = np.sort(self.find(pair))
            self.parent[high] = low


def group_equal(whole: np.ndarray, groups: Groups) -> None:
    """Unite documents of the same hash."""
    order = np.argsort(whole, kind="stable")
    new = np.concatenate([[True], np.diff(whole[order]) != 0]) if len(order) else np.empty(0, bool)
    groups.parent[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]


def group_similar(signatures: np.ndarray, threshold: float, groups: Groups) -> Iterator[int]:
    """Unite documents whose signatures agree in a share of at least `threshold`; yields 1 for each band done."""
    rows = rows_of(signatures.shape[1], threshold)
    first = np.flatnonzero(groups.parent == np.arange(len(groups.parent)))  # one of each set of equal documents
    for band in range(signatures.shape[1] // rows):
        keys = np.empty(len(first), np.uint64)
        for start in range(0, len(first), 1 << 16):
            part = signatures[first[start : start + (1 << 16)], band * rows : (band + 1) * rows].astype(np.uint64)
            places = np.arange(1, rows + 1, dtype=np.uint64) << np.uint64(32)
            keys[start : start + len(part)] = mix(mix(part + places).sum(axis=1, dtype=np.uint64))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for lag in range(1, LAGS + 1):
            same = np.flatnonzero(keys[lag:] == keys[:-lag])
            if not len(same):
                break
            for start in range(0, len(same), 1 << 14):
                at = same[start : start + (1 << 14)]
                left, right = first[order[at]], first[order[at + lag]]
                apart = groups.find(left) != groups.find(right)
                left, right = left[apart], right[apart]
                alike = (signatures[left] == signatures[right]).mean(axis=1) >= threshold
                groups.join(left[alike], right[alike])
        yield 1
