"""What documents that a model was not trained on cost it, with the book it was trained with and with another.

python -m retro.generation.plant --run D/runs/retro-s1 --database OTHER/config.json --documents FILE

For documents added to a database after training: OTHER is a dataset whose sources hold them too. Retrieval is live, by
the documents' own chunks; the first chunk is read before retrieval can help and counts as none.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro.base import command
from retro.base.artifacts import write_json
from retro.base.stage import UserError, whole
from retro.dataset.named import recorded_config, run_folder
from retro.generation.decoding import Found, Query
from retro.generation.generate import Writer
from retro.generation.live import read_lines

BOOKS = ("off", "old", "new")


def nats_of(writer: Writer, tokens: np.ndarray, found: dict[int, Found]) -> np.ndarray:
    """Nats of each of `tokens` int64 [n] after the first, float64 [n − 1], from one pass over the first window."""
    store, m = writer.book.store, writer.dataset.chunk_length
    size = -(-len(tokens) // m) * m
    padded = np.pad(tokens, (0, size - len(tokens)), constant_values=store.pad_id)
    neighbours = mask = None
    if found:
        rows = np.full((1, size // m, len(next(iter(found.values())).rows)), -1, np.int64)
        for end, each in found.items():
            rows[0, end // m - 1] = each.rows
        kept = store.retrieved(rows, writer.run.train.retrieved_chunks)
        neighbours, mask = (torch.from_numpy(each) for each in kept)
    device = next(writer.model.parameters()).device
    read = torch.from_numpy(padded)[None].to(device)
    given = [None if each is None else each.to(device) for each in (neighbours, mask)]
    with torch.inference_mode():
        logits = writer.model(read, *given)[0, : len(tokens) - 1]
        losses = torch.nn.functional.cross_entropy(logits, read[0, 1 : len(tokens)], reduction="none")
    return losses.double().cpu().numpy()


def measure(writer: Writer, text: str, fact: str | None, retrieval: bool) -> dict:
    """Bits a byte of a document after its first chunk, bits of the `fact` in it, what was found."""
    m, tokenizer = writer.dataset.chunk_length, writer.dataset.tokenizer
    tokens = np.asarray(tokenizer.encode_batch([text])[0], np.int64)[: writer.dataset.seq_length]
    if len(tokens) <= m:
        raise UserError(f"{text[:40]!r}…: {len(tokens)} tokens; wanted more than a chunk, {m}.")
    found, shown = {}, []
    if retrieval and writer.lookup is not None:
        ends = range(m, len(tokens), m)
        found = dict(zip(ends, writer.lookup([Query(tokens[end - m : end]) for end in ends]), strict=True))
        shown = [each["document"]["id"] for one in found.values() for each in writer.lookup.describe(one)]
    bits = nats_of(writer, tokens, found)[m - 1 :] / math.log(2)
    result = {
        "bits_per_byte": float(bits.sum() / tokenizer.token_bytes[tokens[m:]].sum()),
        "found": shown,
    }
    if fact:
        inside = span(tokenizer.decode, tokens, fact)
        if inside is None or inside[0] < m:
            raise UserError(
                f"{text[:40]!r}…: the fact {fact!r} is not where it can be measured. Put it after the first {m} tokens."
            )
        result["fact_bits"] = float(bits[inside[0] - m : inside[1] - m].sum())
    return result


def span(decode: Callable[[np.ndarray], str], tokens: np.ndarray, fact: str) -> tuple[int, int] | None:
    """The first tokens, from .. to, that hold `fact`; None if none do."""
    text = decode(tokens)
    at = text.find(fact)
    if at < 0:
        return None
    sizes = [len(decode(tokens[:end])) for end in range(len(tokens) + 1)]
    low = max(i for i, size in enumerate(sizes) if size <= at)
    high = min(i for i, size in enumerate(sizes) if size >= at + len(fact))
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=run_folder, help="a RETRO run, by name or folder: retro-s1")
    parser.add_argument("--database", required=True, type=recorded_config, help="the dataset with the documents")
    parser.add_argument(
        "--documents", required=True, type=Path, help="JSON lines {text, and perhaps fact: words in it}"
    )
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads (1)")
    options = parser.parse_args()
    documents = [line if isinstance(line, dict) else {"text": line} for line in read_lines(options.documents, "text")]
    old = Writer(options.run, threads=options.threads)
    new = Writer(options.run, database=options.database, threads=options.threads)
    ways = {"off": (old, False), "old": (old, True), "new": (new, True)}
    if old.lookup is None:
        raise UserError(f"{options.run}: run {old.run.name!r} retrieves nothing. Take a retro run.")
    made: list[dict[str, Any]] = []
    for document in documents:
        text, fact = document["text"], document.get("fact")
        made.append({"text": text, "fact": fact})
        made[-1] |= {book: measure(writer, text, fact, on) for book, (writer, on) in ways.items()}
        print(f"{text.splitlines()[0][:70]}" + (f" — {fact}" if fact else ""))
        for book, name in zip(BOOKS, ("retrieval off", "book of training", "the other book"), strict=True):
            found = made[-1][book]
            bits = f", {found['fact_bits']:7.2f} bits for the fact" if fact else ""
            print(f"  {name:17s} {found['bits_per_byte']:.4f} bits per byte{bits}")
    if options.output:
        write_json(options.output, made)
        print(f"{len(made)} documents → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
