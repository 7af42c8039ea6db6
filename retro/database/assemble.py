"""Stage: list the chunks of the database and of each split, as global rows.

The database holds the train split of every source with `database: true`, and all of an open book (`train:
false`). It never holds a chunk that is evaluated.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from retro import errors
from retro.artifacts import Manifest, read_manifest, write_array, write_manifest
from retro.database.clusters import by_chunk
from retro.database.tables import SPLITS
from retro.errors import UserError

STAGE = "retro.database.assemble"
TRAIN, VALID, TEST, BOOK = range(len(SPLITS))
LISTS = ("database", "train", "valid", "test")


def assemble(
    tables: list[np.ndarray], uses: list[dict[str, bool]], dropped: list[np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Global rows int64, ascending, of each of `LISTS`, from the sources' chunk tables and their `database`
    flags. `dropped`: for each chunk of each source, 1 to leave it out of train, 2 of the database, 3 of both.
    """
    dropped = dropped or [np.zeros(len(table), np.uint8) for table in tables]
    found: dict[str, list[np.ndarray]] = {name: [] for name in LISTS}
    offset = 0
    for table, use, gone in zip(tables, uses, dropped, strict=True):
        split = np.asarray(table["split"])
        found["train"].append(np.flatnonzero((split == TRAIN) & (gone & 1 == 0)) + offset)
        for number, name in ((VALID, "valid"), (TEST, "test")):
            found[name].append(np.flatnonzero(split == number) + offset)
        if use["database"]:
            found["database"].append(np.flatnonzero(((split == TRAIN) | (split == BOOK)) & (gone & 2 == 0)) + offset)
        offset += len(table)
    return {name: np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64) for name, parts in found.items()}


def check(rows: dict[str, np.ndarray], counts: dict[str, dict[str, int]]) -> None:
    """Refuse an empty train split or database; warn of an empty valid or test split."""
    table = "; ".join(
        f"{name}: " + ", ".join(f"{split} {count}" for split, count in by_split.items())
        for name, by_split in counts.items()
    )
    if not len(rows["train"]):
        raise UserError(
            f"the train split has no chunk (chunks by source: {table}). Lower dataset.split.valid and "
            f".test, or add documents to a source with train: true."
        )
    if not len(rows["database"]):
        raise UserError(
            f"the retrieval database is empty (chunks by source: {table}). Set database: true for a source "
            f"whose train split, or open book, has documents."
        )
    for name in ("valid", "test"):
        if not len(rows[name]):
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
        wrong = [split for split in SPLITS if by_split[split] and (split == "book") == use["train"]]
        if wrong:
            raise UserError(
                f"{manifest.path}: has {wrong[0]} chunks although its source has train: "
                f"{str(use['train']).lower()}. Run snakemake: it tokenizes the source again."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: sources")
    parser.add_argument("--chunks", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--duplicates", nargs="*", default=[], type=Path, help="manifest: what to drop, if anything")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    options = parser.parse_args()
    names = sorted(options.settings["sources"])
    uses = [options.settings["sources"][name] for name in names]
    manifests = [read_manifest(path, "chunks") for path in options.chunks]
    _check_uses(manifests, names, uses)
    dropped = by_chunk("dropped.npy", options.duplicates[0], options.chunks) if options.duplicates else None
    rows = assemble([manifest.array("chunks.npy") for manifest in manifests], uses, dropped)
    by_source = {name: manifest.counts["by_split"] for name, manifest in zip(names, manifests, strict=True)}
    check(rows, by_source)
    files = [options.output.parent / f"{name}.npy" for name in LISTS]
    for name, path in zip(LISTS, files, strict=True):
        write_array(path, rows[name])
    counts = {name: len(rows[name]) for name in LISTS}
    write_manifest(
        options.output,
        kind="database",
        stage=STAGE,
        files=files,
        inputs=[*options.chunks, *options.duplicates],
        settings=options.settings,
        counts=counts,
    )
    print(
        f"{options.output.parent}: " + ", ".join(f"{n} {c} chunks" for n, c in counts.items()),
        file=sys.stderr,
    )


if __name__ == "__main__":
    errors.run(main)
