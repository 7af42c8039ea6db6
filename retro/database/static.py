"""A cheap encoder without weights: hashed counts of words and word pairs, projected at random.

For smoke tests and for corpora of millions of chunks on a laptop; its neighbours share words, not meaning.
A chunk's features are its lower-cased words, its pairs of adjacent words, each with weight log(1 + count).
Every feature has `SIGNS` coordinates of ±1 derived from its hash (a sparse random projection), so vectors
of texts with common words point in similar directions. There is no document frequency: a text's vector
depends on nothing else.
"""

import hashlib
import re
from collections.abc import Callable
from hashlib import blake2b
from itertools import pairwise

import numpy as np

from retro.database.hashing import mix

SIGNS = 8  # non-zero coordinates of a feature
SEED = b"retro static encoder 1"
WORD = re.compile(r"\w+")
BLOCK = 1024
REMEMBERED = 1_000_000  # features whose hash is kept


class StaticEncoder:
    """`width` dimensions; see `retro.database.encoders.Encoder`."""

    engine = "numpy float32"

    def __init__(self, width: int):
        self.width = width
        self.identity = hashlib.sha256(b"%s %d %d" % (SEED, SIGNS, width)).hexdigest()
        self._known: dict[str, int] = {}

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width]; a text without words gets the vector of a feature of its own."""
        vectors = np.empty((len(texts), self.width), np.float32)
        for begin in range(0, len(texts), BLOCK):
            block = texts[begin : begin + BLOCK]
            vectors[begin : begin + len(block)] = self._project(block)
            if advance:
                advance(len(block))
        return vectors

    def _project(self, texts: list[str]) -> np.ndarray:
        hashes: list[int] = []
        counts: list[int] = []
        sizes: list[int] = []
        for text in texts:
            found: dict[int, int] = {}
            for feature in self._features(text):
                found[feature] = found.get(feature, 0) + 1
            hashes.extend(found)
            counts.extend(found.values())
            sizes.append(len(found))
        row = np.repeat(np.arange(len(texts)), sizes)
        weight = np.log1p(np.array(counts, np.float64))
        total = np.zeros(len(texts) * self.width)
        state = np.array(hashes, np.uint64)
        for _ in range(SIGNS):
            state = mix(state)
            column = (state >> np.uint64(1)) % np.uint64(self.width)
            sign = 1.0 - 2.0 * (state & np.uint64(1))
            place = row * self.width + column.astype(np.int64)
            total += np.bincount(place, weight * sign, minlength=len(total))
        vectors = total.reshape(len(texts), self.width)
        norm = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        vectors[norm[:, 0] == 0, 0] = 1.0  # all signs cancelled: any fixed direction will do
        return vectors / np.where(norm == 0, 1.0, norm)

    def _features(self, text: str) -> list[int]:
        words = WORD.findall(text.lower())
        if not words:
            return [self._hash("")]
        pairs = [f"{first} {second}" for first, second in pairwise(words)]
        return [self._hash(feature) for feature in words + pairs]

    def _hash(self, feature: str) -> int:
        found = self._known.get(feature)
        if found is None:
            data = feature.encode("utf-8", "surrogatepass")
            found = int.from_bytes(blake2b(data, digest_size=8, key=SEED).digest(), "little")
            if len(self._known) < REMEMBERED:
                self._known[feature] = found
        return found
