"""Documents that are evaluated and stand in the database as well: of the same id, or of equal text."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro.artifacts import Manifest, read_manifest
from retro.database.hashing import mix
from retro.database.tables import BOOK, TEST, TRAIN, VALID
from retro.paging import release

BLOCK = 1 << 20  # chunks looked at together


def documents(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each document of a chunk table: a hash of its tokens, uint64; its split, uint8; the row of its first chunk,
    int64. All [documents].
    """
    count = int(table["document"][-1]) + 1 if len(table) else 0
    chunks = np.zeros(count, np.int64)
    hashes, split = np.zeros(count, np.uint64), np.zeros(count, np.uint8)
    for start in range(0, len(table), BLOCK):
        chunks += np.bincount(table["document"][start : start + BLOCK], minlength=count)
    first = np.cumsum(chunks) - chunks
    for start in range(0, len(table), BLOCK):
        part = np.array(table[start : start + BLOCK])
        number = part["document"].astype(np.int64)
        place = np.arange(start, start + len(part)) - first[number]  # of a chunk in its document
        np.add.at(hashes, number, mix(part["text"] + mix(place.astype(np.uint64))))
        split[number] = part["split"]
        release(table)
    return hashes, split, first


def tokens_of(chunks: Manifest) -> Manifest | None:
    """The token store that a chunk table cuts, if it is still there."""
    for name in chunks.facts["inputs"]:
        path = Path(os.path.normpath(chunks.folder / name))
        if path.name == "manifest.json" and path.exists() and read_manifest(path).facts["kind"] == "tokens":
            return read_manifest(path)
    return None


def ids(chunks: Manifest, wanted: np.ndarray) -> Iterator[str]:
    """The ids of a source's documents that are `wanted`, bool [documents]."""
    tokens = tokens_of(chunks)
    if tokens is not None:
        with open(tokens.file("documents.jsonl"), encoding="utf-8") as file:
            for line, this in zip(file, wanted, strict=True):
                if this:
                    yield json.loads(line)["id"]


def count(
    names: list[str], chunks: list[Manifest], databases: list[bool], dropped: list[np.ndarray] | None = None
) -> dict[str, dict[str, int]]:
    """How many evaluated documents share their id, or their text, with one in the database: `ids` and `texts`, each
    by the source that the other stands in. `databases`: which sources are in the database; `dropped` as for
    `retro.database.assemble.select`.
    """
    texts, evaluated, served = [], [], []
    found = [documents(manifest.array("chunks.npy")) for manifest in chunks]
    for number, (hashes, split, first) in enumerate(found):
        held = (split == VALID) | (split == TEST)
        texts.append(hashes[held])
        evaluated += ids(chunks[number], held)
        gone = dropped[number][first] & 2 > 0 if dropped else np.zeros(len(split), bool)
        served.append(((split == TRAIN) | (split == BOOK)) & ~gone & databases[number])
    every, known = np.concatenate(texts), set(evaluated)
    shared: dict[str, dict[str, int]] = {"ids": {}, "texts": {}}
    for name, manifest, (hashes, _, _), where in zip(names, chunks, found, served, strict=True):
        same = known.intersection(ids(manifest, where)) if where.any() else set()
        for what, number in (
            ("ids", sum(each in same for each in evaluated)),
            ("texts", int(np.isin(every, hashes[where]).sum())),
        ):
            if number:
                shared[what][name] = number
    return shared


def told(shared: dict[str, dict[str, int]]) -> list[str]:
    """For the log: a warning where anything is shared."""
    if not any(shared.values()):
        return []
    parts = [
        f"{number} of equal {what[:-1]} in {name}" for what, found in shared.items() for name, number in found.items()
    ]
    return [
        f"warning: documents that are evaluated are in the database, too: {', '.join(parts)}. Retrieval can look them "
        "up, and what it gains there is no gain. Remove them from that source, or set dataset.duplicates.action to "
        "exclude or drop, or dataset.neighbours.exclude to leave out equal text."
    ]
