"""Config sections of training, and a run, from the config to the loaded model.

The dataset fixes the samples; a run chooses the rest. `Run` is one frozen value, and its JSON, on command lines and in
manifests.
"""

import json
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationError, model_validator

from retro.base.names import unseeded
from retro.base.stage import Settings, UserError, explain
from retro.model.settings import ModelSettings

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
PACKAGES = {"wandb": ["wandb"], "trackio": ["trackio"], "mlflow": ["mlflow", "mlflow-skinny"]}  # one of them will do


def refuse_absent(trackers: Iterable[str]) -> None:
    """Raise UserError for trackers that are not known, or whose package is not installed here."""
    for name in trackers:
        if name not in get_args(TrackerName):
            raise UserError(
                f"train.trackers: {name!r} is none of {', '.join(get_args(TrackerName))}. Correct its name."
            )
        if name in PACKAGES and not any(map(_installed, PACKAGES[name])):
            raise UserError(
                f"train.trackers: {name} is not installed. `pip install {PACKAGES[name][0]}` in the environment that "
                f"trains ({sys.prefix}), or take it out of train.trackers."
            )


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


class ParallelSettings(Settings):
    """How a model is cut over the processes that torchrun starts; the result is the same but for rounding."""

    fsdp: bool = Field(False, description="Cut weights, gradients and optimizer over the data ranks (FSDP2).")
    tensor: int = Field(1, ge=1, description="Ranks that share each layer's heads; the others share the samples.")


class CurriculumSettings(Settings):
    """The text to come as one of the neighbours of training chunks, until cross-attention reads.

    That neighbour is the chunk itself and what follows it, which a model that reads need only find and copy. At first
    it always lies at the same place, then it begins at any token of the chunk, and at last there are real neighbours
    only. All numbers are shares of the training.
    """

    fixed_until: float = Field(0.25, ge=0, le=1, description="Until then it begins where the chunk begins.")
    anywhere_by: float = Field(0.6, ge=0, le=1, description="From then on it begins at any token of the chunk.")
    always_until: float = Field(0.7, ge=0, le=1, description="Until then every chunk has it.")
    gone_by: float = Field(0.9, ge=0, le=1, description="From then on none has it.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for first, second in (("fixed_until", "anywhere_by"), ("always_until", "gone_by")):
            if getattr(self, first) > getattr(self, second):
                raise ValueError(
                    f"{first} is {getattr(self, first)}, above {second}, {getattr(self, second)}: what begins "
                    f"must begin before it ends. Lower the one or raise the other"
                )
        return self


class TrainSettings(Settings):
    """How a run is optimized."""

    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the decoder's matrices, with adamw for everything else."
    )
    lr: float = Field(3e-3, gt=0, description="Peak learning rate; with muon of what is adamw's.")
    muon_lr: float = Field(0.02, gt=0, description="Peak learning rate of muon's matrices; it falls as lr does.")
    min_lr: float = Field(3e-4, ge=0, description="Learning rate at the end of the decay.")
    warmup_samples: int = Field(60, ge=0, description="Samples of linear warm-up.")
    samples_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the dataset's samples that a run trains on: the first of the order that all runs of its "
        "seed read.",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Decay after the warm-up.")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's, on matrices only.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's.")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's.")
    eps: float = Field(1e-8, gt=0, description="AdamW's.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 switches clipping off.")
    micro_batch_size: int | None = Field(None, gt=0, description="Samples a forward pass; default: the whole batch.")
    neighbours_used: int = Field(2, ge=0, description="Neighbours a chunk sees (k).")
    retrieved_chunks: int = Field(2, ge=1, description="Chunks a neighbour brings: itself and its continuation.")
    neighbour_dropout: float = Field(0.0, ge=0, le=1, description="Chance that a chunk's neighbours are hidden.")
    sample_dropout: float = Field(0.0, ge=0, le=1, description="Chance that a whole sample's neighbours are hidden.")
    head_loss: float = Field(
        0.5,
        ge=0,
        description="With model.copy_output: how much of the head's own loss, without the copier, is added to the "
        "gradient, so that it learns from what is copied, too.",
    )
    curriculum: CurriculumSettings | None = Field(
        None, description="Show training chunks the text to come among their neighbours, less and less; default: never."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, for GPUs that have it.")
    parallel: ParallelSettings = Field(ParallelSettings(), description="How the model is cut over processes.")
    recompute: Literal["none", "layers"] = Field(
        "none", description="layers: keep each layer's input only and compute it again for the gradient; saves memory."
    )
    compile: bool = Field(False, description="torch.compile the model.")
    threads: int = Field(1, gt=0, description="CPU threads; part of what makes the bytes, so fixed here.")
    checkpoint_interval: int = Field(500, gt=0, description="Steps between checkpoints.")
    checkpoint_minutes: float = Field(5.0, gt=0, description="Minutes between checkpoints, whichever comes first.")
    exit_minutes: float | None = Field(
        None, gt=0, description="Save and exit, to be started again, after so many minutes of one attempt."
    )
    exit_before: float = Field(3.0, ge=0, description="Minutes before a SLURM job's end at which it does so.")
    log_interval: int = Field(10, gt=0, description="Steps between progress lines.")
    log_norms: bool = Field(False, description="Also log the parameters' norm and the zeros in the gradient.")
    trackers: list[TrackerName] = Field(
        ["tensorboard"],
        exclude=True,  # no part of a run: nothing that is made depends on it
        description="Where metrics are shown as they are logged, beside metrics.jsonl. Reruns nothing.",
    )


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
