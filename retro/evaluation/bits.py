"""From nats of tokens to bits per byte and perplexity, by document, source and section. Pure functions.

Bits per byte counts every token's nats, the end of a document's included, over the UTF-8 bytes of the text,
so it compares models of any tokenizer. Perplexity is per token and compares models of one tokenizer only.
"""

import math
from dataclasses import dataclass
from typing import Any, overload

import numpy as np


@overload
def bits_per_byte(nats: float, size: float) -> float: ...
@overload
def bits_per_byte(nats: np.ndarray, size: np.ndarray) -> np.ndarray: ...
def bits_per_byte(nats: Any, size: Any) -> Any:
    """`nats` of a text of `size` bytes as bits per byte."""
    return nats / (math.log(2) * size)


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean nats a token."""
    return math.exp(nats / tokens)


@dataclass(frozen=True)
class Documents:
    """What is known of each evaluated document, in the split's order; D of them.

    `first`: position in the split of each document's first chunk, int64 [D]. `row`: global row of that chunk,
    int64 [D]. `source`: number of its source, int64 [D]. `tokens`, `bytes`: int64 [D].
    """

    first: np.ndarray
    row: np.ndarray
    source: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def nats(self, losses: np.ndarray) -> np.ndarray:
        """Sum of each document's losses, float64 [D], from `losses` [C, m] with NaN where there is no
        token.
        """
        chunk = np.nansum(losses, axis=1, dtype=np.float64)
        return np.add.reduceat(chunk, self.first) if len(self) else np.zeros(0)


def group_documents(rows: np.ndarray, source: np.ndarray, chunks: np.ndarray) -> Documents:
    """The documents of a split from its chunks in order.

    `rows`: global row, int64 [C]; `source`: number of the source, [C]; `chunks`: records of the chunk
    table, [C].
    """
    change = (np.diff(source) != 0) | (np.diff(chunks["document"]) != 0)
    first = np.flatnonzero(np.concatenate([[len(rows) > 0], change]))

    def total(field: str) -> np.ndarray:
        return np.add.reduceat(chunks[field].astype(np.int64), first) if len(first) else np.zeros(0, np.int64)

    return Documents(first, np.asarray(rows)[first], np.asarray(source)[first], total("length"), total("bytes"))


def section(title: str) -> str | None:
    """The section a title names: `Algeria: Geography` → `Geography`; None for a title without `: `."""
    before, mark, after = title.rpartition(": ")
    return after.strip() if mark and before.strip() and after.strip() else None
