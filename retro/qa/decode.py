"""Greedy answers of many questions at once."""

from collections.abc import Sequence

import numpy as np
import torch

from retro.model.cache import DecodingCache
from retro.model.language_model import LanguageModel
from retro.qa.prompts import Neighbours, padded, stack
from retro.recorded import Dataset


@torch.inference_mode()
def answers(
    model: LanguageModel,
    dataset: Dataset,
    prompts: list[str],
    seen: Sequence[Neighbours | None],
    most: int,
    batch_size: int,
) -> list[str]:
    """The likeliest continuation of each prompt, up to the end of document or `most` tokens, stripped.

    Prompts are laid out as in fine-tuning; `seen` are their neighbours, None: retrieval off.
    """
    laid = [padded(prompt, dataset, most) for prompt in prompts]
    found: list[str] = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(laid[i]), seen[i] is None, i))
    start = 0
    while start < len(order):
        kind = (len(laid[order[start]]), seen[order[start]] is None)
        batch = [i for i in order[start : start + batch_size] if (len(laid[i]), seen[i] is None) == kind]
        for i, tokens in zip(batch, _greedy(model, dataset, batch, laid, seen, most), strict=True):
            found[i] = dataset.tokenizer.decode(tokens).strip()
        start += len(batch)
    return found


def _greedy(
    model: LanguageModel,
    dataset: Dataset,
    batch: list[int],
    laid: list[np.ndarray],
    seen: Sequence[Neighbours | None],
    most: int,
) -> list[np.ndarray]:
    """Answers of a batch of equally long prompts, keys and values kept, neighbours encoded once a chunk."""
    device, eod = next(model.parameters()).device, dataset.tokenizer.eod_id
    given = torch.from_numpy(np.stack([laid[i] for i in batch])).to(device)  # (b, n)
    cache, near = DecodingCache(model, given.shape[1] + most), [seen[i] for i in batch]
    ended, rows = torch.zeros(len(batch), dtype=torch.bool, device=device), []
    for _ in range(most):
        shown = (None if x is None else x.to(device) for x in stack(near, cache.completes(given.shape[1])))
        logits = cache.extend(given, *shown, last=True)[:, -1]  # (b, V)
        chosen = logits.float().argmax(-1).masked_fill(ended, eod)  # (b,)
        rows.append(chosen)
        ended |= chosen == eod
        if ended.all():
            break
        given = chosen[:, None]  # (b, 1)
    found = torch.stack(rows, dim=1).cpu().numpy()  # (b, answer)
    return [row[: int(np.argmax(row == eod)) if (row == eod).any() else len(row)] for row in found]
