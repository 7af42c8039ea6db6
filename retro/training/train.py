"""Train a model on a recorded dataset: weights, manifest, metrics. Resumes exactly where it was cut off."""

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch

from retro import errors
from retro.durations import duration
from retro.lock import locked
from retro.training.blend import blend_facts
from retro.training.distribution import own_rank
from retro.training.finish import write_model
from retro.training.initial import tokenizer_files
from retro.training.loop import fit
from retro.training.pretraining import Pretraining
from retro.training.run import TrainedRun
from retro.training.say import say
from retro.training.session import Session
from retro.training.setup import setup

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
    write_model(
        session,
        weights,
        output,
        stage=STAGE,
        inputs=[config, *([Path(run.start)] if run.start else [])],
        run=TrainedRun.of({**run.facts(), "recorded": recorded}, run.name),
        counts={
            "flops_per_token": session.flops_per_token,
            "losses": session.metrics.last() if session.metrics else {},
            "parameters": session.parts.count,
            "samples": samples,
            "steps": session.step,
            "tokens": session.tokens,
            **blend_facts(course.stream, samples),
        },
    )
    say(f"{output}: {samples:,} samples in {duration(session.seconds)} of training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="results/<dataset>/config.json")
    parser.add_argument("--run", required=True, help="the run: name, architecture, seed, model, train, as JSON")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder of checkpoints, kept between attempts")
    parser.add_argument("--output", required=True, type=Path, help="model.json to write")
    options = parser.parse_args()
    with locked(options.checkpoints) if own_rank() == 0 else nullcontext():
        session = setup(options.config, options.run, options.checkpoints, options.output.parent / "tensorboard")
        try:
            fit(session)
            weights = session.weights()
            if session.world.first:
                finish(session, weights, options.config, options.output)
        finally:
            session.close()
    session.world.leave()


if __name__ == "__main__":
    errors.run(main)
