"""Set up a training run: open, check and build everything, and find where it left off."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn

from retro import provenance
from retro.artifacts import sha256
from retro.errors import UserError
from retro.gemm import gemm_rate
from retro.model.build import build_model
from retro.model.count import flops_per_token
from retro.model.settings import ModelSettings
from retro.recorded import Dataset
from retro.refusals import explain
from retro.training import counter, fingerprint
from retro.training.batches import Batcher, Source
from retro.training.blend import describe as describe_blend
from retro.training.blend import open_samples
from retro.training.checkpoints import Checkpoints
from retro.training.distribution import World
from retro.training.initial import start_from
from retro.training.metrics import Metrics
from retro.training.optimizer import build_optimizer
from retro.training.parallel import parallelize
from retro.training.say import say, warn
from retro.training.session import Session
from retro.training.settings import SampleSettings, TrainSettings
from retro.training.validation import Validation


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
        key, kind = ("model", ModelSettings) if error.title == "ModelSettings" else ("train", TrainSettings)
        raise UserError(explain(error, kind, "--run", (key,))) from None


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
        "seq_length": dataset.seq_length,
        "chunk_length": dataset.chunk_length,
        "retrieved_length": train.retrieved_chunks * dataset.chunk_length,
    }
    with torch.device(world.device):
        model = build_model(
            model_settings,
            architecture=run["architecture"],
            vocab_size=dataset.vocab_size,
            seed=run["seed"],
            **shape,
        )
    initial = start_from(model, run, dataset)
    model.train()
    parts = parallelize(model, world, train.parallel, train.recompute, train.precision)

    def batcher(split: str, ids: Source) -> Batcher:
        return Batcher(
            dataset,
            split,
            neighbours_used=train.neighbours_used,
            retrieved_chunks=train.retrieved_chunks,
            ids=ids,
        )

    modes: dict[str, Source] = {"on": "stored", "off": "none"} if retrieves else {"none": "none"}
    batch_size = train.micro_batch_size or fixed.global_batch_size
    validation = Validation.of(
        dataset,
        {name: batcher("valid", ids) for name, ids in modes.items()},
        fixed.eval_iterations * fixed.global_batch_size,
        batch_size,
    )
    # Of both seeds: twins (one run seed) read the same samples in the same order, other seeds another order.
    data_seed = counter.derive(dataset.facts["seed"], counter.DATA, run["seed"])
    facts = fingerprint.facts(
        sha256(config),
        run,
        provenance.digest("retro.training.train"),
        {"torch": torch.__version__},
        world.kind,
        initial,
    )
    session = Session(
        run=run,
        model_settings=model_settings,
        train=train,
        fixed=fixed,
        dataset=dataset,
        world=world,
        model=model,
        parts=parts,
        forward=cast(nn.Module, torch.compile(model)) if train.compile else model,
        optimizer=build_optimizer(parts, train),
        samples=open_samples(dataset, data_seed),
        batcher=batcher("train", "stored" if retrieves else "none"),
        validation=validation,
        checkpoints=Checkpoints(checkpoints, facts),
        flops_per_token=flops_per_token(
            model_settings,
            architecture=run["architecture"],
            vocab_size=dataset.vocab_size,
            neighbours=train.neighbours_used if retrieves else 0,
            **shape,
        ),
        peak=gemm_rate(world.device, train.precision),
    )
    stale = session.checkpoints.stale() if world.first else []
    resumed = world.first_alone(session.resume)  # it sets broken checkpoints aside
    if world.first:
        session.checkpoints.open()
        session.metrics = Metrics(session.checkpoints.folder / "metrics.jsonl", board, session.step)
        describe(session, checked, resumed, stale)
    return session


def describe(session: Session, checked: int, resumed: str | None, stale: list[str]) -> None:
    """Say what is about to be done."""
    fixed, train, dataset = session.fixed, session.train, session.dataset
    parameters = session.parts.count
    chunks = session.samples.count
    epochs = fixed.train_samples * session.seq_chunks / chunks
    say(f"run        {session.run['name']}: {session.run['architecture']}, {parameters:,} parameters")
    size = f"{chunks:,} chunks of {dataset.chunk_length}"
    say(f"dataset    {dataset.path}: {size}, {checked / 1e6:,.1f} MB checked")
    say(
        f"samples    {fixed.train_samples:,} of {dataset.seq_length} tokens ({epochs:.2f} epochs), "
        f"{fixed.global_batch_size} a step, {session.steps:,} steps"
    )
    for line in describe_blend(session.samples, fixed.train_samples):
        say(line)
    if session.batcher.source != "none":
        hidden = f", hidden: {train.neighbour_dropout:.0%} of chunks, {train.sample_dropout:.0%} of samples"
        say(f"neighbours {train.neighbours_used} of {train.retrieved_chunks} chunks each{hidden}")
    else:
        say("neighbours none")
    say(f"validation {len(session.validation.positions)} samples every {fixed.eval_interval} steps")
    say(
        f"machine    {session.world.place}, {train.threads} threads, {train.precision}, "
        f"matrix product {session.peak / 1e9:,.0f} GFLOP/s"
    )
    if session.parts.spread or session.train.recompute != "none":
        cut = f"FSDP over {session.world.data}" if session.parts.fsdp else f"{session.world.data} whole copies"
        say(f"parallel   {cut}, tensor parallel over {session.world.tensor}, recomputed: {train.recompute}")
    say(f"start      {resumed or 'afresh'}")
    for line in stale:
        warn(f"checkpoints of another run are not used, and go when the first new one is written: {line}")
