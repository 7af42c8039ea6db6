"""The training loop: steps, validations, checkpoints, and a clean stop.

A step is micro-batches, their gradients summed, clipped, applied. SIGTERM, SIGINT, SIGUSR1 and the end of a job's time
are noticed at once and obeyed where it is safe.
"""

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retro.base import hashing
from retro.base.log import duration, say
from retro.base.stage import UserError
from retro.training.batches import Batch
from retro.training.optimizer import learning_rate
from retro.training.samples import prefetch
from retro.training.session import Session, Window

OUT_OF_TIME = 1000  # a reason beside the numbers of signals
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: an exit status that is not success, after which to start again


class Stopped(Exception):
    """The process was asked to stop; `status` is its exit status."""

    def __init__(self, reason: int):
        timed = reason == OUT_OF_TIME
        super().__init__("its time limit" if timed else signal.Signals(reason).name)
        self.status = TRY_AGAIN if timed or reason == signal.SIGUSR1 else 128 + reason


def deadline(minutes: float | None, before: float) -> float:
    """When to stop, in seconds since 1970: `minutes` from now, and `before` minutes before the SLURM job's end."""
    limits = [] if minutes is None else [time.time() + 60 * minutes]
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return min([*limits, *([int(end) - 60 * before] if end.isdecimal() else []), float("inf")])


class Stop:
    """Remembers the first signal that asks to stop, and when time is up."""

    def __init__(self, end: float = float("inf")) -> None:
        self.signum, self.end = 0, end

    def __call__(self, signum: int, _frame: object) -> None:
        self.signum = self.signum or signum

    def reason(self) -> int:
        """The signal that came, OUT_OF_TIME, or 0."""
        return self.signum or (OUT_OF_TIME if time.time() >= self.end else 0)

    def check(self) -> None:
        """Raise `Stopped` if there is a reason."""
        if reason := self.reason():
            raise Stopped(reason)

    @classmethod
    @contextmanager
    def listening(cls, end: float = float("inf")) -> Iterator["Stop"]:
        """Catch SIGTERM, SIGINT and SIGUSR1 while the block runs, and mind the `end`, in seconds since 1970."""
        stop = cls(end)
        before = {signum: signal.signal(signum, stop) for signum in SIGNALS}
        try:
            yield stop
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


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
        torch.manual_seed(hashing.derive(session.course.seed, hashing.TORCH, int(numbers[start])))
        there = part.to(world.device)
        with world.autocast(train.precision):
            losses = session.forward(there.tokens, there.neighbours, there.mask, there.targets, train.head_loss)
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
    session.optimizer.set_rate(rate / train.lr)
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


def fit(session: Session) -> None:
    """Train to the end. At SIGTERM, SIGINT, SIGUSR1 or the end of the time write a checkpoint and exit: with 128 + the
    signal's number, or 75 for SIGUSR1 and the time. Either way the same command goes on from there."""
    with Stop.listening(deadline(session.train.exit_minutes, session.train.exit_before)) as stop:
        try:
            train(session, stop)
        except Stopped as stopped:
            session.save()
            session.world.barrier()  # the others' end would end the one that writes
            say(
                f"stopped by {stopped} after step {session.step} of {session.steps}: checkpoint written to "
                f"{session.checkpoints.folder}; the same command goes on from there"
            )
            raise SystemExit(stopped.status) from None


def train(session: Session, stop: Stop) -> None:
    """The loop itself; raises Stopped between steps, when the session is at a whole step."""
    saved = time.monotonic()
    with closing(prefetch(session.batches())) as batches:
        for numbers, batch in batches:
            check(session, stop)
            validate(session, stop)
            start = time.perf_counter()
            outcome = train_step(session, numbers, batch, stop)
            elapsed = time.perf_counter() - start
            session.step += 1
            session.seconds += elapsed
            session.window.seconds += elapsed
            done = session.numbers(session.step - 1)
            session.window.samples += len(done)
            session.window.tokens += session.course.tokens(done)
            session.tokens += session.course.tokens(done)
            session.window.losses.append(outcome.loss)
            last = session.step == session.steps
            if last or session.step % session.train.log_interval == 0:
                log(session, outcome)
                session.window = Window()
            overdue = time.monotonic() - saved >= 60 * session.train.checkpoint_minutes
            overdue = session.world.largest(overdue) > 0
            if last or overdue or session.step % session.train.checkpoint_interval == 0:
                session.save()
                saved = time.monotonic()
    check(session, stop)
    validate(session, stop)


def check(session: Session, stop: Stop) -> None:
    """Raise Stopped if this or another process was asked to stop."""
    reason = int(session.world.largest(stop.reason()))
    if reason:
        raise Stopped(reason)


def validate(session: Session, stop: Stop) -> None:
    """Validate if this step is due and has not been validated before it was resumed."""
    validation = session.course.validation
    if validation is None:
        return
    due = session.step % validation.interval == 0 or session.step == session.steps
    done = session.metrics is not None and session.metrics.validated(session.step)
    if not session.step or not due or session.world.largest(done):
        return
    lines = validation.run(
        session.forward,
        session.world,
        session.train.precision,
        session.step,
        lambda: check(session, stop),
    )
    if session.metrics:
        session.metrics.write(lines)
        for line in lines:
            say(
                f"step {session.step:,}: validation, retrieval {line['retrieval']}: loss {line['loss']:.4f}, "
                f"{line['bits_per_byte']:.4f} bits per byte"
            )


def log(session: Session, outcome: Outcome) -> None:
    """Write a metrics line and a progress line of the steps since the last, `outcome` that of the newest."""
    if not session.metrics:
        return
    samples, window = session.samples_after(session.step), session.window
    rate = window.tokens / window.seconds
    share = rate * session.flops_per_token / (session.peak * session.world.size)
    line: dict[str, Any] = {
        "step": session.step,
        "samples": samples,
        "tokens": session.tokens,
        "loss": sum(window.losses) / len(window.losses),
        "lr": outcome.rate,
        "grad_norm": outcome.norm,
        "seconds": round(session.seconds, 3),
        "tokens_per_s": round(rate, 1),
        "mfu": round(share, 4),
    }
    if outcome.zeros is not None:
        line |= {"zeros": outcome.zeros, "parameter_norm": outcome.parameter_norm}
    session.metrics.write([line])
    left = (session.course.samples - samples) * window.seconds / window.samples
    say(
        f"step {session.step:,}/{session.steps:,}  samples {samples:,}  loss {line['loss']:.4f}  "
        f"lr {outcome.rate:.2e}  grad {outcome.norm:.2f}  {rate:,.0f} tokens/s  {share:.0%} of GEMM  "
        f"{duration(left)} left"
    )
