"""Train a model on a recorded dataset: weights, manifest, metrics. Resumes exactly where it was cut off.

`setup` opens, checks and builds everything. `begin` finds where training left off, and `write_model` ends it, whatever
was read.
"""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from retro.base import provenance, stage
from retro.base.artifacts import replacing, sha256, write_manifest
from retro.base.log import duration, say, warn
from retro.base.shards import locked
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.dataset.settings import RecordedSamples
from retro.model.build import build_model
from retro.model.count import flops_per_token
from retro.training import foreign
from retro.training.checkpoints import Checkpoints, run_facts
from retro.training.course import Pretraining
from retro.training.distribution import World, own_rank
from retro.training.initial import start_from
from retro.training.loop import fit
from retro.training.metrics import Metrics
from retro.training.optimizer import learning_rate
from retro.training.samples import doubt
from retro.training.session import Session
from retro.training.settings import Run, TrainedRun, refuse_absent
from retro.training.trackers import NOTE, Trackers
from retro.training.weights import tokenizer_files, write_tensors


def begin(session: Session, board: Path, checked: str = "", trackers: Sequence[str] = ("tensorboard",)) -> None:
    """Go on from the newest checkpoint if there is one, and open the metrics; `checked`: what of the dataset was.

    board: the folder of TensorBoard.
    """
    world = session.world
    stale = session.checkpoints.stale() if world.first else []
    resumed = world.first_alone(session.resume)  # it sets broken checkpoints aside
    if world.first:
        session.checkpoints.open()
        folder, run = session.checkpoints.folder, session.run
        opened = Trackers(
            trackers, board, folder / NOTE, session.step, session.dataset.path.parent.name, run.name, run.facts()
        )
        session.metrics = Metrics(folder / "metrics.jsonl", opened, session.step)
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
    if train.warmup_samples > session.course.samples > 0:
        section, samples = session.course.section, session.course.samples
        ends = learning_rate(train, samples, samples)
        warn(
            f"{section}.warmup_samples is {train.warmup_samples:,}, and there are {samples:,} samples: the learning "
            f"rate ends at {ends:.3g} and never reaches {section}.lr {train.lr:.3g}. Shorten the one, or train on more."
        )
    say(f"start      {resumed or 'afresh'}")
    for line in stale:
        warn(f"checkpoints of another run are not used, and go when the first new one is written: {line}")


def write_model(
    session: Session,
    weights: dict[str, torch.Tensor],
    output: Path,
    *,
    stage: str,
    inputs: list[Path],
    run: TrainedRun,
    counts: dict[str, Any],
) -> None:
    """model.safetensors, metrics.jsonl and `output`, the model.json of `run`. For the first process."""
    folder = output.parent
    write_tensors(folder / "model.safetensors", weights)
    metrics = session.metrics
    assert metrics is not None  # the first process
    metrics.sync()
    with replacing(folder / "metrics.jsonl") as temporary:
        temporary.write_bytes(metrics.path.read_bytes())
    with metrics.trackers.unseen():
        write_manifest(
            output,
            kind="model",
            stage=stage,
            files=[folder / "model.safetensors"],  # metrics.jsonl holds times, which differ from run to run
            inputs=inputs,
            settings=run.facts(),
            counts=counts,
            seed=run.seed,
            threads=session.train.threads,
        )


def read_artifacts(dataset: Dataset, retrieves: bool) -> list[str]:
    """Manifest names of the artifacts that training reads."""
    names = ["tokenizer", *(["database"] if dataset.has_database else [])]
    names += [f"{room}/{source}" for room in ("tokens", "chunks") for source in dataset.sources]
    names += ["neighbours/train", "neighbours/valid"] if retrieves else []
    return [f"{name}/manifest.json" for name in names]


def check_artifacts(dataset: Dataset, names: list[str]) -> int:
    """Compare every byte with what was recorded and return how many bytes that were."""
    total = 0
    for name in names:
        if name not in dataset.facts["manifests"]:
            raise UserError(f"{dataset.path}: records no {name}. Delete it and run snakemake again.")
        manifest = dataset.manifest(name)
        manifest.check()
        total += sum(file["bytes"] for file in manifest.facts["files"].values())
    return total


def suited(run: Run, fixed: RecordedSamples) -> tuple[Run, list[str]]:
    """The run with a warm-up and checkpoints that suit a training as long as the corpus made it, and what changed."""
    given = {"warmup_samples": fixed.part, "checkpoint_interval": fixed.interval}
    less = {key: suits(getattr(run.train, key)) for key, suits in given.items()}
    less = {key: value for key, value in less.items() if value != getattr(run.train, key)}
    told = [f"{key} {getattr(run.train, key)} becomes {value}, for so short a training" for key, value in less.items()]
    return run.model_copy(update={"train": run.train.model_copy(update=less)}), told


def setup(
    config: Path, run_text: str, checkpoints: Path, board: Path, trackers: Sequence[str] = ("tensorboard",)
) -> Session:
    """Open, check and build everything, and resume. Raises UserError for whatever does not fit."""
    run = Run.parse(run_text, "--run")
    dataset = Dataset.open(config)
    fixed = RecordedSamples(**dataset.facts["samples"]).of(run.train.samples_share)
    run, shorter = suited(run, fixed)
    train = run.train
    world = World.start(train.threads, train.parallel.tensor)
    checked = check_artifacts(dataset, read_artifacts(dataset, run.retrieves)) if world.first else 0
    world.barrier()

    shape: dict[str, Any] = {
        "architecture": run.architecture,
        "vocab_size": dataset.vocab_size,
        "seq_length": dataset.seq_length,
        "chunk_length": dataset.chunk_length,
        "retrieved_length": train.retrieved_chunks * dataset.chunk_length,
    }
    with torch.device(world.device):
        model = build_model(run.model, seed=run.seed, **shape)
    initial = start_from(model, run, dataset)
    facts = run_facts(
        sha256(config),
        run.facts(),
        provenance.digest("retro.training.train"),
        {"torch": torch.__version__},
        world.kind,
        initial,
    )
    neighbours = train.neighbours_used if run.retrieves else 0
    course = Pretraining.open(dataset, run, fixed)
    session = Session.of(
        run,
        train,
        course,
        dataset,
        world,
        model,
        Checkpoints(checkpoints, facts),
        flops_per_token(run.model, neighbours=neighbours, **shape),
    )
    size = f"{course.stream.count:,} chunks of {dataset.chunk_length}"
    begin(session, board, f"{size}, {checked / 1e6:,.1f} MB checked", trackers)
    for line in shorter if world.first else ():
        say(line)
    if world.first and (doubtful := doubt(course.reached)):
        warn(f"{run.name} {doubtful}")
    return session


STAGE = "retro.training.train"


def finish(session: Session, weights: dict[str, torch.Tensor], config: Path, output: Path) -> None:
    """Write the model, and say what was made."""
    run, dataset, course = session.run, session.dataset, session.course
    assert isinstance(course, Pretraining)  # what `setup` made
    samples = session.samples_after(session.step)
    recorded = {
        "chunk_length": dataset.chunk_length,
        "eod_id": dataset.facts["tokenizer"]["eod_id"],
        "global_batch_size": course.fixed.global_batch_size,
        "pad_id": dataset.facts["tokenizer"]["pad_id"],
        "retrieved_length": session.train.retrieved_chunks * dataset.chunk_length,
        "seq_length": dataset.seq_length,
        "tokenizer": tokenizer_files(dataset),
        "train_samples": course.fixed.train_samples,
        "vocab_size": dataset.vocab_size,
    }
    begun = [Path(run.start)] if run.start else []
    if run.start and foreign.is_foreign(run.start):
        begun = foreign.files(run.start)
    write_model(
        session,
        weights,
        output,
        stage=STAGE,
        inputs=[config, *begun],
        run=TrainedRun.of({**run.facts(), "recorded": recorded}, run.name),
        counts={
            "flops_per_token": session.flops_per_token,
            "losses": session.metrics.last() if session.metrics else {},
            "parameters": session.parts.count,
            "samples": samples,
            "steps": session.step,
            "tokens": session.tokens,
            **course.reached,
        },
    )
    say(f"{output}: {samples:,} samples in {duration(session.seconds)} of training")
    if doubtful := doubt(course.reached):
        warn(f"{run.name} {doubtful}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config; what of it a training reads")
    parser.add_argument("--run", required=True, help="the run: name, architecture, seed, model, train, as JSON")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder of checkpoints, kept between attempts")
    parser.add_argument("--output", required=True, type=Path, help="model.json to write")
    parser.add_argument(
        "--trackers", default="tensorboard", help="train.trackers, with commas; none: metrics.jsonl alone"
    )
    options = parser.parse_args()
    trackers = [name for name in options.trackers.split(",") if name != "none"]
    refuse_absent(trackers)
    with locked(options.checkpoints) if own_rank() == 0 else nullcontext():
        board = options.output.parent / "tensorboard"
        session = setup(options.config, options.run, options.checkpoints, board, trackers)
        try:
            fit(session)
            weights = session.weights()
            if session.world.first:
                finish(session, weights, options.config, options.output)
        finally:
            session.close()
    session.world.leave()


if __name__ == "__main__":
    stage.run(main)
