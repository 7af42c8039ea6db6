"""The neighbour explorer: one page that shows what each held-out chunk looked up and where that helped.

The neighbours of a chunk are read while the chunk that follows it is predicted. So the page shows a chunk,
what it retrieved, and the next chunk, each token coloured by what retrieval changed. Tokens are shown one by one, as
pieces of text (`split_pieces`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retro.base import stage
from retro.base.artifacts import Manifest, read_manifest, write_text
from retro.base.log import bar
from retro.base.stage import UserError
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.dataset import Dataset
from retro.evaluation.bits_per_byte import Documents, group_documents
from retro.evaluation.conditions import NONE, ON
from retro.report.style import render

BROKEN = "\ufffd"
LONGEST = 6  # tokens that may have to come together before they are valid UTF-8


def split_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Texts and numbers of tokens: (text, count), the counts summing to len(ids).

    A piece is one token, or the few tokens that together spell a character. The end of a document is a
    piece of no text. The texts joined are the decoded `ids`, but for characters cut in two at their ends.
    """
    found: list[tuple[str, int]] = []
    before: list[int] = []  # the last piece: some tokenizers drop the space at the beginning of what they decode
    waiting: list[int] = []
    for number, token in enumerate(ids):
        if token == tokenizer.eod_id:
            if waiting:
                found.append((_text(tokenizer, before, waiting), len(waiting)))
            found.append(("", 1))
            before, waiting = [], []
            continue
        waiting.append(token)
        text = _text(tokenizer, before, waiting)
        last = number + 1 == len(ids)
        if text.endswith(BROKEN) and len(waiting) < LONGEST and not last:
            continue
        found.append((text, len(waiting)))
        before, waiting = waiting, []
    return found


def _text(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    if not before:
        return tokenizer.decode(ids)
    head, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids])
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids)


STAGE = "retro.report.explorer"
CHUNKS = 1500  # shown at most
TOKENS = 100_000  # shown at most
NEIGHBOURS = 4  # shown at most of a chunk


def choose(documents: Documents, chunks: int, most: int, seed: int) -> list[tuple[int, int, int]]:
    """Whole documents, seeded, of `most` chunks in all: (document, first chunk, end), in the split's order.

    A single document longer than that is cut.
    """
    ends = np.append(documents.first[1:], chunks)
    lengths = ends - documents.first
    order = np.random.default_rng(seed).permutation(len(documents))
    chosen, left = [], most
    for number in order:
        if lengths[number] <= left:
            chosen.append(number)
            left -= lengths[number]
    if not chosen:
        return [(int(order[0]), int(documents.first[order[0]]), int(documents.first[order[0]]) + most)]
    return [(int(number), int(documents.first[number]), int(ends[number])) for number in sorted(chosen)]


class Lookups:
    """Neighbours and the documents they are from, each kept once."""

    def __init__(self, dataset: Dataset, retrieved_chunks: int):
        self.dataset, self.count = dataset, retrieved_chunks
        self.texts: list[dict[str, Any]] = []
        self.documents: list[dict[str, Any]] = []
        self._rows: dict[int, int] = {}
        self._numbers: dict[tuple[int, int], int] = {}

    def add(self, row: int) -> int:
        """The number of the neighbour at a global row."""
        if row not in self._rows:
            store, decode = self.dataset.store, self.dataset.tokenizer.decode
            tokens, mask = store.retrieved(np.array(row), self.count)
            m = store.length
            self._rows[row] = len(self.texts)
            self.texts.append(
                {
                    "text": decode(tokens[:m][mask[:m]]),
                    "next": decode(tokens[m:][mask[m:]]),
                    "page": self._document(row),
                }
            )
        return self._rows[row]

    def _document(self, row: int) -> int:
        store = self.dataset.store
        key = (int(store.source(np.array(row))), int(store.chunks(np.array(row))["document"]))
        if key not in self._numbers:
            self._numbers[key] = len(self.documents)
            self.documents.append({"title": title(store.document(row)), "source": key[0]})
        return self._numbers[key]


def title(document: dict[str, Any]) -> str:
    """A document's title, or its id."""
    return str(document.get("title") or document.get("id"))


def collect(dataset: Dataset, gpt: Manifest, retro: Manifest, most: int = CHUNKS) -> dict[str, Any]:
    """All that the page shows, as plain values; losses in hundredths of a nat."""
    split, used = retro.settings["split"], retro.settings["neighbours_used"]
    rows, losses = dataset.rows(split), [gpt.array("losses.npy"), retro.array("losses.npy")]
    records = dataset.store.chunks(rows)
    documents = group_documents(rows, dataset.store.source(rows), records)
    chosen = choose(documents, len(rows), min(most, TOKENS // dataset.chunk_length), dataset.facts["seed"])
    ids = dataset.neighbour_ids(split)[:, :used]
    scores = dataset.manifest(f"neighbours/{split}/manifest.json", "neighbours").array("scores.npy")
    lookups = Lookups(dataset, retro.settings["retrieved_chunks"])
    shown_documents: list[dict] = []
    shown_chunks: list[dict] = []
    with bar(sum(end - first for _, first, end in chosen), "explorer", "chunk") as shown:
        for number, first, end in chosen:
            facts = dataset.store.document(int(documents.row[number]))
            shown_documents.append(
                {
                    "title": title(facts),
                    "group": str(facts.get("group") or ""),
                    "source": int(documents.source[number]),
                    "first": len(shown_chunks),
                    "count": end - first,
                }
            )
            for position in range(first, end):
                length = int(records["length"][position])
                tokens = dataset.store.tokens(rows[position])[0][:length]
                pieces = split_pieces(dataset.tokenizer, tokens.tolist())
                starts = np.cumsum([0, *(count for _, count in pieces[:-1])])
                sums = [np.add.reduceat(loss[position, :length].astype(float), starts) for loss in losses]
                near = dataset.neighbour_rows(ids[position, :NEIGHBOURS])
                shown_chunks.append(
                    {
                        "pieces": [text for text, _ in pieces],
                        "gpt": np.rint(100 * sums[0]).astype(int).tolist(),
                        "retro": np.rint(100 * sums[1]).astype(int).tolist(),
                        "near": [
                            [lookups.add(int(row)), round(float(scores[position, rank]), 3)]
                            for rank, row in enumerate(near)
                            if row >= 0
                        ],
                    }
                )
            shown.update(end - first)
    return {
        "dataset": dataset.facts["name"],
        "split": split,
        "run": retro.settings["run"],
        "twin": gpt.settings["run"],
        "used": used,
        "total": {"documents": len(documents), "chunks": len(rows)},
        "sources": [{"name": name, "book": not dataset.facts["sources"][name]["train"]} for name in dataset.sources],
        "documents": shown_documents,
        "chunks": shown_chunks,
        "texts": lookups.texts,
        "pages": lookups.documents,
    }


def pair(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """The losses of a GPT and those of a RETRO with retrieval on, of one split."""
    modes = {manifest.settings["mode"]: manifest for manifest in manifests}
    if set(modes) != {NONE, ON} or len({manifest.settings["split"] for manifest in manifests}) != 1:
        found = ", ".join(str(manifest.path) for manifest in manifests)
        raise UserError(f"--losses: wanted a GPT's losses and a RETRO's with mode on, of one split; found {found}.")
    return modes[NONE], modes[ON]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, nargs="+", type=Path, help="a GPT's and a RETRO's (mode on)")
    parser.add_argument("--output", required=True, type=Path, help="neighbours.html to write")
    options = parser.parse_args()
    dataset = Dataset.open(options.config)
    gpt, retro = pair([read_manifest(path, "losses") for path in options.losses])
    data = collect(dataset, gpt, retro)
    page = render("neighbours.html.j2", data=data)
    write_text(options.output, page)
    size, shown = len(page.encode()) / 1e6, len(data["chunks"])
    print(f"{shown} of {data['total']['chunks']} chunks, {size:.1f} MB → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
