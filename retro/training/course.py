"""What a training reads, and for how long: the one thing in which training on a stream and on questions differ."""

from typing import Protocol

import numpy as np

from retro.training.batches import Batch
from retro.training.validation import Validation


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
