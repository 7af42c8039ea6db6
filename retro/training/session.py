"""A training run while it runs: what it was made of, and where it stands."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from retro.base.machine import gemm_rate
from retro.dataset.dataset import Dataset
from retro.model.language_model import LanguageModel
from retro.training.batches import Batch
from retro.training.checkpoints import Checkpoints, pack, unpack
from retro.training.course import Course
from retro.training.distribution import World
from retro.training.metrics import Metrics
from retro.training.optimizer import Optimizer, build_optimizer, matrices, refuse_spread
from retro.training.parallel import parallelize
from retro.training.settings import Run, TrainSettings
from retro.training.sharding import Parts
from retro.training.weights import copy_into, each_tensor, weights


@dataclass
class Window:
    """What happened since the last logged step; part of a checkpoint, so that a resumed run logs the same."""

    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass
class Session:
    """All that a run needs; `step`, `seconds` and the weights are what changes."""

    run: Run
    train: TrainSettings
    course: Course
    dataset: Dataset
    world: World
    model: LanguageModel
    parts: Parts  # what of it is held here
    forward: nn.Module  # the model, compiled if the settings say so
    optimizer: Optimizer
    checkpoints: Checkpoints
    flops_per_token: float
    peak: float  # FLOP a second of a plain matrix product
    metrics: Metrics | None = None  # only the first process writes
    step: int = 0
    tokens: int = 0  # read in training
    seconds: float = 0.0  # of training steps, all attempts
    window: Window = field(default_factory=Window)

    @classmethod
    def of(
        cls,
        run: Run,
        train: TrainSettings,
        course: Course,
        dataset: Dataset,
        world: World,
        model: LanguageModel,
        checkpoints: Checkpoints,
        flops_per_token: float,
    ) -> "Session":
        """A run that begins with the weights of `model`, which is cut over the processes as `train` says."""
        model.train()
        parts = parallelize(model, world, train.parallel, train.recompute, train.precision)
        if parts.spread:
            refuse_spread(train)
        return cls(
            run=run,
            train=train,
            course=course,
            dataset=dataset,
            world=world,
            model=model,
            parts=parts,
            forward=cast(nn.Module, torch.compile(model)) if train.compile else model,
            optimizer=build_optimizer(parts, train, matrices(model)),
            checkpoints=checkpoints,
            flops_per_token=flops_per_token,
            peak=gemm_rate(world.device, train.precision),
        )

    @property
    def steps(self) -> int:
        """Optimizer steps in all; the last may have fewer samples."""
        return -(-self.course.samples // self.course.batch_size)

    def samples_after(self, step: int) -> int:
        """Samples trained on once `step` steps are done."""
        return min(step * self.course.batch_size, self.course.samples)

    def numbers(self, step: int) -> np.ndarray:
        """The sample numbers of the step that follows `step` done ones."""
        return np.arange(self.samples_after(step), self.samples_after(step + 1))

    def batches(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """For each step still to do: this process's sample numbers and their batch."""
        for step in range(self.step, self.steps):
            mine = self.world.share(self.numbers(step))
            yield mine, self.course.batch(mine)

    def weights(self) -> dict[str, torch.Tensor]:
        """The whole model's tensors by name; with parts spread over processes the first has them, others nothing."""
        if not self.parts.spread:
            return weights(self.model)
        return self._gathered(dict(self.parts.own), lambda sizes: 0)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        world, parts = self.world, self.parts
        state: dict[str, Any] = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        state |= {"window": asdict(self.window), "place": world.place}
        if self.metrics is not None:
            self.metrics.sync()
        if not parts.spread:
            if world.first:
                self.checkpoints.write(state, pack(weights(self.model), self.optimizer, parts.own))
            return
        # Whole tensors, each to the process that has the fewest bytes so far.
        mine = self._gathered(pack(parts.own, self.optimizer, parts.own), lambda sizes: sizes.index(min(sizes)))
        self.checkpoints.write_piece(self.step, world.rank, world.size, mine)
        world.barrier()
        if world.first:
            self.checkpoints.write_index(state, world.size)
        world.barrier()

    def _gathered(
        self, tensors: dict[str, torch.Tensor], choose: Callable[[list[int]], int]
    ) -> dict[str, torch.Tensor]:
        """Put tensors together one by one; keep those for which `choose`, of the bytes a process has, says this one."""
        kept, sizes = {}, [0] * self.world.size
        for path in sorted(tensors):
            whole = self.parts.whole(path.rpartition("/")[2], tensors[path].detach())
            keeper = choose(sizes)
            sizes[keeper] += whole.nbytes
            if keeper == self.world.rank:
                kept[path] = whole.cpu()
        return kept

    def resume(self) -> str | None:
        """Go on from the newest checkpoint of the same fingerprint; say from where."""
        found = self.checkpoints.newest()
        if found is None:
            return None
        state, files = found
        tensors = {}
        for file in files:
            for path, whole in each_tensor(file):
                name = path.rpartition("/")[2]
                known = self.parts.spread and name in self.parts.shapes
                tensors[path] = self.parts.part(name, whole).clone() if known else whole
        wanted = self.parts.own if self.parts.spread else weights(self.model)
        copy_into(wanted, unpack(tensors, self.optimizer, self.parts.own), str(self.checkpoints.folder))
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.window = Window(**state["window"])
        other = "" if state["place"] == self.world.place else f", written on {state['place']}: other rounding from here"
        return f"step {self.step} of {self.checkpoints.folder}{other}"

    def close(self) -> None:
        """Close the metrics and leave the other processes."""
        if self.metrics:
            self.metrics.close()
        self.world.finish()
