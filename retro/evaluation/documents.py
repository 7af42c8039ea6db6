"""documents.csv: tokens, bytes and bits per byte of every document of the evaluated splits, under every condition."""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retro.base import stage
from retro.base.artifacts import Manifest, read_manifest, replacing
from retro.base.log import track
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.evaluation.bits_per_byte import bits_per_byte, group_documents

STAGE = "retro.evaluation.documents"
COLUMNS = ("split", "source", "document", "group", "title", "tokens", "bytes")


def rows(dataset: Dataset, split: str, losses: list[Manifest]) -> Iterator[list[Any]]:
    """A row for each document of a split: who it is, then its bits per byte in the order of `losses`."""
    positions = dataset.rows(split)
    documents = group_documents(positions, dataset.store.source(positions), dataset.store.chunks(positions))
    columns = []
    for manifest in losses:
        array = manifest.array("losses.npy")
        if len(array) != len(positions):
            raise UserError(
                f"{manifest.path}: losses of {len(array)} chunks, the {split} split has {len(positions)}. Delete it "
                f"and run snakemake again."
            )
        columns.append(bits_per_byte(documents.nats(array), documents.bytes.clip(1)))
    for number in track(range(len(documents)), len(documents), f"documents of {split}", "document"):
        facts = dataset.store.document(int(documents.row[number]))
        known = [split, facts["source"], facts["id"], facts.get("group") or "", facts.get("title") or ""]
        sizes = [int(documents.tokens[number]), int(documents.bytes[number])]
        yield [*known, *sizes, *(f"{column[number]:.6f}" for column in columns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, nargs="+", type=Path, help="manifests of kind losses")
    parser.add_argument("--output", required=True, type=Path, help="documents.csv to write")
    options = parser.parse_args()
    dataset = Dataset.open(options.config)
    losses = [read_manifest(path, "losses") for path in options.losses]
    names = list(dict.fromkeys((m.settings["run"], m.settings["mode"]) for m in losses))
    with replacing(options.output) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*COLUMNS, *(f"{run} {mode}" for run, mode in names)])
        for split in dict.fromkeys(manifest.settings["split"] for manifest in losses):
            by_name = {(m.settings["run"], m.settings["mode"]): m for m in losses if m.settings["split"] == split}
            if by_name.keys() != set(names):
                raise UserError(
                    f"{options.output}: not every run and condition was measured on split {split}. Run snakemake again."
                )
            table.writerows(rows(dataset, split, [by_name[name] for name in names]))
    print(f"documents → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
