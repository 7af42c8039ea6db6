"""Fine-tune a trained model to answer: loss on the answer's tokens only, neighbours found for the question or given.

After pretraining with retrieval, as InstructRetro (Wang et al. 2023), but through the encoder: docs/qa.md says what
differs. By one process, in the loop that trains. Only examples of the dataset's training split are used: an example is
in the split of its page, or group, so a country held out from pretraining stays held out.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from retro.base import hashing, provenance, stage
from retro.base.artifacts import Manifest, read_manifest, sha256
from retro.base.log import duration, say
from retro.base.names import CUTS, RECORDED
from retro.base.shards import locked
from retro.base.stage import UserError, whole
from retro.dataset.dataset import Dataset
from retro.model.count import flops_per_token
from retro.qa.questions import (
    Example,
    Neighbours,
    QuestionLookup,
    neighbours_of,
    padded,
    read,
    stack,
    tell_cut,
)
from retro.qa.settings import QuestionSettings
from retro.training.batches import Batch
from retro.training.checkpoints import Checkpoints, run_facts
from retro.training.course import shortened
from retro.training.distribution import World, own_size
from retro.training.loop import fit
from retro.training.session import Session
from retro.training.settings import ParallelSettings, TrainedRun, TrainSettings
from retro.training.train import begin, write_model
from retro.training.weights import load_model, trained_run


def examples_of(files: list[str], dataset: Dataset) -> list[Example]:
    """The examples of the training split that can be learnt: their page, if named, is part of the dataset."""
    found = [each for file in files for each in read(file, dataset) if each.split == "train"]
    if not found:
        raise UserError(
            f"{', '.join(files) or 'qa.instructions'}: no example of the training split, and of pages of the dataset. "
            f"Give qa.instructions files that have some."
        )
    return found


def answer_tokens(answer: str, seen: Neighbours | None, dataset: Dataset, most: int) -> np.ndarray:
    """An answer's tokens and the end of document, spelled as in a neighbour that holds it: with a space or without."""
    spellings = dataset.tokenizer.encode_batch([f" {answer}", answer])
    chosen = spellings[0]
    if seen is not None:
        text = [row[mask].tolist() for row, mask in zip(seen.tokens, seen.mask, strict=True)]
        chosen = next((s for s in spellings if any(_holds(row, s.tolist()) for row in text)), chosen)
    return np.append(chosen[: most - 1], dataset.tokenizer.eod_id).astype(np.int64)


def _holds(row: list[int], part: list[int]) -> bool:
    return any(row[i : i + len(part)] == part for i in range(len(row) - len(part) + 1))


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
    tell_cut([each.prompt for each in examples], [each.answers[0] for each in examples], dataset, most)
    return [
        Laid(padded(each.prompt, dataset, most), answer_tokens(each.answers[0], found, dataset, most), found)
        for each, found in zip(examples, seen, strict=True)
    ]


def collate(laid: list[Laid], hidden: np.ndarray, dataset: Dataset) -> Batch:
    """A batch of examples, padded to the longest; `hidden` bool [b]: without neighbours.

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
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), *stack(seen, tokens.shape[1] // m))


@dataclass(frozen=True)
class Questions:
    """Examples to learn from, as `retro.training.course.Course` has them. Each epoch reads every one once, shuffled."""

    examples: list[Example]
    laid: list[Laid]
    dataset: Dataset
    settings: QuestionSettings
    seed: int
    section: str = "qa"
    validation: None = None

    @property
    def samples(self) -> int:
        return self.settings.examples

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    def chosen(self, numbers: np.ndarray) -> list[int]:
        """Which example each sample is."""
        epochs, places = np.divmod(numbers, len(self.laid))
        orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self.laid)) for epoch in set(epochs)}
        return [int(orders[epoch][place]) for epoch, place in zip(epochs, places, strict=True)]

    def hidden(self, numbers: np.ndarray) -> np.ndarray:
        """Which samples see no neighbours, bool [b]: drawn step by step."""
        steps, places = np.divmod(numbers, self.batch_size)
        drawn = {step: np.random.default_rng([self.seed, step, 1]).random(self.batch_size) for step in set(steps)}
        chances = np.array([drawn[step][place] for step, place in zip(steps, places, strict=True)])
        return chances < self.settings.neighbour_dropout

    def batch(self, numbers: np.ndarray) -> Batch:
        """The samples laid out; −1 is an example without targets."""
        some = np.maximum(numbers, 0)
        batch = collate([self.laid[i] for i in self.chosen(some)], self.hidden(some), self.dataset)
        batch.targets[torch.from_numpy(numbers < 0)] = -1
        return batch

    def tokens(self, numbers: np.ndarray) -> int:
        """Those of prompts, padded to whole chunks, and of answers but for their ends, which are only predicted."""
        return sum(len(self.laid[i].prompt) + len(self.laid[i].answer) - 1 for i in self.chosen(numbers))

    def named(self, numbers: np.ndarray) -> str:
        """The examples by their ids."""
        ids = [self.examples[i].id for i in self.chosen(numbers[numbers >= 0])]
        return f"examples {shortened(ids, 8)}"

    def described(self) -> list[str]:
        """How many examples, how often, and their neighbours."""
        epochs, settings = self.samples / len(self.laid), self.settings
        lines = [f"examples   {len(self.laid):,}, {self.samples:,} with repetition ({epochs:.2f} epochs)"]
        if all(each.seen is None for each in self.laid):
            return [*lines, "neighbours none"]
        hidden = f"hidden: {settings.neighbour_dropout:.0%} of examples"
        return [*lines, f"neighbours {settings.neighbours_used} an example, {hidden}"]


STAGE = "retro.qa.finetune"


def name_of(run: str, name: str) -> str:
    """What the fine-tuned model of a run is called, and its folder. No run is called so: those end with their seed."""
    return f"{run}-{name}"


def train_settings(run: TrainedRun, settings: QuestionSettings, threads: int) -> TrainSettings:
    """How a run is fine-tuned: as it was trained, but with the learning rate and the intervals of `qa`, by one process.

    Not compiled: batches are of many lengths.
    """
    changed = {
        "optimizer": "adamw",
        "curriculum": None,
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
    seed = hashing.derive(dataset.facts["seed"], hashing.DATA, run.seed)
    files = [sha256(file) for file in settings.instructions]
    facts = run_facts(
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
    """The recorded config, or what of it, that the model before was trained on."""
    recorded = {RECORDED.format(cut=cut) for cut in CUTS}
    return [manifest.folder / name for name in manifest.facts["inputs"] if Path(name).name in recorded]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="results/<dataset>/config.json")
    parser.add_argument("--model", required=True, type=Path, help="model.json to begin with")
    parser.add_argument("--settings", required=True, help="the qa section's finetune_facts(), as JSON")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder of checkpoints, kept between attempts")
    parser.add_argument("--output", required=True, type=Path, help="model.json to write")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads; part of what makes the bytes")
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
    stage.run(main)
