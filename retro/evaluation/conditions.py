"""Conditions: what a model is shown as neighbours when it is measured.

A condition's name is the folder of its losses: where the neighbours come from, then `+k<number>` where not as
many are shown as the run trained with, then `+neighbour` or `+continuation` where only that part of each is.

    none        a GPT: no retrieval at all            on        the stored neighbours
    off         RETRO without neighbours              random    database chunks drawn at random
    shuffled    the stored neighbours of a chunk of another group
    <name>      another retrieval of the dataset, from the manifest given with --neighbours
"""

import re
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch

from retro.errors import UserError
from retro.recorded import Dataset
from retro.training.batches import Batcher, Source

BUILT_IN = ("none", "on", "off", "random", "shuffled")
Part = Literal["both", "neighbour", "continuation"]
NAME = re.compile(r"(?P<source>[A-Za-z0-9][A-Za-z0-9._-]*)(\+k(?P<k>\d+))?(\+(?P<part>neighbour|continuation))?")


@dataclass(frozen=True)
class Condition:
    """`source` of the neighbours, how many (`k`; None: as in training), and which `part` of each is seen."""

    source: str
    k: int | None = None
    part: Part = "both"

    @classmethod
    def parse(cls, name: str) -> "Condition":
        """The condition of a name. Raises `UserError` if it is none, or says more of a condition without
        neighbours.
        """
        found = NAME.fullmatch(name)
        if found is None:
            raise UserError(
                f"condition {name!r}: wanted {', '.join(BUILT_IN)} or the name of a retrieval, then +k<number>, then "
                f"+neighbour or +continuation, e.g. on+k5 or shuffled+k1+neighbour."
            )
        k = None if found["k"] is None else int(found["k"])
        condition = cls(found["source"], k, cast(Part, found["part"] or "both"))
        if condition.empty and (k is not None or found["part"]):
            raise UserError(f"condition {name!r}: {condition.source} shows no neighbours, so leave out what follows.")
        return condition

    @property
    def name(self) -> str:
        """The canonical name, which `parse` reads."""
        parts = [] if self.part == "both" else [self.part]
        return "+".join([self.source, *([] if self.k is None else [f"k{self.k}"]), *parts])

    @property
    def empty(self) -> bool:
        """Whether no neighbours are shown whatever the numbers."""
        return self.source in ("none", "off")

    @property
    def named(self) -> bool:
        """Whether the neighbours are another retrieval's, so that a manifest of them is needed."""
        return self.source not in BUILT_IN

    def of(self, architecture: str, run: str) -> "Condition":
        """Itself. Raises `UserError` for one that a model of this architecture cannot be measured under."""
        if (architecture == "gpt") != (self.source == "none"):
            can = "none" if architecture == "gpt" else "on, off, random, shuffled or a retrieval's name"
            raise UserError(
                f"run {run!r} is a {architecture}, which has no retrieval mode {self.name!r}. Evaluate it with {can}."
            )
        return self


def shuffled(groups: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of chunks, int64 [C], that takes every chunk to one of another group.

    `groups` [C]. Chunks are put in a random order, group by group, and moved on by the size of the largest group.
    Where a group holds more than half of the chunks that is impossible; then no chunk stays, nothing more. Raises
    `UserError` for fewer than two chunks.
    """
    count = len(groups)
    if count < 2:
        raise UserError(f"shuffled neighbours: the split has {count} chunks; wanted at least 2.")
    rng = np.random.default_rng(seed)
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.lexsort((rng.random(count), rng.permutation(len(sizes))[number]))
    found = np.empty(count, np.int64)
    found[order] = np.roll(order, -min(int(sizes.max()), count - 1))
    return found


@dataclass(frozen=True)
class Given(Dataset):
    """A dataset whose neighbours are those given, int [C, K], instead of the stored ones."""

    given: np.ndarray

    def neighbour_ids(self, split: str) -> np.ndarray:
        return self.given


class Shown(Batcher):
    """Batches with the neighbours of a condition, which may be chunks of another dataset, the `book`."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        condition: Condition,
        *,
        used: int,
        retrieved_chunks: int,
        ids: np.ndarray | None = None,
        book: Dataset | None = None,
    ):
        """`used` neighbours a chunk, `ids` [C, K] of the book's database (default: the book's stored ones).

        Raises `UserError` if fewer are stored, if a neighbour brings no continuation to show alone, or if
        the book cannot be read by a model of the dataset.
        """
        source: Source = "random" if condition.source == "random" else "none" if condition.empty else "stored"
        book = book or dataset
        if book is not dataset:
            same_book(dataset, book, split)
        if condition.part == "continuation" and retrieved_chunks < 2:
            raise UserError(f"condition {condition.name!r}: neighbours bring one chunk, so there is no continuation.")
        if ids is not None:
            book = Given(book.path, book.facts, ids)
        super().__init__(
            book, split, neighbours_used=used, retrieved_chunks=retrieved_chunks, ids=source, seed=dataset.facts["seed"]
        )
        self.part = condition.part
        if condition.source == "shuffled" and self.ids is not None:
            records = self.store.chunks(self.rows)
            keys = np.stack([self.store.source(self.rows).astype(np.uint64), records["group"]], axis=1)
            groups = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
            self.ids = self.ids[shuffled(groups, self.seed)]

    def _neighbours(
        self, positions: np.ndarray, hidden: np.ndarray | None
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        tokens, mask = super()._neighbours(positions, hidden)
        if tokens is None or mask is None:
            return None, None
        if self.part == "both":
            return tokens, mask
        m, seen = self.store.length, torch.zeros_like(mask)
        seen[..., slice(0, m) if self.part == "neighbour" else slice(m, None)] = True
        return tokens.masked_fill(~seen, self.store.pad_id), mask & seen


def same_book(dataset: Dataset, book: Dataset, split: str) -> None:
    """Raise `UserError` unless a model of `dataset` can read `book`, whose split is the same text."""
    for what, ours, theirs in (
        ("chunk_length", dataset.chunk_length, book.chunk_length),
        ("tokenizer", _tokenizer(dataset), _tokenizer(book)),
        ("seed", dataset.facts["seed"], book.facts["seed"]),
    ):
        if ours != theirs:
            raise UserError(
                f"{book.path}: has {what} {theirs}, {dataset.path} has {ours}. Another database is read with the same "
                f"ones: make that dataset with them (dataset.tokenizer.path takes a given tokenizer)."
            )
    here, there = dataset.store.tokens(dataset.rows(split))[0], book.store.tokens(book.rows(split))[0]
    if not np.array_equal(here, there):
        raise UserError(
            f"{book.path}: its {split} split ({len(there)} chunks) is not that of {dataset.path} ({len(here)} chunks), "
            f"so its stored neighbours are of other text. Make it with the same evaluated sources and split."
        )


def _tokenizer(dataset: Dataset) -> str:
    """sha256 of the tokenizer's file, short."""
    files = dataset.manifest("tokenizer/manifest.json", "tokenizer").facts["files"]
    return " ".join(files[name]["sha256"][:16] for name in sorted(files))
