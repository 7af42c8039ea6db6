"""What a training tells of itself: metrics.jsonl, trackers, and the loss on the validation split.

metrics.jsonl has one line a logged step or validation, and is cut back to where a run resumes. Validation reads the
same first samples of the validation split each time, with retrieval on and off.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from retro.base import hashing
from retro.base.artifacts import canonical, write_text
from retro.dataset.dataset import Dataset
from retro.training.batches import Batcher
from retro.training.distribution import World
from retro.training.samples import Samples, documents_of, prefetch
from retro.training.trackers import Trackers


class Metrics:
    """A growing metrics.jsonl, and the same numbers to trackers.

    Training lines: step, samples, tokens, loss (nats a target, mean since the line before), lr, grad_norm,
    seconds (of training, all attempts), tokens_per_s, mfu and, with `train.log_norms`, zeros (entries of the clipped
    gradient) and parameter_norm (after the update). Validation lines: step, split, retrieval (none,
    on, off), loss, bits_per_byte.
    """

    def __init__(self, path: Path, trackers: Trackers, step: int):
        """Keep the lines up to `step`, forget later ones: they will be written again."""
        self.path, self.trackers, self.lines = path, trackers, []
        if step and path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    break  # the line that a kill cut short
                if line["step"] <= step:
                    self.lines.append(line)
        write_text(path, "".join(canonical(line) + "\n" for line in self.lines))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append lines, all or none of them."""
        self.file.write("".join(canonical(line) + "\n" for line in lines))
        self.file.flush()
        for line in lines:
            self.lines.append(line)
            kind = f"{line['split']}-{line['retrieval']}" if "split" in line else "train"
            self.trackers.send(len(self.lines), kind, line)

    def validated(self, step: int) -> bool:
        """Whether the validation of a step has been written."""
        return any(line["step"] == step and "split" in line for line in self.lines)

    def last(self) -> dict[str, float]:
        """The last losses: `train`, and for each validation `<split>/<retrieval>`."""
        found = {}
        for line in self.lines:
            name = f"{line['split']}/{line['retrieval']}" if "split" in line else "train"
            found[name] = line["loss"]
        return found

    def sync(self) -> None:
        """Make what was written durable: a checkpoint must not be ahead of its metrics."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.trackers.flush()

    def close(self) -> None:
        """Close all of them."""
        self.file.close()
        self.trackers.close()


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
        seed = hashing.derive(dataset.facts["seed"], hashing.DATA)
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
