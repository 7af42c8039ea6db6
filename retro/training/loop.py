"""The training loop: steps, validations, checkpoints, and a clean stop."""

import time
from contextlib import closing
from typing import Any

from retro.durations import duration
from retro.training.prefetch import prefetch
from retro.training.say import say
from retro.training.session import Session, Window
from retro.training.step import Outcome, train_step
from retro.training.stop import Stop, Stopped, deadline


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
