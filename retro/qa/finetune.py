"""Fine-tune a trained model to answer: loss on the answer's tokens only, neighbours found for the question or given.

As InstructRetro (Wang et al. 2023), by one process. Only examples of the dataset's training split are used: an example
is in the split of its group, so a country held out from pretraining stays held out. Resumes exactly.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from retro import errors, provenance
from retro.artifacts import Manifest, read_manifest, sha256, write_manifest
from retro.device import best_device
from retro.errors import UserError
from retro.lock import locked
from retro.qa.files import Example, answerable, read
from retro.qa.lookup import QuestionLookup
from retro.qa.prompts import Neighbours, answer_tokens, neighbours_of, padded, stack
from retro.qa.settings import QuestionSettings
from retro.recorded import Dataset
from retro.training import counter, fingerprint
from retro.training.checkpoints import Checkpoints, pack, unpack
from retro.training.load import load_model
from retro.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from retro.training.say import say
from retro.training.settings import TrainSettings
from retro.training.stop import Stop, Stopped
from retro.training.weights import assign, read_tensors, weights, write_tensors

STAGE = "retro.qa.finetune"
LOG_INTERVAL = 25


@dataclass(frozen=True)
class Laid:
    """An example as a model reads it: prompt int64, whole chunks; answer int64 with the end of document; neighbours."""

    prompt: np.ndarray
    answer: np.ndarray
    seen: Neighbours | None


def lay_out(
    examples: list[Example], dataset: Dataset, settings: QuestionSettings, retrieved: int, retrieves: bool, threads: int
) -> list[Laid]:
    """Tokens and neighbours of examples. `retrieved`: chunks a neighbour brings; `retrieves`: whether there are any."""
    seen: Sequence[Neighbours | None] = [None] * len(examples)
    if retrieves:
        lookup = QuestionLookup(dataset, settings.neighbours_used, settings.candidates, settings.title_weight, threads)
        seen = neighbours_of(examples, dataset, lookup, retrieved, without_own=True)
    most = settings.answer_tokens
    return [
        Laid(padded(each.prompt, dataset, most), answer_tokens(each.answers[0], found, dataset, most), found)
        for each, found in zip(examples, seen, strict=True)
    ]


def collate(laid: list[Laid], hidden: np.ndarray, dataset: Dataset) -> tuple[torch.Tensor | None, ...]:
    """Tokens and targets int64 [b, n], neighbours int64 and mask bool [b, l, k, r]; `hidden` bool [b]: without these.

    The target is −1, which costs nothing, wherever the next token is not the answer's.
    """
    pad, m = dataset.tokenizer.pad_id, dataset.chunk_length
    start, most = max(len(each.prompt) for each in laid), max(len(each.answer) for each in laid)
    tokens = np.full((len(laid), start + most - 1), pad, np.int64)
    targets = np.full(tokens.shape, -1, np.int64)
    for row, each in enumerate(laid):
        count = len(each.answer)
        tokens[row, start - len(each.prompt) : start] = each.prompt
        tokens[row, start : start + count - 1] = each.answer[:-1]
        targets[row, start - 1 : start - 1 + count] = each.answer
    seen = [None if hide else each.seen for each, hide in zip(laid, hidden, strict=True)]
    return torch.from_numpy(tokens), torch.from_numpy(targets), *stack(seen, tokens.shape[1] // m)


def batch_of(
    step: int, laid: list[Laid], settings: QuestionSettings, seed: int, dataset: Dataset
) -> tuple[torch.Tensor | None, ...]:
    """The batch of a step, a function of seed and step alone: each epoch reads every example once, in its own order."""
    numbers = range(step * settings.batch_size, min((step + 1) * settings.batch_size, settings.examples))
    orders = {
        epoch: np.random.default_rng([seed, epoch]).permutation(len(laid))
        for epoch in {number // len(laid) for number in numbers}
    }
    chosen = [laid[orders[number // len(laid)][number % len(laid)]] for number in numbers]
    hidden = np.random.default_rng([seed, step, 1]).random(len(chosen)) < settings.neighbour_dropout
    return collate(chosen, hidden, dataset)


class Session:
    """A model being fine-tuned: what a checkpoint holds, and how a step is made."""

    def __init__(self, model: nn.Module, settings: QuestionSettings, checkpoints: Checkpoints):
        self.model, self.settings, self.checkpoints = model.train(), settings, checkpoints
        self.train = TrainSettings(
            lr=settings.lr,
            min_lr=settings.lr / 10,
            warmup_samples=settings.warmup_samples,
            weight_decay=settings.weight_decay,
        )
        self.optimizer = build_optimizer(model, self.train)
        self.owners = dict(model.named_parameters())
        self.step, self.steps = 0, math.ceil(settings.examples / settings.batch_size)
        self.loss = float("nan")

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        self.checkpoints.open()
        if (found := self.checkpoints.newest()) is None:
            return
        state, (path,) = found
        tensors, _ = read_tensors(path)
        assign(self.model, unpack(tensors, self.optimizer, self.owners), str(path))
        self.step, self.loss = state["step"], state["loss"]
        say(f"resumed after step {self.step} of {self.steps} from {path}")

    def save(self) -> None:
        """Write a checkpoint of the last whole step."""
        if self.step:
            state = {"step": self.step, "loss": self.loss}
            self.checkpoints.write(state, pack(weights(self.model), self.optimizer, self.owners))

    def advance(self, batch: tuple[torch.Tensor | None, ...]) -> None:
        """One optimizer step: the mean loss of the answers' tokens. Raises UserError where it is not finite."""
        device = next(self.model.parameters()).device
        tokens, targets, neighbours, mask = (None if x is None else x.to(device) for x in batch)
        assert targets is not None
        samples = min((self.step + 1) * self.settings.batch_size, self.settings.examples)
        set_learning_rate(self.optimizer, learning_rate(self.train, samples, self.settings.examples))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(tokens, neighbours, mask, targets).sum() / (targets >= 0).sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip)
        found = float(loss.detach())
        if not (math.isfinite(found) and torch.isfinite(norm)):
            raise UserError(
                f"step {self.step + 1}: loss {found}, gradient norm {float(norm.detach())}, wanted finite numbers. "
                f"Lower qa.lr ({self.settings.lr}); nothing of this step was kept."
            )
        self.optimizer.step()
        self.step, self.loss = self.step + 1, found


def fit(session: Session, laid: list[Laid], seed: int, dataset: Dataset) -> None:
    """Train to the end; at SIGTERM or SIGINT write a checkpoint and exit with 128 + the signal's number."""
    begun, first = time.monotonic(), session.step
    with Stop.listening() as stop:
        try:
            while session.step < session.steps:
                stop.check()
                session.advance(batch_of(session.step, laid, session.settings, seed, dataset))
                if session.step % session.settings.checkpoint_interval == 0 or session.step == session.steps:
                    session.save()
                if session.step % LOG_INTERVAL == 0 or session.step == session.steps:
                    pace = (time.monotonic() - begun) / (session.step - first)
                    say(f"step {session.step}/{session.steps}  loss {session.loss:.3f}  {pace:.2f} s/step")
        except Stopped as stopped:
            session.save()
            say(f"stopped by {stopped} after step {session.step}; the same command goes on from there")
            raise SystemExit(stopped.status) from None


def examples_of(files: list[str], dataset: Dataset) -> list[Example]:
    """The examples of the training split that can be learnt: their page, if named, is part of the dataset."""
    found = [each for file in files for each in read(file, dataset) if each.split == "train"]
    found = answerable(found, dataset)
    if not found:
        raise UserError(
            f"{', '.join(files) or 'qa.instructions'}: no example of the training split, and of pages of the dataset. "
            f"Give qa.instructions files that have some."
        )
    return found


def name_of(run: str, name: str) -> str:
    """What the fine-tuned model of a run is called, and its folder. No run is called so: those end with their seed."""
    return f"{run}-{name}"


def finish(
    session: Session, base: Path, settings: dict[str, Any], examples: int, files: list[str], output: Path
) -> None:
    """model.safetensors and, last, model.json: a model as `retro.training.train` leaves it."""
    path = output.parent / "model.safetensors"
    write_tensors(path, weights(session.model))
    before = read_manifest(base, "model")
    write_manifest(
        output,
        kind="model",
        stage=STAGE,
        files=[path],
        inputs=[*before_inputs(before), base, *files],
        settings={
            **settings,
            "name": name_of(settings["name"], session.settings.name),
            "qa": session.settings.finetune_facts(),
        },
        counts={**before.counts, "qa": {"steps": session.step, "examples": examples, "loss": session.loss}},
        seed=settings["seed"],
        threads=torch.get_num_threads(),
    )


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
    torch.set_num_threads(options.threads)
    dataset = Dataset.open(options.config)
    device = best_device()
    model, run = load_model(options.model, dataset, device)
    with locked(options.checkpoints):
        files = settings.instructions
        examples = examples_of(files, dataset)
        facts = fingerprint.facts(
            sha256(options.config),
            {**run, "qa": settings.finetune_facts(), "files": [sha256(file) for file in files]},
            provenance.digest(STAGE),
            {"torch": torch.__version__},
            f"{device.type}, {options.threads} threads",
            sha256(options.model),
        )
        seed = counter.derive(dataset.facts["seed"], counter.DATA, run["seed"])
        torch.manual_seed(seed % 2**63)
        session = Session(model, settings, Checkpoints(options.checkpoints, facts))
        session.resume()
        if session.step < session.steps:
            retrieves = run["architecture"] == "retro"
            retrieved = run["train"]["retrieved_chunks"]
            laid = lay_out(examples, dataset, settings, retrieved, retrieves, options.threads)
            say(f"{run['name']}: {len(laid):,} examples, {session.steps} steps of {settings.batch_size}")
            fit(session, laid, seed, dataset)
        finish(session, options.model, run, len(examples), files, options.output)
    say(f"{options.output}: {session.steps} steps, last loss {session.loss:.3f}")


if __name__ == "__main__":
    errors.run(main)
