"""What a training reads, and for how long: the one thing in which training on a stream and on questions differ.

`Pretraining` reads samples of a dataset's stream of chunks, each with its stored neighbours.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from retro.base import hashing
from retro.dataset.dataset import Dataset
from retro.dataset.settings import RecordedSamples
from retro.training.batches import Batch, Batcher, Source, hidden_chunks, text_ahead
from retro.training.metrics import Validation
from retro.training.samples import Blend, Samples, describe, open_samples, reach
from retro.training.settings import Run, TrainSettings


class Course(Protocol):
    """Samples by their number, 0, 1, … Each is a function of seed and number alone, so that a run resumes exactly."""

    @property
    def samples(self) -> int:
        """Trained on, in all."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples an optimizer step; the last may have fewer."""
        ...

    @property
    def seed(self) -> int:
        """What dropout draws from, together with a sample's number."""
        ...

    @property
    def section(self) -> str:
        """The config section that has its lr and warmup_samples, for messages."""
        ...

    @property
    def validation(self) -> Validation | None:
        """None: nothing is validated."""
        ...

    def batch(self, numbers: np.ndarray) -> Batch:
        """The samples of these numbers, int64 [b]; −1 is no sample: padding without targets."""
        ...

    def tokens(self, numbers: np.ndarray) -> int:
        """How many tokens a model reads in these samples."""
        ...

    def named(self, numbers: np.ndarray) -> str:
        """These samples in words, with what they were made of: for a message."""
        ...

    def described(self) -> list[str]:
        """Lines for the log: what is about to be read."""
        ...


def shortened(names: list[str], most: int) -> str:
    """The first `most` of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Pretraining:
    """The training split's samples, as `retro.training.course.Course` has them; `seed` is the run's."""

    dataset: Dataset
    train: TrainSettings
    fixed: RecordedSamples
    stream: Samples | Blend
    batcher: Batcher
    validation: Validation
    seed: int
    section: str = "train"
    frozen: bool = False  # nothing of the model is trained

    @classmethod
    def open(cls, dataset: Dataset, run: Run, fixed: RecordedSamples) -> "Pretraining":
        """The course of a run. Raises UserError where the dataset has too little for it."""
        train = run.train

        def batcher(split: str, ids: Source) -> Batcher:
            return Batcher(
                dataset,
                split,
                neighbours_used=train.neighbours_used,
                retrieved_chunks=train.retrieved_chunks,
                ids=ids,
            )

        modes: dict[str, Source] = {"on": "stored", "off": "none"} if run.retrieves else {"none": "none"}
        validation = Validation.of(
            dataset,
            {name: batcher("valid", ids) for name, ids in modes.items()},
            fixed.eval_iterations * fixed.global_batch_size,
            train.micro_batch_size or fixed.global_batch_size,
            interval=fixed.eval_interval,
        )
        # Of both seeds: twins (one run seed) read the same samples in the same order, other seeds another order.
        data_seed = hashing.derive(dataset.facts["seed"], hashing.DATA, run.seed)
        read = batcher("train", "stored" if run.retrieves else "none")
        stream, frozen = open_samples(dataset, data_seed), run.freeze == "base" and not run.retro
        return cls(dataset, train, fixed, stream, read, validation, run.seed, frozen=frozen)

    @property
    def samples(self) -> int:
        return 0 if self.frozen else self.fixed.train_samples

    @cached_property
    def reached(self) -> dict[str, Any]:
        """What all samples come to: documents read, epochs."""
        return reach(self.stream, self.samples)

    @property
    def batch_size(self) -> int:
        return self.fixed.global_batch_size

    def positions(self, numbers: np.ndarray) -> np.ndarray:
        """Positions in the training split, int64 [b, l + 1]; of a number −1 all are −1."""
        return np.where((numbers >= 0)[:, None], self.stream.samples(np.maximum(numbers, 0)), -1)

    def batch(self, numbers: np.ndarray) -> Batch:
        """The samples with their neighbours, of which dropout hides some; of a curriculum with the text to come."""
        train, chunks = self.train, self.stream.seq_chunks
        hidden = hidden_chunks(self.seed, numbers, chunks, train.neighbour_dropout, train.sample_dropout)
        ahead = None
        if self.batcher.source != "none":
            length = self.dataset.chunk_length
            ahead = text_ahead(train.curriculum, self.seed, numbers, self.samples, chunks, length)
        return self.batcher.batch(self.positions(numbers), hidden, ahead)

    def tokens(self, numbers: np.ndarray) -> int:
        """All samples have one length."""
        return len(numbers) * self.dataset.seq_length

    def named(self, numbers: np.ndarray) -> str:
        """The samples' numbers, and the documents that they are cut from."""
        chunks = self.positions(numbers)[:, :-1]
        store, documents = self.dataset.store, []
        for row in self.dataset.rows("train")[np.unique(chunks[chunks >= 0])]:
            document = store.document(int(row))
            name = f"{document['source']}:{document.get('id', document['number'])}"
            if name not in documents:
                documents.append(name)
        samples = shortened([str(number) for number in numbers if number >= 0], 8)
        return f"samples {samples} (documents {shortened(documents, 5)})"

    def described(self) -> list[str]:
        """Samples and epochs, the blend if it is one, neighbours, validation."""
        fixed, train, stream = self.fixed, self.train, self.stream
        if self.frozen:
            return ["samples    none: nothing of this model is trained"]
        read = self.reached
        lines = [
            f"samples    {fixed.train_samples:,} of {self.dataset.seq_length} tokens: reads {read['documents_read']:,} "
            f"of {read['documents']:,} documents, {read['epochs']:.2f} epochs",
            *describe(stream, fixed.train_samples),
        ]
        if self.batcher.source != "none":
            hidden = f", hidden: {train.neighbour_dropout:.0%} of chunks, {train.sample_dropout:.0%} of samples"
            lines.append(f"neighbours {train.neighbours_used} of {train.retrieved_chunks} chunks each{hidden}")
            if (taught := train.curriculum) is not None:
                lines.append(
                    f"curriculum the text to come among them, always until {taught.always_until:.0%} of the training, "
                    f"never from {taught.gone_by:.0%} on"
                )
        else:
            lines.append("neighbours none")
        validated = len(self.validation.positions)
        every = f"{validated} samples every {fixed.eval_interval} steps"
        return [*lines, f"validation {every if validated else 'none: the split is empty'}"]
