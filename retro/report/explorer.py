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
from retro.evaluation.conditions import BUILT_IN, NONE, ON
from retro.evaluation.leakage import common_run
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


def collect(dataset: Dataset, gpt: Manifest, views: list[Manifest], most: int = CHUNKS) -> dict[str, Any]:
    """All that the page shows, as plain values; losses in hundredths of a nat: the GPT's and those of each view.

    A view is a RETRO run under a condition. What the first one reads is shown as looked up, and `overlap` is the
    longest run of tokens of a chunk that stands in what it read while the chunk was predicted.
    """
    split, used = views[0].settings["split"], views[0].settings["neighbours_used"]
    rows, losses = dataset.rows(split), [each.array("losses.npy") for each in (gpt, *views)]
    records = dataset.store.chunks(rows)
    documents = group_documents(rows, dataset.store.source(rows), records)
    tokens_shown = TOKENS // max(1, len(views) // 2)  # each view is as large again
    chosen = choose(documents, len(rows), min(most, tokens_shown // dataset.chunk_length), dataset.facts["seed"])
    ids = dataset.neighbour_ids(split)[:, : max(used, *(view.settings["neighbours_used"] for view in views))]
    scores = dataset.manifest(f"neighbours/{split}/manifest.json", "neighbours").array("scores.npy")
    lookups = Lookups(dataset, views[0].settings["retrieved_chunks"])
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
            overlaps = copied(dataset, rows[first:end], ids[first:end, :used], views[0].settings["retrieved_chunks"])
            for position in range(first, end):
                length = int(records["length"][position])
                tokens = dataset.store.tokens(rows[position])[0][:length]
                pieces = split_pieces(dataset.tokenizer, tokens.tolist())
                starts = np.cumsum([0, *(count for _, count in pieces[:-1])])
                sums = [np.add.reduceat(loss[position, :length].astype(float), starts) for loss in losses]
                gpt_nats, *view_nats = (np.rint(100 * each).astype(int).tolist() for each in sums)
                near = dataset.neighbour_rows(ids[position, :NEIGHBOURS])
                shown_chunks.append(
                    {
                        "pieces": [text for text, _ in pieces],
                        "gpt": gpt_nats,
                        "views": view_nats,
                        "length": length,
                        "overlap": int(overlaps[position - first]),
                        "near": [
                            [lookups.add(int(row)), round(float(scores[position, rank]), 3)]
                            for rank, row in enumerate(near)
                            if row >= 0
                        ],
                    }
                )
            shown.update(end - first)
    opened, why = opening(shown_documents, shown_chunks, dataset.chunk_length)
    return {
        "dataset": dataset.facts["name"],
        "split": split,
        "twin": gpt.settings["run"],
        "views": [
            {
                "run": view.settings["run"],
                "label": f"{view.settings['run']}, {BUILT_IN[view.settings['mode']].shows}",
                "reads": BUILT_IN[view.settings["mode"]].ids,
                "used": view.settings["neighbours_used"],
            }
            for view in views
        ],
        "opened": opened,
        "why": why,
        "chunk_length": dataset.chunk_length,
        "total": {"documents": len(documents), "chunks": len(rows)},
        "sources": [{"name": name, "book": not dataset.facts["sources"][name]["train"]} for name in dataset.sources],
        "documents": shown_documents,
        "chunks": shown_chunks,
        "texts": lookups.texts,
        "pages": lookups.documents,
    }


def copied(dataset: Dataset, rows: np.ndarray, ids: np.ndarray, retrieved_chunks: int) -> np.ndarray:
    """For each chunk of a document, the longest run of its tokens in the neighbours of the one before: int [c].

    These are read while it is predicted; 0 for the first chunk, which is predicted without any.
    """
    if len(rows) < 2 or not ids.shape[1]:
        return np.zeros(len(rows), int)
    neighbours = dataset.store.retrieved(dataset.neighbour_rows(ids[:-1]), retrieved_chunks)
    return np.concatenate([[0], common_run(*dataset.store.tokens(rows[1:]), *neighbours)])


LITTLE = (0.125, 0.25, 0.5, 1.0)  # shares of a chunk that its longest copied run may be, tried in this order


def opening(documents: list[dict], chunks: list[dict], length: int) -> tuple[int, str]:
    """The chunk that the page opens on, and a sentence that says how it was chosen.

    It is read before the chunk where reading saved the first view most nats, of whole chunks of which the least
    share was there to be copied.
    """
    firsts = {document["first"] for document in documents}
    whole = [n for n, chunk in enumerate(chunks) if n not in firsts and chunk["length"] == length]
    for share in LITTLE:
        free = [n for n in whole if chunks[n]["overlap"] <= share * length]
        saved = {n: sum(chunks[n]["gpt"]) - sum(chunks[n]["views"][0]) for n in free}
        best = max(free, key=lambda n: (saved[n], -n), default=None)
        if best is not None and (saved[best] > 0 or share == LITTLE[-1]):
            return best - 1, (
                f"This page opens where reading saved most bits among the {len(free)} of {len(whole)} whole chunks of "
                f"which no more than {int(share * length)} of {length} tokens in a row stood in what was read: there "
                "it helped without a long copy."
                if share < 1
                else f"This page opens on the chunk where reading saved most bits, of {len(whole)} whole chunks."
            )
    return 0, "This page opens on its first chunk: there is no whole chunk that another one comes before."


def sides(manifests: list[Manifest]) -> tuple[Manifest, list[Manifest]]:
    """The losses of a GPT and those of its RETRO runs, the first with retrieval on before all others; of one split."""
    modes = [manifest.settings["mode"] for manifest in manifests]
    splits = {manifest.settings["split"] for manifest in manifests}
    if modes.count(NONE) != 1 or ON not in modes or not set(modes) <= BUILT_IN.keys() or len(splits) != 1:
        found = ", ".join(str(manifest.path) for manifest in manifests)
        raise UserError(
            "--losses: wanted a GPT's losses and a RETRO's with mode on, of one split, and perhaps more of RETRO; "
            f"found {found}."
        )
    others = [manifest for manifest in manifests if manifest.settings["mode"] != NONE]
    first = modes.index(ON)
    return manifests[modes.index(NONE)], [manifests[first], *(each for each in others if each is not manifests[first])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, nargs="+", type=Path, help="a GPT's and those of RETRO (mode on)")
    parser.add_argument("--output", required=True, type=Path, help="neighbours.html to write")
    options = parser.parse_args()
    dataset = Dataset.open(options.config)
    data = collect(dataset, *sides([read_manifest(path, "losses") for path in options.losses]))
    page = render("neighbours.html.j2", data=data)
    write_text(options.output, page)
    size, shown = len(page.encode()) / 1e6, len(data["chunks"])
    print(f"{shown} of {data['total']['chunks']} chunks, {size:.1f} MB → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
