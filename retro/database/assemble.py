"""Stage: list the chunks of the database and of each split, as global rows.

The database holds the train split of every source with `database: true`, and all of an open book (`train:
false`). It never holds a chunk that is evaluated; documents that are evaluated and stand in it as well, of the same id
or of equal text, are counted and told. Near-duplicates may be left out (`by_chunk`).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from retro.base import stage
from retro.base.artifacts import Manifest, growing_array, read_manifest, release, write_manifest
from retro.base.hashing import mix
from retro.base.names import BOOK, HELD_OUT, LISTED, SPLITS, TEST, TRAIN, VALID
from retro.base.stage import UserError, given
from retro.corpus.documents import fraction
from retro.corpus.settings import SplitSettings


def by_chunk(name: str, duplicates: Path, chunks: list[Path]) -> list[np.ndarray]:
    """`clusters.npy` or `dropped.npy` of a manifest of kind `duplicates`, for each chunk of each source."""
    manifest, tables = read_manifest(duplicates, "duplicates"), [read_manifest(path, "chunks") for path in chunks]
    values, sizes = manifest.array(name), [_documents(table) for table in tables]
    if sum(sizes) != len(values):
        raise UserError(f"{duplicates}: tells of {len(values)} documents, there are {sum(sizes)}. Run snakemake.")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [part[table.array("chunks.npy")["document"]] for part, table in zip(parts, tables, strict=True)]


def _documents(chunks: Manifest) -> int:
    """Documents of the source that a chunk table cuts: every document has at least its EOD, so at least a chunk."""
    table = chunks.array("chunks.npy")
    return int(table["document"][-1]) + 1 if len(table) else 0


COMPARED_AT_ONCE = 1 << 20  # chunks looked at together


def documents(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each document of a chunk table: a hash of its tokens, uint64; its split, uint8; the row of its first chunk,
    int64. All [documents].
    """
    count = int(table["document"][-1]) + 1 if len(table) else 0
    chunks = np.zeros(count, np.int64)
    hashes, split = np.zeros(count, np.uint64), np.zeros(count, np.uint8)
    for start in range(0, len(table), COMPARED_AT_ONCE):
        chunks += np.bincount(table["document"][start : start + COMPARED_AT_ONCE], minlength=count)
    first = np.cumsum(chunks) - chunks
    for start in range(0, len(table), COMPARED_AT_ONCE):
        part = np.array(table[start : start + COMPARED_AT_ONCE])
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


def count_shared(
    names: list[str], chunks: list[Manifest], databases: list[bool], dropped: list[np.ndarray] | None = None
) -> dict[str, dict[str, int]]:
    """How many evaluated documents share their id, or their text, with one in the database: `ids` and `texts`, each
    by the source that the other stands in. `databases`: which sources are in the database; `dropped` as for
    `retro.database.assemble.select`.
    """
    texts: list[np.ndarray] = []
    evaluated: list[str] = []
    served: list[np.ndarray] = []
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


STAGE = "retro.database.assemble"
LISTS = ("database", *LISTED)
BLOCK = 1 << 16  # chunks looked at together


def select(
    tables: list[np.ndarray], uses: list[dict[str, bool]], dropped: list[np.ndarray] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Global rows int64, ascending, of each of `LISTS`, block by block, from the sources' chunk tables and their
    `database` flags. `dropped`: for each chunk of each source, 1 to leave it out of train, 2 of the database, 3 of
    both.
    """
    offset = 0
    for number, (table, use) in enumerate(zip(tables, uses, strict=True)):
        for start in range(0, len(table), BLOCK):
            split = np.array(table["split"][start : start + BLOCK])
            gone = dropped[number][start : start + BLOCK] if dropped else np.zeros(len(split), np.uint8)
            chosen = {
                "database": use["database"] & ((split == TRAIN) | (split == BOOK)) & (gone & 2 == 0),
                SPLITS[TRAIN]: (split == TRAIN) & (gone & 1 == 0),
                SPLITS[VALID]: split == VALID,
                SPLITS[TEST]: split == TEST,
            }
            yield {name: np.flatnonzero(chosen[name]) + (offset + start) for name in LISTS}
            release(table)
        offset += len(table)


def write(folder: Path, counts: dict[str, int], parts: Iterator[dict[str, np.ndarray]]) -> list[Path]:
    """Write each list, of `counts` rows, as <name>.npy; the files."""
    files, done = {name: folder / f"{name}.npy" for name in LISTS}, dict.fromkeys(LISTS, 0)
    with ExitStack() as stack:
        lists = {
            name: stack.enter_context(growing_array(path, (counts[name],), np.int64)) for name, path in files.items()
        }
        for part in parts:
            for name, rows in part.items():
                lists[name][done[name] : done[name] + len(rows)] = rows
                done[name] += len(rows)
            release(*lists.values())
    return list(files.values())


def asked_for(chunks: list[Manifest], uses: list[dict[str, bool]]) -> tuple[SplitSettings, list[float]] | None:
    """How the sources were split, and where each group (or document) fell, ascending in [0, 1); None where that is not
    known any more.
    """
    keys: set[str] = set()
    split, seed = SplitSettings(), 0
    for manifest, use in zip(chunks, uses, strict=True):
        if use["train"]:
            tokens = tokens_of(manifest)
            if tokens is None or "split" not in tokens.settings:
                return None
            split, seed = SplitSettings(**tokens.settings["split"]), tokens.settings["seed"]
            with open(tokens.file("documents.jsonl"), encoding="utf-8") as file:
                keys |= {json.loads(line)["group" if split.by == "group" else "id"] for line in file}
    return split, sorted(fraction(key, seed) for key in keys)


STEP = 1000  # shares of a split are proposed in parts of this


def unfilled(rows: dict[str, int], split: SplitSettings, places: list[float]) -> str:
    """Why the config's splits cannot stay as they are: one that has a share is empty. Nothing where all are filled.

    `rows`: chunks of each list; `places`: as `asked_for` has them.
    """
    empty = [name for name in HELD_OUT if not rows[name] and getattr(split, name)]
    if not empty:
        return ""
    what = f"{split.by}s" if len(places) > 1 else split.by
    wanted = {
        "test": math.floor(places[0] * STEP + 1) / STEP,
        "valid": math.ceil((1 - places[-1]) * STEP) / STEP,
    }
    shares = " and ".join(f"dataset.split.{name} {getattr(split, name)}" for name in empty)
    remedy = " and ".join(f"dataset.split.{name} to {wanted[name]} or more" for name in empty)
    fuller = SplitSettings if len(places) > 2 and sum(wanted[name] for name in empty) < 0.9 else None
    way = f"Set {remedy}" if fuller else "Add documents"
    smaller = ", split by document" if split.by == "group" else ""
    return (
        f"{shares}: nothing is left to evaluate on, as none of the {len(places):,} {what} falls into that share. "
        f"{way}{smaller}, cut long documents (dataset.sources.<name>.cut), or set the share to 0 to do without."
    )


def check(rows: dict[str, int], counts: dict[str, dict[str, int]]) -> None:
    """Refuse an empty train split or database; warn of an empty valid or test split, which has no share of the
    documents. `rows`: chunks of each list.
    """
    table = "; ".join(
        f"{name}: " + ", ".join(f"{split} {count}" for split, count in by_split.items())
        for name, by_split in counts.items()
    )
    if not rows[SPLITS[TRAIN]]:
        raise UserError(
            f"the train split has no chunk (chunks by source: {table}). Lower dataset.split.valid and "
            f".test, or add documents to a source with train: true."
        )
    if not rows["database"]:
        raise UserError(
            f"the retrieval database is empty (chunks by source: {table}). Set database: true for a source "
            f"whose train split, or open book, has documents."
        )
    for name in HELD_OUT:
        if not rows[name]:
            print(
                f"warning: the {name} split has no chunk (chunks by source: {table}); evaluating it will "
                f"be refused. Raise dataset.split.{name}, or split by document, to fill it.",
                file=sys.stderr,
            )


def _check_uses(manifests: list[Manifest], names: list[str], uses: list[dict[str, bool]]) -> None:
    """Refuse manifests that do not match the sources: another order, or a book that was split."""
    folders = [manifest.folder.name for manifest in manifests]
    if folders != names:
        raise UserError(f"--chunks: manifests of {folders}, wanted those of {names}, in this order.")
    for manifest, use in zip(manifests, uses, strict=True):
        by_split = manifest.counts["by_split"]
        wrong = [split for split in SPLITS if by_split[split] and (split == SPLITS[BOOK]) == use["train"]]
        if wrong:
            raise UserError(
                f"{manifest.path}: has {wrong[0]} chunks although its source has train: "
                f"{str(use['train']).lower()}. Run snakemake: it tokenizes the source again."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: sources")
    parser.add_argument("--chunks", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--duplicates", nargs="*", default=[], type=Path, help="manifest: what to drop, if anything")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    options = parser.parse_args()
    names = sorted(options.settings["sources"])
    uses = [options.settings["sources"][name] for name in names]
    manifests = [read_manifest(path, "chunks") for path in options.chunks]
    _check_uses(manifests, names, uses)
    dropped = by_chunk("dropped.npy", options.duplicates[0], options.chunks) if options.duplicates else None
    chosen = ([manifest.array("chunks.npy") for manifest in manifests], uses, dropped)
    counts = dict.fromkeys(LISTS, 0)
    for part in select(*chosen):
        counts = {name: counts[name] + len(rows) for name, rows in part.items()}
    check(counts, {name: manifest.counts["by_split"] for name, manifest in zip(names, manifests, strict=True)})
    asked = None if all(counts[name] for name in HELD_OUT) else asked_for(manifests, uses)
    if asked and (wrong := unfilled(counts, *asked)):
        raise UserError(wrong)
    files = write(options.output.parent, counts, select(*chosen))
    also = count_shared(names, manifests, [use["database"] for use in uses], dropped)
    write_manifest(
        options.output,
        kind="database",
        stage=STAGE,
        files=files,
        inputs=[*options.chunks, *options.duplicates],
        settings=options.settings,
        counts={**counts, "evaluated_in_database": also},
    )
    print(
        f"{options.output.parent}: " + ", ".join(f"{n} {c} chunks" for n, c in counts.items()),
        file=sys.stderr,
    )
    for line in told(also):
        print(line, file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
