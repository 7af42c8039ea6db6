"""A run, from the config to the loaded model: one frozen value, and its JSON, on command lines and in manifests."""

import json
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from retro.errors import UserError
from retro.model.settings import ModelSettings
from retro.naming import unseeded
from retro.refusals import explain
from retro.settings import Settings
from retro.training.settings import TrainSettings


class Described(Settings):
    """What every model has: a name, and what it is."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    architecture: Literal["gpt", "retro"]
    model: ModelSettings

    @classmethod
    def of(cls, facts: Any, where: str) -> Self:
        """What `facts()` gave; raises UserError, a line for each fault, all beginning with `where`."""
        try:
            return cls.model_validate(facts)
        except ValidationError as error:
            raise UserError(explain(error, cls, where)) from None

    def facts(self) -> dict:
        """Plain values, ready for JSON, under the names that files have."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def retro(self) -> bool:
        """Whether it has an encoder and cross-attention."""
        return self.architecture == "retro"


class Run(Described):
    """One model to train."""

    twin: str | None = None  # the GPT run that it is compared with
    seed: int
    train: TrainSettings
    start: str | None = Field(None, alias="from")  # the model.json whose weights it begins with
    freeze: Literal["base"] | None = None

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """A run's JSON; raises UserError for what is none."""
        try:
            return cls.of(json.loads(text), where)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not a run's JSON ({error}).") from None

    @property
    def retrieves(self) -> bool:
        """Whether it is trained with neighbours."""
        return self.retro and self.train.neighbours_used > 0

    @property
    def base(self) -> str:
        """Its name in the config, without its seed."""
        return unseeded(self.name)


def _is_none(value: object) -> bool:
    return value is None


class Recorded(Settings):
    """What the dataset decided about a model. Imported ones know the lengths only."""

    chunk_length: int
    retrieved_length: int  # tokens a neighbour brings
    seq_length: int
    vocab_size: int
    eod_id: int | None = Field(None, exclude_if=_is_none)
    pad_id: int | None = Field(None, exclude_if=_is_none)
    global_batch_size: int | None = Field(None, exclude_if=_is_none)
    train_samples: int | None = Field(None, exclude_if=_is_none)
    tokenizer: dict[str, str] | None = Field(None, exclude_if=_is_none)  # sha256 of its files

    @property
    def lengths(self) -> dict[str, int]:
        """What `build_model` is told beside the model's settings and architecture."""
        keys = ("vocab_size", "seq_length", "chunk_length", "retrieved_length")
        return {key: getattr(self, key) for key in keys}


class TrainedRun(Run):
    """What the model.json of a trained run says. `qa`: how it was fine-tuned, as `retro.qa.settings` has it."""

    recorded: Recorded
    qa: dict[str, Any] | None = Field(None, exclude_if=_is_none)


class ImportedModel(Described):
    """What the model.json of weights that others trained says."""

    seed: None = None
    recorded: Recorded


def described(settings: dict[str, Any], where: str) -> TrainedRun | ImportedModel:
    """What a model.json says of its model; raises UserError where it does not fit together."""
    return (TrainedRun if "train" in settings else ImportedModel).of(settings, where)
