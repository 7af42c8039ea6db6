"""How much a run trains on: what the config asks for, and what preprocessing made of it, which training reads.

A config that names no number follows the corpus: as many samples as `EPOCHS` give, from where on a training warns that
its text is learnt by heart, and at most `max_samples`. How many those are is known when the chunks are counted.
"""

from typing import Final, Self

from pydantic import Field, model_validator

from retro.base.stage import Settings

EPOCHS: Final = 4.0


class RecordedSamples(Settings):
    """What every run on a dataset shares. Recorded by preprocessing; a run cannot change it."""

    seq_length: int = Field(gt=0)
    train_samples: int = Field(gt=0)
    epochs: float | None = Field(None, gt=0, exclude_if=lambda value: value is None)  # that decided train_samples
    global_batch_size: int = Field(gt=0)
    eval_interval: int = Field(gt=0)
    eval_iterations: int = Field(ge=0)

    def of(self, share: float) -> "RecordedSamples":
        """The same, for a run that trains on a share of the samples."""
        return self.model_copy(update={"train_samples": max(1, round(self.train_samples * share))})

    def interval(self, wanted: int) -> int:
        """Steps between two of what recurs: where the corpus decided how long a training is, at least three times."""
        return wanted if self.epochs is None else min(wanted, max(1, self.train_samples // self.global_batch_size // 3))

    def part(self, wanted: int) -> int:
        """Samples of a part of the training, such as its warm-up: where the corpus decided, at most a tenth."""
        return wanted if self.epochs is None else min(wanted, self.train_samples // 10)


class SampleSettings(Settings):
    """What every run trains on. Without `epochs` and `train_samples` it follows the corpus."""

    seq_length: int = Field(512, gt=0, description="Tokens a sample; a multiple of chunk_length.")
    epochs: float | None = Field(
        None,
        gt=0,
        exclude_if=lambda value: value is None,
        description="Times that a run reads the training text. Without this and train_samples: 4 times, and at most "
        "max_samples. Where the corpus decides how long a training is, warm-up, validation and intervals are no longer "
        "than suits it.",
    )
    train_samples: int | None = Field(
        None,
        gt=0,
        exclude_if=lambda value: value is None,
        description="Samples a run trains on, in all, whatever the corpus; instead of epochs.",
    )
    max_samples: int = Field(
        1200, gt=0, description="Samples a run trains on at most, where neither epochs nor train_samples is given."
    )
    global_batch_size: int = Field(2, gt=0, description="Samples an optimizer step.")
    eval_interval: int = Field(200, gt=0, description="Optimizer steps between validations.")
    eval_iterations: int = Field(16, ge=0, description="Batches a validation.")

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.epochs is not None and self.train_samples is not None:
            raise ValueError(
                f"epochs {self.epochs:g} and train_samples {self.train_samples} say the same in two ways; leave one out"
            )
        return self

    def resolved(self, chunks: float, chunk_length: int) -> RecordedSamples:
        """What a training split of so many chunks makes of it."""
        number, epochs = self.train_samples, None
        if number is None:
            followed = self.epochs or EPOCHS
            number = max(1, int(followed * chunks * chunk_length / self.seq_length))
            if self.epochs is None and number >= self.max_samples:
                number = self.max_samples
            else:
                epochs = followed
        found = RecordedSamples(
            seq_length=self.seq_length,
            train_samples=number,
            epochs=epochs,
            global_batch_size=self.global_batch_size,
            eval_interval=self.eval_interval,
            eval_iterations=self.eval_iterations,
        )
        batch, validated = self.global_batch_size, self.eval_iterations * self.global_batch_size
        fewer = {
            "eval_interval": found.interval(self.eval_interval),
            "eval_iterations": min(self.eval_iterations, max(1, found.part(validated) // batch)),
        }
        return found.model_copy(update=fewer)

    def told(self, found: RecordedSamples, chunks: int) -> list[str]:
        """What the log says of samples that follow the corpus."""
        if found.epochs is None:
            return []
        most = "" if self.epochs else f", of at most {self.max_samples:,}"
        size = f"{found.train_samples:,} samples of {self.seq_length} tokens"
        lines = [f"{size}: {found.epochs:g} epochs of {chunks:,} chunks{most}"]
        for key in ("eval_interval", "eval_iterations"):
            if getattr(self, key) != getattr(found, key):
                lines.append(f"{key} {getattr(self, key)} becomes {getattr(found, key)}, for so short a training")
        return lines
