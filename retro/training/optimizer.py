"""AdamW with decay on matrices only, and the learning-rate schedule, counted in samples."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from retro.training.settings import TrainSettings


class HasParameters(Protocol):
    """A module, or a process's parts of one."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


def build_optimizer(model: HasParameters, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over `model`: weight decay for tensors of two or more dimensions, none for norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters),
    )


def learning_rate(settings: TrainSettings, samples: int, total: int) -> float:
    """The learning rate of the step that ends at `samples` of `total` samples.

    Linear from 0 to `lr` over the warm-up, then cosine or linear down to `min_lr` at `total`, or constant.
    """
    warmup = settings.warmup_samples
    if samples < warmup:
        return settings.lr * samples / warmup
    if settings.schedule == "constant":
        return settings.lr
    done = min(1.0, (samples - warmup) / max(1, total - warmup))
    left = 1 - done if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return settings.min_lr + (settings.lr - settings.min_lr) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
