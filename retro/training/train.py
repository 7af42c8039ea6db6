"""Train a model on a recorded dataset: weights, manifest, metrics. Resumes exactly where it was cut off."""

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch

from retro import errors
from retro.artifacts import replacing, write_manifest
from retro.durations import duration
from retro.lock import locked
from retro.training.blend import blend_facts
from retro.training.distribution import own_rank
from retro.training.initial import tokenizer_files
from retro.training.loop import fit
from retro.training.say import say
from retro.training.session import Session
from retro.training.setup import setup
from retro.training.weights import write_tensors

STAGE = "retro.training.train"


def finish(session: Session, weights: dict[str, torch.Tensor], config: Path, output: Path) -> None:
    """Write model.safetensors, metrics.jsonl and, last, the manifest."""
    folder, dataset, metrics = output.parent, session.dataset, session.metrics
    assert metrics is not None  # the first process
    write_tensors(folder / "model.safetensors", weights)
    metrics.sync()
    with replacing(folder / "metrics.jsonl") as temporary:
        temporary.write_bytes(metrics.path.read_bytes())
    samples = session.samples_after(session.step)
    recorded = {
        "chunk_length": dataset.chunk_length,
        "eod_id": dataset.facts["tokenizer"]["eod_id"],
        "global_batch_size": session.fixed.global_batch_size,
        "pad_id": dataset.facts["tokenizer"]["pad_id"],
        "retrieved_length": session.train.retrieved_chunks * dataset.chunk_length,
        "seq_length": dataset.seq_length,
        "tokenizer": tokenizer_files(dataset),
        "train_samples": session.fixed.train_samples,
        "vocab_size": dataset.vocab_size,
    }
    write_manifest(
        output,
        kind="model",
        stage=STAGE,
        files=[folder / "model.safetensors"],  # metrics.jsonl holds times, which differ from run to run
        inputs=[config, *([Path(session.run["from"])] if session.run.get("from") else [])],
        settings={**session.run, "recorded": recorded},
        counts={
            "flops_per_token": session.flops_per_token,
            "losses": metrics.last(),
            "parameters": session.parts.count,
            "samples": samples,
            "steps": session.step,
            "tokens": samples * dataset.seq_length,
            **blend_facts(session.samples, samples),
        },
        seed=session.run["seed"],
        threads=session.train.threads,
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
            if session.metrics:
                session.metrics.close()
            session.world.finish()
    session.world.leave()


if __name__ == "__main__":
    errors.run(main)
