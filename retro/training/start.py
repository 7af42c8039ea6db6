"""The beginning of a training, whatever it reads: find where it left off, and say what is about to be done."""

from pathlib import Path

from retro.training.metrics import Metrics
from retro.training.say import say, warn
from retro.training.session import Session


def begin(session: Session, board: Path, checked: str = "") -> None:
    """Go on from the newest checkpoint if there is one, and open the metrics; `checked`: what of the dataset was."""
    world = session.world
    stale = session.checkpoints.stale() if world.first else []
    resumed = world.first_alone(session.resume)  # it sets broken checkpoints aside
    if world.first:
        session.checkpoints.open()
        session.metrics = Metrics(session.checkpoints.folder / "metrics.jsonl", board, session.step)
        describe(session, checked, resumed, stale)


def describe(session: Session, checked: str, resumed: str | None, stale: list[str]) -> None:
    """Say what is about to be done."""
    run, train, dataset, parts = session.run, session.train, session.dataset, session.parts
    say(f"run        {run.name}: {run.architecture}, {parts.count:,} parameters")
    say(f"dataset    {dataset.path}{checked and ': '}{checked}")
    for line in session.course.described():
        say(line)
    say(f"steps      {session.steps:,} of {session.course.batch_size} samples")
    say(
        f"machine    {session.world.place}, {train.threads} threads, {train.precision}, "
        f"matrix product {session.peak / 1e9:,.0f} GFLOP/s"
    )
    if parts.spread or train.recompute != "none":
        cut = f"FSDP over {session.world.data}" if parts.fsdp else f"{session.world.data} whole copies"
        say(f"parallel   {cut}, tensor parallel over {session.world.tensor}, recomputed: {train.recompute}")
    say(f"start      {resumed or 'afresh'}")
    for line in stale:
        warn(f"checkpoints of another run are not used, and go when the first new one is written: {line}")
