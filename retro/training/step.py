"""One optimizer step: micro-batches, their gradients summed, clipped, applied."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from retro.errors import UserError
from retro.training import counter
from retro.training.batches import Batch
from retro.training.optimizer import learning_rate, set_learning_rate
from retro.training.session import Session
from retro.training.stop import Stop


@dataclass(frozen=True)
class Outcome:
    """What a step did: mean loss (nats a target), learning rate, gradient norm before clipping.

    Where asked for, also the zeros in the clipped gradient and the norm of the updated parameters.
    """

    loss: float
    rate: float
    norm: float
    zeros: int | None = None
    parameter_norm: float | None = None


def train_step(session: Session, numbers: np.ndarray, batch: Batch, stop: Stop) -> Outcome:
    """Do the step that follows `session.step`; raises UserError if the loss or a gradient is not finite.

    `numbers` are the sample numbers of `batch`, this process's share. The loss is the sum over all targets of
    the step, divided by their number: the same however the step is cut.
    """
    world, train = session.world, session.train
    counted = world.sum([batch.counted])[0]
    parts = []
    size = train.micro_batch_size or max(len(batch), 1)
    for start, part in zip(range(0, len(batch), size), batch.cut(size), strict=True):
        if world.size == 1:  # several processes must stop at the same place: between steps
            stop.check()
        # Dropout draws from the course's seed and the sample, so that a resumed run draws the same.
        torch.manual_seed(counter.derive(session.course.seed, counter.TORCH, int(numbers[start])))
        there = part.to(world.device)
        with world.autocast(train.precision):
            losses = session.forward(there.tokens, there.neighbours, there.mask, there.targets)  # (b, n)
        (losses.sum() / counted).backward()
        parts.append(losses.detach().sum(dim=1))
    sums = torch.cat(parts).tolist() if parts else []
    refuse_non_finite(session, numbers, np.asarray(sums))
    gradients = session.parts.take_gradients()
    norm = gradient_norm(session, gradients)
    if not math.isfinite(norm):
        refuse(session, numbers, f"the gradient norm is {float(norm)}")
    if train.clip:
        scale = torch.clamp(train.clip / (torch.as_tensor(norm) + 1e-6), max=1.0)  # as clip_grad_norm_ of torch
        torch._foreach_mul_(gradients, scale.to(world.device))
    zeros = count_zeros(session) if logs_norms(session) else None
    rate = learning_rate(train, session.samples_after(session.step + 1), session.course.samples)
    set_learning_rate(session.optimizer, rate)
    session.optimizer.step()
    session.parts.drop_gradients()
    weights = session.parts.norm(session.parts.own) if logs_norms(session) else None
    return Outcome(world.sum([sum(sums)])[0] / counted, rate, float(norm), zeros, weights)


def gradient_norm(session: Session, gradients: list[torch.Tensor]) -> torch.Tensor | float:
    """The 2-norm of the whole gradient, the same on all processes."""
    if not session.parts.spread:
        return torch.nn.utils.get_total_norm(gradients)
    return session.parts.norm({n: own.grad for n, own in session.parts.own.items() if own.grad is not None})


def logs_norms(session: Session) -> bool:
    """Whether the step under way logs parameter norm and zeros."""
    step = session.step + 1
    return session.train.log_norms and (step % session.train.log_interval == 0 or step == session.steps)


def count_zeros(session: Session) -> int:
    """How many entries of the whole gradient are zero; those of parameters without one do not count."""
    empty = torch.ones(0, device=session.world.device)
    found = [empty if own.grad is None else own.grad for own in session.parts.own.values()]
    return int(session.parts.total(found, lambda gradient: (gradient == 0).sum()))


def refuse_non_finite(session: Session, numbers: np.ndarray, sums: np.ndarray) -> None:
    """Refuse a step in which a sample's loss is not finite, naming those samples."""
    wrong = ~np.isfinite(sums)
    if wrong.any():
        refuse(session, numbers[wrong], f"the loss is {sums[wrong][0]}")


def refuse(session: Session, numbers: np.ndarray, what: str) -> None:
    """Raise UserError that names the step, the samples and what they were made of."""
    kept, section = session.checkpoints.paths(), session.course.section
    raise UserError(
        f"{session.run.name}: {what} at step {session.step + 1}, {session.course.named(numbers)}. "
        f"Lower {section}.lr, lengthen {section}.warmup_samples or set train.clip; "
        + (f"the last checkpoint is kept: {kept[-1]}." if kept else "there was no checkpoint yet.")
    )
