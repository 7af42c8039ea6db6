"""How a question is laid out for a model: padded on its left to whole chunks, so that its neighbours serve the answer.

As in Wang et al. 2023 (left padding) and InstructRetro: the question ends with a chunk, whose neighbours are read from
its last token on, where the answer begins. All chunks of a long prompt see the same neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retro.qa.files import Example
from retro.qa.lookup import QuestionLookup
from retro.recorded import Dataset


@dataclass(frozen=True)
class Neighbours:
    """Retrieved or given passages of one example: tokens int64 [k, r] and mask bool [k, r] of real ones."""

    tokens: np.ndarray
    mask: np.ndarray

    def texts(self, dataset: Dataset) -> list[str]:
        """What each says, best first; holes left out."""
        pairs = zip(self.tokens, self.mask, strict=True)
        return [dataset.tokenizer.decode(tokens[mask]) for tokens, mask in pairs if mask.any()]


def neighbours_of(
    examples: list[Example], dataset: Dataset, lookup: QuestionLookup, retrieved: int, without_own: bool
) -> list[Neighbours]:
    """Each example's neighbours: its contexts where some are given, else what a search for its prompt finds.

    `retrieved`: chunks a neighbour brings. `without_own`: never of the page that a question was made from, so that in
    training it is as for held-out questions, whose pages are in no database.
    """
    searched = [i for i, example in enumerate(examples) if not example.contexts]
    found: dict[int, Neighbours] = {}
    if searched:
        asking = [examples[i] for i in searched]
        rows = lookup([question_of(each.prompt) for each in asking], asking if without_own else None)
        for i, tokens, mask in zip(searched, *dataset.store.retrieved(rows, retrieved), strict=True):
            found[i] = Neighbours(tokens, mask)
    for i, example in enumerate(examples):
        if example.contexts:
            found[i] = given(example.contexts, dataset, lookup.k, retrieved)
    return [found[i] for i in range(len(examples))]


def question_of(prompt: str) -> str:
    """What is searched for: the prompt without its frame."""
    return prompt.removeprefix("Question: ").removesuffix("\nAnswer:")


def given(contexts: tuple[str, ...], dataset: Dataset, k: int, retrieved: int) -> Neighbours:
    """Passages as neighbours: cut into chunks, each with what follows it, the first `k`."""
    m, pieces = dataset.chunk_length, []
    for tokens in dataset.tokenizer.encode_batch(list(contexts)):
        pieces += [tokens[start : start + retrieved * m] for start in range(0, len(tokens), m)]
    tokens = np.full((k, retrieved * m), dataset.tokenizer.pad_id, np.int64)
    mask = np.zeros(tokens.shape, bool)
    for i, piece in enumerate(pieces[:k]):
        tokens[i, : len(piece)], mask[i, : len(piece)] = piece, True
    return Neighbours(tokens, mask)


def padded(prompt: str, dataset: Dataset, room: int) -> np.ndarray:
    """A prompt's tokens int64, padded on the left to whole chunks; the end of one too long to leave `room` tokens."""
    m = dataset.chunk_length
    tokens = dataset.tokenizer.encode_batch([prompt])[0]
    most = max(m, (dataset.seq_length - room) // m * m)
    tokens = tokens[-most:]
    return np.concatenate([np.full(-len(tokens) % m, dataset.tokenizer.pad_id, np.int64), tokens])


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


def stack(seen: Sequence[Neighbours | None], chunks: int) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Neighbours and mask [b, l, k, r], the same for every chunk; None: hidden from that example."""
    real = next((each for each in seen if each is not None), None)
    if real is None:
        return None, None
    tokens = np.stack([real.tokens if each is None else each.tokens for each in seen])  # (b, k, r)
    mask = np.stack([np.zeros_like(real.mask) if each is None else each.mask for each in seen])  # (b, k, r)
    shape = (len(seen), chunks, *real.tokens.shape)
    repeated = [np.broadcast_to(x[:, None], shape).copy() for x in (tokens, mask)]
    return torch.from_numpy(repeated[0]), torch.from_numpy(repeated[1])
