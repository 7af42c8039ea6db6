"""A training run while it runs: what it was made of, and where it stands."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from retro.model.settings import ModelSettings
from retro.recorded import Dataset
from retro.training.batches import Batch, Batcher, hidden_chunks
from retro.training.blend import Blend
from retro.training.checkpoints import Checkpoints, pack, unpack
from retro.training.distribution import World
from retro.training.metrics import Metrics
from retro.training.samples import Samples
from retro.training.settings import SampleSettings, TrainSettings
from retro.training.validation import Validation
from retro.training.weights import assign, weights


@dataclass
class Window:
    """What happened since the last logged step; part of a checkpoint, so that a resumed run logs the same."""

    samples: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass
class Session:
    """All that a run needs; `step`, `seconds` and the weights are what changes."""

    run: dict[str, Any]
    model_settings: ModelSettings
    train: TrainSettings
    fixed: SampleSettings
    dataset: Dataset
    world: World
    model: nn.Module
    forward: nn.Module  # the model, compiled if the settings say so
    optimizer: torch.optim.AdamW
    samples: Samples | Blend
    batcher: Batcher
    validation: Validation
    checkpoints: Checkpoints
    flops_per_token: float
    peak: float  # FLOP a second of a plain matrix product
    metrics: Metrics | None = None  # only the first process writes
    step: int = 0
    seconds: float = 0.0  # of training steps, all attempts
    window: Window = field(default_factory=Window)

    @property
    def seq_chunks(self) -> int:
        return self.dataset.seq_length // self.dataset.chunk_length

    @property
    def steps(self) -> int:
        """Optimizer steps in all; the last may have fewer samples."""
        return -(-self.fixed.train_samples // self.fixed.global_batch_size)

    def samples_after(self, step: int) -> int:
        """Samples trained on once `step` steps are done."""
        return min(step * self.fixed.global_batch_size, self.fixed.train_samples)

    def numbers(self, step: int) -> np.ndarray:
        """The sample numbers of the step that follows `step` done ones."""
        return np.arange(self.samples_after(step), self.samples_after(step + 1))

    def batches(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """For each step still to do: this process's sample numbers and their batch."""
        seed = self.run["seed"]
        for step in range(self.step, self.steps):
            mine = self.world.share(self.numbers(step))
            hidden = hidden_chunks(seed, mine, self.seq_chunks, self.train.neighbour_dropout, self.train.sample_dropout)
            yield mine, self.batcher.batch(self.samples.samples(mine), hidden)

    def names(self) -> dict[str, nn.Parameter]:
        """Parameters by name."""
        return dict(self.model.named_parameters())

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.world.first:
            self.metrics.sync()
            names = {id(parameter): name for name, parameter in self.names().items()}
            state = {"step": self.step, "seconds": self.seconds, "window": asdict(self.window)}
            self.checkpoints.write(state, pack(weights(self.model), names, self.optimizer))

    def resume(self) -> str | None:
        """Go on from the newest checkpoint of the same fingerprint; say from where."""
        found = self.checkpoints.newest()
        if found is None:
            return None
        state, tensors = found
        assign(self.model, unpack(tensors, self.names(), self.optimizer), str(self.checkpoints.folder))
        self.step, self.seconds, self.window = state["step"], state["seconds"], Window(**state["window"])
        return f"step {self.step} of {self.checkpoints.folder}"
