"""Set up a training run: open, check and build everything, and find where it left off."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from retro import provenance
from retro.artifacts import sha256
from retro.errors import UserError
from retro.model.build import build_model
from retro.model.count import flops_per_token
from retro.model.settings import ModelSettings
from retro.recorded import Dataset
from retro.training import fingerprint
from retro.training.checkpoints import Checkpoints
from retro.training.distribution import World
from retro.training.initial import start_from
from retro.training.pretraining import Pretraining
from retro.training.session import Session
from retro.training.settings import SampleSettings, TrainSettings
from retro.training.start import begin


def read_run(text: str) -> tuple[dict[str, Any], ModelSettings, TrainSettings]:
    """The run's JSON, its model settings and its train settings; raises UserError for what is not one."""
    try:
        run = json.loads(text)
        if run["architecture"] not in ("gpt", "retro"):
            raise UserError(f"--run: architecture is {run['architecture']!r}, wanted gpt or retro.")
        return run, ModelSettings(**run["model"]), TrainSettings(**run["train"])
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"--run: not a run's JSON ({error}).") from None
    except KeyError as error:
        raise UserError(f"--run: lacks {error}; wanted name, architecture, seed, model and train.") from None
    except ValidationError as error:
        lines = [f"--run: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise UserError("\n".join(lines)) from None


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
    run, model_settings, train = read_run(run_text)
    dataset = Dataset.open(config)
    fixed = SampleSettings(**dataset.facts["samples"]).of(train.samples_share)
    world = World.start(train.threads, train.parallel.tensor)
    retrieves = run["architecture"] == "retro" and train.neighbours_used > 0
    checked = check_artifacts(dataset, read_artifacts(dataset, retrieves)) if world.first else 0
    world.barrier()

    shape = {
        "architecture": run["architecture"],
        "vocab_size": dataset.vocab_size,
        "seq_length": dataset.seq_length,
        "chunk_length": dataset.chunk_length,
        "retrieved_length": train.retrieved_chunks * dataset.chunk_length,
    }
    with torch.device(world.device):
        model = build_model(model_settings, seed=run["seed"], **shape)
    initial = start_from(model, run, dataset)
    facts = fingerprint.facts(
        sha256(config),
        run,
        provenance.digest("retro.training.train"),
        {"torch": torch.__version__},
        world.kind,
        initial,
    )
    neighbours = train.neighbours_used if retrieves else 0
    course = Pretraining.open(dataset, run, train, fixed, retrieves)
    session = Session.of(
        run,
        train,
        course,
        dataset,
        world,
        model,
        Checkpoints(checkpoints, facts),
        flops_per_token(model_settings, neighbours=neighbours, **shape),
    )
    size = f"{course.stream.count:,} chunks of {dataset.chunk_length}"
    begin(session, board, f"{size}, {checked / 1e6:,.1f} MB checked")
    return session
