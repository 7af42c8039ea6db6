"""Set up a training run: data, model, optimizer, and where it left off."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from retro import provenance
from retro.artifacts import sha256
from retro.errors import UserError
from retro.model.build import build_model
from retro.model.count import flops_per_token
from retro.model.settings import ModelSettings
from retro.recorded import Dataset
from retro.training import counter, fingerprint
from retro.training.batches import Batch, Batcher, hidden_chunks
from retro.training.checkpoints import Checkpoints, pack, unpack, warn
from retro.training.distribution import World
from retro.training.gemm import gemm_rate
from retro.training.metrics import Metrics
from retro.training.optimizer import build_optimizer
from retro.training.samples import Samples, documents_of
from retro.training.settings import SampleSettings, TrainSettings
from retro.training.validation import Validation
from retro.training.weights import assign, weights


@dataclass
class Session:
    """All that a run needs; `step`, `seconds` and the weights are what changes."""

    run: dict[str, Any]
    model_settings: ModelSettings
    train: TrainSettings
    fixed: SampleSettings
    dataset: Dataset
    world: World
    model: nn.Module
    forward: nn.Module  # the model, compiled if the settings say so
    optimizer: torch.optim.AdamW
    samples: Samples
    batcher: Batcher
    validation: Validation
    checkpoints: Checkpoints
    flops_per_token: float
    peak: float  # FLOP a second of a plain matrix product
    metrics: Metrics | None = None  # only the first process writes
    step: int = 0
    seconds: float = 0.0

    @property
    def seq_chunks(self) -> int:
        return self.dataset.seq_length // self.dataset.chunk_length

    @property
    def steps(self) -> int:
        """Optimizer steps in all; the last may have fewer samples."""
        return -(-self.fixed.train_samples // self.fixed.global_batch_size)

    def samples_after(self, step: int) -> int:
        """Samples trained on once `step` steps are done."""
        return min(step * self.fixed.global_batch_size, self.fixed.train_samples)

    def numbers(self, step: int) -> np.ndarray:
        """The sample numbers of the step that follows `step` done ones."""
        return np.arange(self.samples_after(step), self.samples_after(step + 1))

    def batches(self) -> Iterator[tuple[np.ndarray, Batch]]:
        """For each step still to do: this process's sample numbers and their batch."""
        seed = self.run["seed"]
        for step in range(self.step, self.steps):
            mine = self.world.share(self.numbers(step))
            hidden = hidden_chunks(
                seed, mine, self.seq_chunks, self.train.neighbour_dropout, self.train.sample_dropout
            )
            yield mine, self.batcher.batch(self.samples.samples(mine), hidden)

    def names(self) -> dict[str, nn.Parameter]:
        """Parameters by name."""
        return dict(self.model.named_parameters())

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self.world.first:
            self.metrics.sync()
            names = {id(parameter): name for name, parameter in self.names().items()}
            state = {"step": self.step, "seconds": round(self.seconds, 3)}
            self.checkpoints.write(state, pack(weights(self.model), names, self.optimizer))

    def resume(self) -> str | None:
        """Go on from the newest checkpoint of the same fingerprint; say from where."""
        found = self.checkpoints.newest()
        if found is None:
            return None
        state, tensors = found
        assign(self.model, unpack(tensors, self.names(), self.optimizer), str(self.checkpoints.folder))
        self.step, self.seconds = state["step"], state["seconds"]
        return f"step {self.step} of {self.checkpoints.folder}"


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
    fixed = SampleSettings(**dataset.facts["samples"])
    world = World.start(train.threads)
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
    model.train()

    def batcher(split: str, ids: str) -> Batcher:
        return Batcher(
            dataset,
            split,
            neighbours_used=train.neighbours_used,
            retrieved_chunks=train.retrieved_chunks,
            ids=ids,
        )

    modes = {"on": "stored", "off": "none"} if retrieves else {"none": "none"}
    batch_size = train.micro_batch_size or fixed.global_batch_size
    validation = Validation.of(
        dataset,
        {name: batcher("valid", ids) for name, ids in modes.items()},
        fixed.eval_iterations * fixed.global_batch_size,
        batch_size,
    )
    # Both seeds: twins (one run seed) read the same samples in the same order, other seeds read another order.
    data_seed = counter.derive(dataset.facts["seed"], counter.DATA, run["seed"])
    facts = fingerprint.facts(
        sha256(config),
        run,
        provenance.digest("retro.training.train"),
        {"torch": torch.__version__},
        world.place,
    )
    session = Session(
        run=run,
        model_settings=model_settings,
        train=train,
        fixed=fixed,
        dataset=dataset,
        world=world,
        model=model,
        forward=torch.compile(model) if train.compile else model,
        optimizer=build_optimizer(model, train),
        samples=Samples(
            documents_of(dataset, "train"), dataset.seq_length // dataset.chunk_length, data_seed
        ),
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
    session.checkpoints.open()
    resumed = session.resume()
    if world.first:
        session.metrics = Metrics(session.checkpoints.folder / "metrics.jsonl", board, session.step)
        describe(session, checked, resumed, stale)
    return session


def say(text: str) -> None:
    """A line for the log."""
    print(text, file=sys.stderr, flush=True)


def describe(session: Session, checked: int, resumed: str | None, stale: list[str]) -> None:
    """Say what is about to be done."""
    fixed, train, dataset = session.fixed, session.train, session.dataset
    parameters = sum(parameter.numel() for parameter in session.model.parameters())
    chunks = session.samples.count
    epochs = fixed.train_samples * session.seq_chunks / chunks
    say(f"run        {session.run['name']}: {session.run['architecture']}, {parameters:,} parameters")
    say(
        f"dataset    {dataset.path}: {chunks:,} chunks of {dataset.chunk_length}; {checked / 1e6:,.1f} MB checked"
    )
    say(
        f"samples    {fixed.train_samples:,} of {dataset.seq_length} tokens ({epochs:.2f} epochs), "
        f"{fixed.global_batch_size} a step, {session.steps:,} steps"
    )
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
    say(f"start      {resumed or 'afresh'}")
    for line in stale:
        warn(f"checkpoints of another run are not used, and go when the first new one is written: {line}")
