"""Stage: cut every document of a source into consecutive chunks of m tokens; the last one may be short.

A document's EOD belongs to its last chunk; no chunk holds tokens of two documents, and the chunks of a source
cover its tokens without gap or overlap. The table is made block by block, so memory does not grow with the
source or with its longest document.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from retro.base import log, stage
from retro.base.artifacts import Manifest, growing_array, read_manifest, release, write_manifest
from retro.base.hashing import mix
from retro.base.names import CHUNK, DOCUMENT, SPLITS, dated
from retro.base.stage import UserError, given
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer

STAGE = "retro.database.chunk"
BLOCK = 1 << 16  # chunks at a time


def text_hashes(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """uint64 hash of each chunk's token ids, for exact-text exclusion.

    `tokens` are the ids of consecutive chunks, `lengths` (each > 0) how many each has. The hash of a chunk
    is mix(length + the sum over its positions j of mix(2^32 · (j + 1) + id)), modulo 2^64: the same ids in
    the same order give the same hash, in every source and on every machine.
    """
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(tokens), dtype=np.int64) - np.repeat(starts, lengths)
    mixed = mix((position.astype(np.uint64) + 1 << 32) + tokens.astype(np.uint64))
    return mix(np.add.reduceat(mixed, starts) + lengths.astype(np.uint64))


class Documents(Protocol):
    """What is cut: a token store, or consecutive documents in the midst of one."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...


def cut(store: Documents, documents: np.ndarray, token_bytes: np.ndarray, length: int, table: np.ndarray) -> np.ndarray:
    """Fill `table` (`columns`, one row a chunk) with the chunks of `length` tokens of a store's documents; how many
    chunks each of `SPLITS` has.
    """
    offsets, splits = offsets_of(store, length), np.zeros(len(SPLITS), np.int64)
    with log.bar(len(table), "chunk", "chunk") as shown:
        for first, end in document_blocks(offsets):
            begin, stop = offsets[first], offsets[end]
            for start in range(begin, stop, BLOCK):
                rows = np.arange(start, min(start + BLOCK, stop))
                table[start : start + len(rows)] = chunks(store, documents, token_bytes, length, offsets, rows)
                release(store.tokens)
            part = table[begin:stop]
            correct_bytes(part, offsets[first : end + 1] - begin, documents["bytes"][first:end])
            splits += np.bincount(part["split"], minlength=len(SPLITS))
            shown.update(len(part))
            release(table, documents)
    return splits


def columns(documents: np.ndarray) -> np.dtype:
    """Of the chunks of documents: CHUNK, with the date if those have it."""
    return dated(CHUNK) if documents.dtype == dated(DOCUMENT) else CHUNK


def document_blocks(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about `BLOCK` chunks, at least one document in each; `offsets` are `offsets_of` them."""
    first = 0
    while first < len(offsets) - 1:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + BLOCK, side="right")) - 1)
        yield first, end
        first = end


def chunks(
    store: Documents,
    documents: np.ndarray,
    token_bytes: np.ndarray,
    length: int,
    offsets: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """The chunks of consecutive `rows` of the table, bytes as their tokens have them."""
    document = np.searchsorted(offsets, rows, side="right") - 1
    start = store.offsets[document] + (rows - offsets[document]) * length
    lengths = np.minimum(store.offsets[document + 1] - start, length)
    tokens = np.asarray(store.tokens[start[0] : start[-1] + lengths[-1]])
    made = np.empty(len(rows), columns(documents))
    made["start"], made["document"], made["length"] = start, document, lengths
    made["split"], made["group"] = documents["split"][document], documents["group"][document]
    if made.dtype != CHUNK:
        made["date"] = documents["date"][document]
    made["text"] = text_hashes(tokens, lengths)
    made["bytes"] = np.add.reduceat(token_bytes[tokens], start - start[0])
    return made


def offsets_of(store: Documents, length: int) -> np.ndarray:
    """Row of each document's first chunk and, at the end, the number of chunks: int64 [documents + 1]."""
    counts = -(-np.diff(store.offsets) // length)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def correct_bytes(table: np.ndarray, chunk_offsets: np.ndarray, document_bytes: np.ndarray) -> None:
    """Make the chunks of each document sum to the bytes of its text, changing the last chunk.

    Tokens say their bytes except where a tokenizer adds, drops or replaces some (SentencePiece's leading
    space, normalisation). If there is more to take away than the last chunk has, the chunks before it give
    the rest.
    """
    filled = np.flatnonzero(np.diff(chunk_offsets))
    if not len(filled):
        return
    last = chunk_offsets[filled + 1] - 1
    found = np.add.reduceat(table["bytes"], chunk_offsets[filled], dtype=np.int64)
    wanted = table["bytes"][last] + document_bytes[filled] - found
    table["bytes"][last] = np.maximum(wanted, 0)
    for number in np.flatnonzero(wanted < 0):
        owed, row = -int(wanted[number]), int(last[number])
        while owed:
            row -= 1
            given = min(owed, int(table["bytes"][row]))
            table["bytes"][row] -= given
            owed -= given


def _check(manifest: Manifest, store: TokenStore, documents: np.ndarray, token_bytes: np.ndarray) -> None:
    """Refuse a token store and a document table that do not belong together, or foreign token ids."""
    table = manifest.folder / "documents.npy"
    if documents.dtype not in (DOCUMENT, dated(DOCUMENT)):
        raise UserError(f"{table}: columns {documents.dtype.names}, wanted {DOCUMENT.names}. Delete it, run snakemake.")
    if len(documents) != len(store.offsets) - 1:
        raise UserError(
            f"{table}: {len(documents)} documents, but tokens.idx beside it tells of "
            f"{len(store.offsets) - 1}. Delete {manifest.path} and run snakemake again."
        )
    empty = np.flatnonzero((np.diff(store.offsets) == 0) & (documents["bytes"] > 0))
    if len(empty):
        raise UserError(f"{table}: document {empty[0]} has text but no tokens. Delete it and run snakemake.")
    for begin in range(0, len(store.tokens), 1 << 24):
        highest = int(store.tokens[begin : begin + (1 << 24)].max(initial=0))
        release(store.tokens)
        if highest >= len(token_bytes):
            raise UserError(
                f"{manifest.folder / 'tokens.bin'}: token id {highest}, but the tokenizer has "
                f"{len(token_bytes)} tokens. The store was made with another tokenizer: delete it and run "
                f"snakemake again."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: chunk_length")
    parser.add_argument("--tokens", required=True, type=Path, help="manifest of the token store")
    parser.add_argument("--tokenizer", required=True, type=Path, help="manifest of the tokenizer")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    options = parser.parse_args()
    length, manifest = options.settings["chunk_length"], read_manifest(options.tokens, "tokens")
    tokenizer = Tokenizer.load(options.tokenizer)
    store = TokenStore(manifest.file("tokens.bin").with_suffix(""))
    documents = manifest.array("documents.npy")
    _check(manifest, store, documents, tokenizer.token_bytes)
    path, count = options.output.parent / "chunks.npy", int(offsets_of(store, length)[-1])
    with growing_array(path, (count,), columns(documents)) as table:
        splits = cut(store, documents, tokenizer.token_bytes, length, table)
    tokens = len(store.tokens)
    by_split: dict[str, int] = dict(zip(SPLITS, splits.tolist(), strict=True))
    counts = {
        "chunks": count,
        "tokens": tokens,
        "padding_share": round(1 - tokens / (count * length), 6) if count else 0.0,
        "by_split": by_split,
    }
    write_manifest(
        options.output,
        kind="chunks",
        stage=STAGE,
        files=[path],
        inputs=[options.tokens, options.tokenizer],
        settings=options.settings,
        counts=counts,
    )
    shares = ", ".join(f"{name} {count}" for name, count in by_split.items() if count)
    print(
        f"{options.output.parent}: {count} chunks of {length} tokens ({shares}), {counts['padding_share']:.1%} padding",
        file=sys.stderr,
    )


if __name__ == "__main__":
    stage.run(main)
