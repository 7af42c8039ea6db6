"""The end of a training, whatever it read: its files, the manifest last."""

from pathlib import Path
from typing import Any

import torch

from retro.artifacts import replacing, write_manifest
from retro.training.run import TrainedRun
from retro.training.session import Session
from retro.training.weights import write_tensors


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
