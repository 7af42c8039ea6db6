"""Continue the beginnings of held-out documents, with live retrieval and without, beside how they really go
on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro.base import stage
from retro.base.artifacts import write_json
from retro.base.log import bar
from retro.base.machine import best_device
from retro.base.names import HELD_OUT
from retro.base.stage import UserError, given
from retro.dataset.dataset import Dataset
from retro.evaluation.bits_per_byte import group_documents, section
from retro.evaluation.conditions import OFF, ON
from retro.evaluation.settings import GenerationSettings
from retro.generation.decoding import Decoder, Prompt, Sampler
from retro.generation.live import LiveLookup, excluded_documents, seen_until
from retro.training.weights import load_model

STAGE = "retro.generation.sample"


def choose(dataset: Dataset, split: str, count: int, tokens: int, seed: int) -> list[int]:
    """Global rows of the first chunks of `count` documents of at least `tokens` tokens, sections in turn.

    A seeded choice, fewer if there are not so many. Documents without a section count as one section.
    """
    rows = dataset.rows(split)
    documents = group_documents(rows, dataset.store.source(rows), dataset.store.chunks(rows))
    long = np.flatnonzero(documents.tokens >= tokens)
    queues: dict[tuple, list[int]] = {}
    for number in np.random.default_rng(seed).permutation(long):
        row = int(documents.row[number])
        name = section(dataset.store.document(row).get("title") or "")
        queues.setdefault((int(documents.source[number]), name), []).append(row)
    chosen: list[int] = []
    while queues and len(chosen) < count:
        for key in list(queues)[: count - len(chosen)]:
            chosen.append(queues[key].pop(0))
            if not queues[key]:
                del queues[key]
    return chosen


def document_tokens(dataset: Dataset, row: int, count: int) -> np.ndarray:
    """The first `count` tokens of the document whose first chunk is at a global row, the EOD left out."""
    source = int(dataset.store.source(np.array(row)))
    start = int(dataset.store.chunks(np.array([row]))["start"][0])
    number = int(dataset.store.chunks(np.array([row]))["document"][0])
    end = int(dataset.store.stores[source].offsets[number + 1]) - 1
    return np.asarray(dataset.store.stores[source].tokens[start : min(start + count, end)], np.int64)


TOGETHER = 16  # texts written side by side


def write(
    decoder: Decoder, dataset: Dataset, prompts: list[np.ndarray], settings: GenerationSettings, seed: int, shown: Any
) -> list[dict[str, Any]]:
    """What a decoder writes after each prompt: text, tokens and, with retrieval, what it looked up."""
    own = [Sampler(settings.temperature, settings.top_p, seed + number) for number in range(len(prompts))]
    given = [Prompt(prompt, settings.new_tokens, sampler) for prompt, sampler in zip(prompts, own, strict=True)]
    tokens, lookups = [prompt.tolist() for prompt in prompts], [list[dict[str, Any]]() for _ in prompts]
    for text, step in decoder.write_all(given, TOGETHER):
        for number, found in step.looked_up:
            assert isinstance(decoder.lookup, LiveLookup)
            chunk = tokens[text][number * dataset.chunk_length : (number + 1) * dataset.chunk_length]
            query = dataset.tokenizer.decode(chunk)
            lookups[text].append({"chunk": number, "text": query, "neighbours": decoder.lookup.describe(found)})
        tokens[text].append(step.token)
        shown.update(1)
    results = []
    for prompt, whole, looked_up in zip(prompts, tokens, lookups, strict=True):
        written = whole[len(prompt) :]
        results.append(
            {
                "text": dataset.tokenizer.decode(written),
                "tokens": len(written),
                "ended": written[-1:] == [dataset.tokenizer.eod_id],
            }
            | ({"lookups": looked_up} if decoder.lookup else {})
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--model", required=True, type=Path, help="model.json of a RETRO run")
    parser.add_argument("--settings", required=True, type=given, help="the generate section, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="sample.json to write")
    options = parser.parse_args()
    settings, dataset = GenerationSettings(**options.settings), Dataset.open(options.config)
    model, run = load_model(options.model, dataset, best_device())
    if not run.retro:
        raise UserError(f"{options.model}: run {run.name!r} is a gpt, which retrieves nothing. Take a retro run.")
    train, seed = run.train, dataset.facts["seed"]
    torch.set_num_threads(train.threads)
    split = next((name for name in reversed(HELD_OUT) if len(dataset.rows(name))), None)
    least = settings.prompt_tokens + min(settings.new_tokens, dataset.chunk_length)
    rows = choose(dataset, split, settings.prompts, least, seed) if split else []
    shape = {
        "seq_length": dataset.seq_length,
        "eod_id": dataset.tokenizer.eod_id,
        "retrieved_chunks": train.retrieved_chunks,
    }
    excluded = [excluded_documents(dataset, row) for row in rows]
    tokens = [document_tokens(dataset, row, settings.prompt_tokens + settings.new_tokens) for row in rows]
    prompts = [each[: settings.prompt_tokens] for each in tokens]
    samples: list[dict[str, Any]] = [
        {
            "document": dataset.store.document(row),
            "prompt": dataset.tokenizer.decode(prompt),
            "truth": dataset.tokenizer.decode(each[settings.prompt_tokens :]),
        }
        for row, prompt, each in zip(rows, prompts, tokens, strict=True)
    ]
    with bar(2 * len(rows) * settings.new_tokens, f"sample {run.name}", "tok") as shown:
        until = [seen_until(dataset, row) for row in rows]
        lookup = LiveLookup(dataset, train.neighbours_used, train.threads, excluded, until)
        for name, used in ((ON, lookup), (OFF, None)):
            decoder = Decoder(model, dataset.store, lookup=used, **shape)
            for sample, made in zip(samples, write(decoder, dataset, prompts, settings, seed, shown), strict=True):
                sample[name] = made
    facts: dict[str, Any] = {"run": run.name, "split": split, "settings": settings.facts(), "samples": samples}
    facts["neighbours_used"], facts["chunk_length"] = train.neighbours_used, dataset.chunk_length
    write_json(options.output, facts)
    print(f"{len(samples)} documents continued → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
