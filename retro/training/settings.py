"""Config sections of training: what the dataset fixes (samples) and what a run chooses (train)."""

from typing import Literal

from pydantic import Field

from retro.settings import Settings


class SampleSettings(Settings):
    """What every run on a dataset shares. Recorded by preprocessing; a run cannot change it."""

    seq_length: int = Field(512, gt=0, description="Tokens a sample; a multiple of chunk_length.")
    train_samples: int = Field(1200, gt=0, description="Samples a run trains on, in all.")
    global_batch_size: int = Field(2, gt=0, description="Samples an optimizer step.")
    eval_interval: int = Field(200, gt=0, description="Optimizer steps between validations.")
    eval_iterations: int = Field(16, ge=0, description="Batches a validation.")

    def of(self, share: float) -> "SampleSettings":
        """The same, for a run that trains on a share of the samples."""
        return self.model_copy(update={"train_samples": max(1, round(self.train_samples * share))})


class ParallelSettings(Settings):
    """How a model is cut over the processes that torchrun starts; the result is the same but for rounding."""

    fsdp: bool = Field(False, description="Cut weights, gradients and optimizer over the data ranks (FSDP2).")
    tensor: int = Field(1, ge=1, description="Ranks that share each layer's heads; the others share the samples.")


class TrainSettings(Settings):
    """How a run is optimized."""

    lr: float = Field(3e-3, gt=0, description="Peak learning rate.")
    min_lr: float = Field(3e-4, ge=0, description="Learning rate at the end of the decay.")
    warmup_samples: int = Field(60, ge=0, description="Samples of linear warm-up.")
    samples_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of samples.train_samples that a run trains on: the first of the order that all runs of its "
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
