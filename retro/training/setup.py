"""Set up a training run: open, check and build everything, and find where it left off."""

from pathlib import Path
from typing import Any

import torch

from retro import provenance
from retro.artifacts import sha256
from retro.errors import UserError
from retro.model.build import build_model
from retro.model.count import flops_per_token
from retro.recorded import Dataset
from retro.training import fingerprint
from retro.training.checkpoints import Checkpoints
from retro.training.distribution import World
from retro.training.initial import start_from
from retro.training.pretraining import Pretraining
from retro.training.run import Run
from retro.training.session import Session
from retro.training.settings import SampleSettings
from retro.training.start import begin


def read_artifacts(dataset: Dataset, retrieves: bool) -> list[str]:
    """Manifest names of the artifacts that training reads."""
    names = ["tokenizer/manifest.json", "database/manifest.json"]
    names += [f"{room}/{source}/manifest.json" for room in ("tokens", "chunks") for source in dataset.sources]
    if retrieves:
        names += ["neighbours/train/manifest.json", "neighbours/valid/manifest.json"]
    return names


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


def setup(config: Path, run_text: str, checkpoints: Path, board: Path) -> Session:
    """Open, check and build everything, and resume. Raises UserError for whatever does not fit."""
    run = Run.parse(run_text, "--run")
    dataset, train = Dataset.open(config), run.train
    fixed = SampleSettings(**dataset.facts["samples"]).of(train.samples_share)
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
    facts = fingerprint.facts(
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
    begin(session, board, f"{size}, {checked / 1e6:,.1f} MB checked")
    return session
