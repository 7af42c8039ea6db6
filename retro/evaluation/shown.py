"""The batches a model is measured on: the neighbours of a condition, which may be chunks of another dataset."""

from dataclasses import dataclass

import numpy as np
import torch

from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.evaluation.conditions import SHUFFLED, Condition
from retro.training.batches import Batcher


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
        book = book or dataset
        if book is not dataset:
            same_book(dataset, book, split)
        if condition.part == "continuation" and retrieved_chunks < 2:
            raise UserError(f"condition {condition.name!r}: neighbours bring one chunk, so there is no continuation.")
        if ids is not None:
            book = Given(book.path, book.facts, ids)
        super().__init__(
            book,
            split,
            neighbours_used=used,
            retrieved_chunks=retrieved_chunks,
            ids=condition.ids,
            seed=dataset.facts["seed"],
        )
        self.part = condition.part
        if condition.source == SHUFFLED and self.ids is not None:
            records = self.store.chunks(self.rows)
            keys = np.stack([self.store.source(self.rows).astype(np.uint64), records["group"]], axis=1)
            groups = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
            self.ids = self.ids[shuffled(groups, self.seed)]

    def _neighbours(
        self, positions: np.ndarray, hidden: np.ndarray | None, ahead: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        tokens, mask = super()._neighbours(positions, hidden, ahead)
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
