"""What moves the weights: AdamW, or Muon on matrices with AdamW on the rest, and the learning rate's course.

Muon (Jordan et al. 2024) steps along the orthogonal factor of a matrix's momentum, so that all directions of a matrix
move alike. It is for the matrices between hidden states; tables, norms, biases and what copy-ready cross-attention
adds to its scores stay with AdamW, and so does the head.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from retro.base.stage import UserError
from retro.training.settings import TrainSettings
from retro.training.weights import retrieves


class HasParameters(Protocol):
    """A module, or a process's parts of one."""

    def parameters(self) -> Iterator[nn.Parameter]: ...


class Optimizer:
    """One or two of torch's optimizers, over different parameters, as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]):
        self.parts = parts
        self.peaks = [[group["lr"] for group in part.param_groups] for part in parts]
        self.owners = {id(p): part for part in parts for group in part.param_groups for p in group["params"]}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """All groups."""
        return [group for part in self.parts for group in part.param_groups]

    def state(self, parameter: torch.Tensor) -> dict[str, Any]:
        """What is kept of a parameter, to be read or filled; empty before the first step and of frozen ones."""
        owner = self.owners.get(id(parameter))
        return {} if owner is None else owner.state[parameter]

    def counts_on_cpu(self, parameter: torch.Tensor) -> bool:
        """Whether the parameter's number of steps lies on the CPU, wherever the parameter does."""
        return not self.owners[id(parameter)].defaults.get("fused")

    def set_rate(self, share: float) -> None:
        """Set every learning rate to this share of its peak."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * share

    def step(self) -> None:
        """Move the weights along their gradients."""
        for part in self.parts:
            part.step()


def matrices(model: nn.Module) -> list[torch.Tensor]:
    """The parameters that Muon is for: the weights of the GPT's linear layers but the head's.

    The retrieval half stays with AdamW: Muon takes apart what copy-ready cross-attention begins with.
    """
    return [
        module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] != "head" and not retrieves(f"{path}.weight")
    ]


def build_optimizer(
    model: HasParameters, settings: TrainSettings, orthogonal: Collection[torch.Tensor] = ()
) -> Optimizer:
    """The optimizer that `settings` names, over `model`; `orthogonal` are the matrices that are Muon's if it is that.

    Weight decay for tensors of two or more dimensions, none for norms and biases.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    muon = {id(each) for each in orthogonal} if settings.optimizer == "muon" else set()
    rest = [p for p in parameters if id(p) not in muon]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    parts: list[torch.optim.Optimizer] = []
    if any(group["params"] for group in groups):
        parts.append(
            torch.optim.AdamW(
                [group for group in groups if group["params"]],
                lr=settings.lr,
                betas=(settings.beta1, settings.beta2),
                eps=settings.eps,
                fused=all(p.device.type in ("cpu", "cuda") for p in rest),
            )
        )
    if whole := [p for p in parameters if id(p) in muon]:  # none where the base is frozen
        parts.append(torch.optim.Muon(whole, lr=settings.muon_lr, weight_decay=settings.weight_decay))
    return Optimizer(parts)


def refuse_spread(settings: TrainSettings) -> None:
    """Raises UserError for Muon on parts of matrices: it needs whole ones."""
    if settings.optimizer == "muon":
        raise UserError(
            "train.optimizer is muon, which needs whole matrices, and train.parallel cuts them over processes (fsdp, "
            "or tensor above 1). Take adamw, or leave the model whole: plain data parallel does with muon."
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
