"""Fine-tune a trained model to answer: loss on the answer's tokens only, neighbours found for the question or given.

As InstructRetro (Wang et al. 2023). It is the training of `retro.training.loop` with another course: `retro.qa.course`.
"""

import argparse
import json
from pathlib import Path

import torch

from retro import errors, provenance
from retro.artifacts import Manifest, read_manifest, sha256
from retro.durations import duration
from retro.errors import UserError
from retro.lock import locked
from retro.model.count import flops_per_token
from retro.qa.course import Questions, examples_of, lay_out
from retro.qa.settings import QuestionSettings
from retro.recorded import Dataset
from retro.training import counter, fingerprint
from retro.training.checkpoints import Checkpoints
from retro.training.distribution import World, own_size
from retro.training.finish import write_model
from retro.training.load import load_model, trained_run
from retro.training.loop import fit
from retro.training.run import TrainedRun
from retro.training.say import say
from retro.training.session import Session
from retro.training.settings import ParallelSettings, TrainSettings
from retro.training.start import begin

STAGE = "retro.qa.finetune"


def name_of(run: str, name: str) -> str:
    """What the fine-tuned model of a run is called, and its folder. No run is called so: those end with their seed."""
    return f"{run}-{name}"


def train_settings(run: TrainedRun, settings: QuestionSettings, threads: int) -> TrainSettings:
    """How a run is fine-tuned: as it was trained, but with the learning rate and the intervals of `qa`, by one process.

    Not compiled: batches are of many lengths.
    """
    changed = {
        "lr": settings.lr,
        "min_lr": settings.lr / 10,
        "warmup_samples": settings.warmup_samples,
        "schedule": "cosine",
        "weight_decay": settings.weight_decay,
        "checkpoint_interval": settings.checkpoint_interval,
        "parallel": ParallelSettings(),
        "compile": False,
        "threads": threads,
    }
    return run.train.model_copy(update=changed)


def setup(
    config: Path, base: Manifest, settings: QuestionSettings, threads: int, checkpoints: Path, board: Path
) -> Session:
    """Open the dataset and the model, lay the examples out, and resume. Raises UserError for whatever does not fit."""
    if own_size() > 1:
        raise UserError(f"{STAGE} is one process, found {own_size()}. Start it without torchrun.")
    dataset = Dataset.open(config)
    train = train_settings(trained_run(base), settings, threads)
    world = World.start(threads)
    model, run = load_model(base.path, dataset, world.device)
    examples = examples_of(settings.instructions, dataset)
    laid = lay_out(examples, dataset, settings, run.train.retrieved_chunks, run.retro, threads)
    seed = counter.derive(dataset.facts["seed"], counter.DATA, run.seed)
    files = [sha256(file) for file in settings.instructions]
    facts = fingerprint.facts(
        sha256(config),
        {**run.facts(), "train": train.facts(), "qa": settings.finetune_facts(), "files": files},
        provenance.digest(STAGE),
        {"torch": torch.__version__},
        world.kind,
        sha256(base.path),
    )
    flops = flops_per_token(
        run.model,
        architecture=run.architecture,
        neighbours=settings.neighbours_used if run.retro else 0,
        **run.recorded.lengths,
    )
    tuned = run.model_copy(update={"name": name_of(run.name, settings.name), "qa": settings.finetune_facts()})
    course = Questions(examples, laid, dataset, settings, seed)
    session = Session.of(tuned, train, course, dataset, world, model, Checkpoints(checkpoints, facts), flops)
    begin(session, board)
    return session


def finish(session: Session, base: Manifest, output: Path) -> None:
    """Write the model as `retro.training.train` does, and say what was made."""
    course, run, metrics = session.course, session.run, session.metrics
    assert isinstance(course, Questions) and isinstance(run, TrainedRun) and metrics is not None  # what `setup` made
    loss = metrics.last()["train"]
    tuned = {"steps": session.step, "examples": len(course.examples), "loss": loss}
    write_model(
        session,
        session.weights(),
        output,
        stage=STAGE,
        inputs=[*before_inputs(base), base.path, *map(Path, course.settings.instructions)],
        run=run,
        counts={**base.counts, "qa": tuned},
    )
    say(f"{output}: {session.step} steps in {duration(session.seconds)} of training, last loss {loss:.3f}")


def before_inputs(manifest: Manifest) -> list[Path]:
    """The recorded config that the model before was trained on."""
    return [manifest.folder / name for name in manifest.facts["inputs"] if name.endswith("config.json")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="results/<dataset>/config.json")
    parser.add_argument("--model", required=True, type=Path, help="model.json to begin with")
    parser.add_argument("--settings", required=True, help="the qa section's finetune_facts(), as JSON")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder of checkpoints, kept between attempts")
    parser.add_argument("--output", required=True, type=Path, help="model.json to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; part of what makes the bytes")
    options = parser.parse_args()
    settings = QuestionSettings(**json.loads(options.settings))
    base = read_manifest(options.model, "model")
    board = options.output.parent / "tensorboard"
    with locked(options.checkpoints):
        session = setup(options.config, base, settings, options.threads, options.checkpoints, board)
        try:
            fit(session)
            finish(session, base, options.output)
        finally:
            session.close()


if __name__ == "__main__":
    errors.run(main)
