"""The course of fine-tuning: questions or instructions, and their answers.

Only examples of the dataset's training split are used: an example is in the split of its group, so a country held out
from pretraining stays held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retro.errors import UserError
from retro.qa.files import Example, answerable, read
from retro.qa.lookup import QuestionLookup
from retro.qa.prompts import Neighbours, answer_tokens, neighbours_of, padded, stack
from retro.qa.settings import QuestionSettings
from retro.recorded import Dataset
from retro.training.batches import Batch
from retro.training.course import shortened


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
