"""From positions in a split to the tensors a model reads; the same for training and evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from retro.base import hashing
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.training.settings import CurriculumSettings

Source = Literal["stored", "none", "random"]


@dataclass(frozen=True)
class Batch:
    """What a model reads. b samples, n = l * m tokens, l chunks, k neighbours, r retrieved tokens."""

    tokens: torch.Tensor  # int64 [b, n]
    targets: torch.Tensor  # int64 [b, n], −1 where none
    neighbours: torch.Tensor | None  # int64 [b, l, k, r]
    mask: torch.Tensor | None  # bool [b, l, k, r], False where there is nothing to see

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def counted(self) -> int:
        """Targets that count in the loss."""
        return int((self.targets >= 0).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        moved = {
            name: tensor.pin_memory().to(device, non_blocking=True)
            for name in ("tokens", "targets", "neighbours", "mask")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)

    def cut(self, size: int) -> Iterator["Batch"]:
        """Batches of at most `size` samples."""
        for start in range(0, len(self), size):
            here = slice(start, start + size)
            yield Batch(
                self.tokens[here],
                self.targets[here],
                None if self.neighbours is None else self.neighbours[here],
                None if self.mask is None else self.mask[here],
            )


class Batcher:
    """Gathers batches of a split straight from the memory-mapped stores.

    `ids` says where neighbours come from: the stored search results, nowhere, or, as a control, seeded random
    database chunks (a function of seed and chunk, with nothing excluded).
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        neighbours_used: int,
        retrieved_chunks: int,
        ids: Source = "stored",
        seed: int = 0,
    ):
        """Raises UserError if the dataset stores fewer neighbours than are to be used."""
        self.store, self.dataset, self.seed = dataset.store, dataset, seed
        self.rows = dataset.rows(split)
        self.used, self.retrieved = neighbours_used, retrieved_chunks
        self.source: Source = ids if neighbours_used else "none"
        self.ids = dataset.neighbour_ids(split) if self.source == "stored" else None
        if self.ids is not None:
            chunks, saved = self.ids.shape
            where = dataset.folder / f"neighbours/{split}/ids.npy"
            if saved < neighbours_used:
                raise UserError(
                    f"{where}: stores {saved} neighbours a chunk, wanted {neighbours_used}. Lower "
                    f"neighbours_used, or raise neighbours.saved in the dataset section."
                )
            if chunks != len(self.rows):
                raise UserError(
                    f"{where}: holds neighbours of {chunks} chunks, the {split} split has {len(self.rows)}. "
                    f"Delete it and run snakemake again."
                )
        if self.source == "random" and not len(dataset.database):
            raise UserError(
                f"{dataset.folder / 'database'}: is empty, so there are no random neighbours to draw. Set "
                "database: true for a source."
            )

    def batch(self, positions: np.ndarray, hidden: np.ndarray | None = None, ahead: np.ndarray | None = None) -> Batch:
        """A batch of samples, int64 [b, l + 1] positions in the split: l chunks and the one that follows.

        −1 is no chunk: padding without targets. `hidden`, bool [b, l], hides the neighbours of chunks. `ahead`, int64
        [b, l], shows a chunk's own document from that token of the chunk on in place of its first neighbour; −1: not.
        """
        positions = np.asarray(positions, np.int64)
        samples, chunks = len(positions), positions.shape[1] - 1
        length = chunks * self.store.length
        tokens, real = self.store.tokens(self._rows(positions))  # (b, l + 1, m)
        tokens, real = tokens.reshape(samples, -1), real.reshape(samples, -1)  # (b, n + m)
        targets = np.where(real[:, 1 : length + 1], tokens[:, 1 : length + 1], -1)
        # A position that stands for nothing must predict nothing: it would be the padding of a missing chunk.
        targets[~np.repeat(positions[:, :-1] >= 0, self.store.length, axis=1)] = -1
        neighbours, mask = self._neighbours(positions[:, :-1], hidden, ahead)
        return Batch(
            torch.from_numpy(tokens[:, :length].copy()),
            torch.from_numpy(targets),
            neighbours,
            mask,
        )

    def _rows(self, positions: np.ndarray) -> np.ndarray:
        """Global rows of positions in the split, −1 kept."""
        if not len(self.rows):
            return np.full(positions.shape, -1, np.int64)
        return np.where(positions >= 0, self.rows[np.maximum(positions, 0)], -1)

    def _neighbours(
        self, positions: np.ndarray, hidden: np.ndarray | None, ahead: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        if self.source == "none":
            return None, None
        if self.ids is not None:
            ids = self.ids[np.maximum(positions, 0), : self.used].astype(np.int64)  # (b, l, k)
        else:
            drawn = hashing.words(
                self.seed,
                hashing.RANDOM_NEIGHBOUR,
                np.maximum(positions, 0)[..., None],
                np.arange(self.used),
            )
            ids = (drawn % np.uint64(len(self.dataset.database))).astype(np.int64)
        ids[positions < 0] = -1
        if hidden is not None:
            ids[hidden] = -1
        tokens, mask = self.store.retrieved(self.dataset.neighbour_rows(ids), self.retrieved)  # (b, l, k, r)
        if ahead is not None:
            shown = ahead >= 0 if hidden is None else (ahead >= 0) & ~hidden
            self._show_ahead(tokens, mask, self._rows(positions), np.where(shown, ahead, -1))
        return torch.from_numpy(tokens), torch.from_numpy(mask)

    def _show_ahead(self, tokens: np.ndarray, mask: np.ndarray, rows: np.ndarray, ahead: np.ndarray) -> None:
        """Put the text to come into the first neighbour's place, where a document goes on after its chunk."""
        shown = (ahead >= 0) & (self.store.following(rows) >= 0)  # (b, l)
        own = self.store.retrieved(rows[shown], self.retrieved + 1)  # (c, r + m)
        places = ahead[shown][:, None] + np.arange(tokens.shape[-1])  # (c, r)
        tokens[shown, 0], mask[shown, 0] = (np.take_along_axis(each, places, axis=1) for each in own)


def text_ahead(
    curriculum: CurriculumSettings | None, seed: int, numbers: np.ndarray, total: int, chunks: int, length: int
) -> np.ndarray | None:
    """Which chunks of samples `numbers`, of `total`, are shown the text to come, and from which of their `length`
    tokens on: int64 [len(numbers), chunks], −1 where it is not shown. None without a curriculum.

    A function of seed and sample number alone.
    """
    if curriculum is None:
        return None
    numbers = np.asarray(numbers)[:, None]
    done, each = numbers / total, np.arange(chunks)
    fading = max(curriculum.gone_by - curriculum.always_until, 1e-9)
    moving = max(curriculum.anywhere_by - curriculum.fixed_until, 1e-9)
    shown = hashing.uniform(seed, hashing.SHOW_AHEAD, numbers, each) < (curriculum.gone_by - done) / fading
    reach = 1 + np.clip((done - curriculum.fixed_until) / moving, 0, 1) * (length - 1)
    places = (hashing.uniform(seed, hashing.PLACE_AHEAD, numbers, each) * reach).astype(np.int64)
    return np.where(shown & (numbers >= 0), places, -1)


def hidden_chunks(
    seed: int, numbers: np.ndarray, chunks: int, chance: float, sample_chance: float
) -> np.ndarray | None:
    """Neighbour dropout: which chunks of samples `numbers` see no neighbours, bool [len(numbers), chunks].

    `chance` is a chunk's, `sample_chance` a whole sample's; decided by seed and sample number alone.
    """
    if not (chance or sample_chance):
        return None
    numbers = np.asarray(numbers)[:, None]
    single = hashing.uniform(seed, hashing.HIDE_CHUNK, numbers, np.arange(chunks)) < chance
    return single | (hashing.uniform(seed, hashing.HIDE_SAMPLE, numbers) < sample_chance)
