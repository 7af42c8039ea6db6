"""Loss on the same first samples of the validation split, with retrieval on and off."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from retro.recorded import Dataset
from retro.training import counter
from retro.training.batches import Batcher
from retro.training.distribution import World
from retro.training.prefetch import prefetch
from retro.training.samples import Samples, documents_of


@dataclass(frozen=True)
class Validation:
    """What is validated: samples, int64 [samples, l + 1] positions, and a batcher for each retrieval mode."""

    split: str
    positions: np.ndarray
    batchers: dict[str, Batcher]
    batch_size: int
    token_bytes: np.ndarray  # int64 [V], UTF-8 bytes of each token
    interval: int = 1  # steps between validations

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        modes: dict[str, Batcher],
        samples: int,
        batch_size: int,
        split: str = "valid",
        interval: int = 1,
    ) -> "Validation":
        """The first `samples` of the split's stream, shuffled by the dataset's seed, for all runs."""
        seq_chunks = dataset.seq_length // dataset.chunk_length
        seed = counter.derive(dataset.facts["seed"], counter.DATA)
        stream = Samples(documents_of(dataset, split), seq_chunks, seed, epochs=1)
        assert stream.number is not None
        positions = stream.samples(np.arange(min(samples, stream.number)))
        return cls(split, positions, modes, batch_size, np.asarray(dataset.tokenizer.token_bytes), interval)

    def run(
        self, model: nn.Module, world: World, precision: str, step: int, check: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """One metrics line for each retrieval mode; `check` is called between batches and may raise."""
        if not len(self.positions):
            return []
        model.eval()
        try:
            return [self._line(model, world, precision, step, mode, check) for mode in self.batchers]
        finally:
            model.train()

    def _line(
        self, model: nn.Module, world: World, precision: str, step: int, mode: str, check: Callable[[], None]
    ) -> dict[str, Any]:
        nats = counted = size = 0.0
        mine = world.share(np.arange(len(self.positions)))
        cuts = range(0, len(mine), self.batch_size)
        positions = np.where((mine >= 0)[:, None], self.positions[mine], -1)
        batches = (self.batchers[mode].batch(positions[at : at + self.batch_size]) for at in cuts)
        with torch.no_grad():
            for batch in prefetch(batches):
                check()
                targets = batch.targets.numpy()
                counted += batch.counted
                size += int(self.token_bytes[targets[targets >= 0]].sum())
                there = batch.to(world.device)
                with world.autocast(precision):
                    losses = model(there.tokens, there.neighbours, there.mask, there.targets)
                nats += float(losses.double().sum())
        nats, counted, size = world.sum([nats, counted, size])
        return {
            "step": step,
            "split": self.split,
            "retrieval": mode,
            "loss": nats / max(counted, 1),
            "bits_per_byte": nats / math.log(2) / max(size, 1),
        }
