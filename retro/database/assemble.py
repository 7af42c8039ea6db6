"""Stage: list the chunks of the database and of each split, as global rows.

The database holds the train split of every source with `database: true`, and all of an open book (`train:
false`). It never holds a chunk that is evaluated.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from retro import errors
from retro.arguments import given
from retro.artifacts import Manifest, growing_array, read_manifest, write_manifest
from retro.database import shared
from retro.database.clusters import by_chunk
from retro.database.tables import BOOK, HELD_OUT, LISTED, SPLITS, TEST, TRAIN, VALID
from retro.errors import UserError
from retro.paging import release

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


def check(rows: dict[str, int], counts: dict[str, dict[str, int]]) -> None:
    """Refuse an empty train split or database; warn of an empty valid or test split. `rows`: chunks of each list."""
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
    files = write(options.output.parent, counts, select(*chosen))
    also = shared.count(names, manifests, [use["database"] for use in uses], dropped)
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
    for line in shared.told(also):
        print(line, file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
