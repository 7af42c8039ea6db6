"""Bits per byte and perplexity of every run, and paired comparisons of RETRO runs with their GPT twins.

summary.csv: a row for each run, mode of retrieval, split and source. comparison.csv: each RETRO run and
mode against its twin of the same seed, with the 95 % interval of a bootstrap over documents or groups; then, for each
run name, all its seeds together (seed `all`; seeds_min and seeds_max are the smallest and largest
difference of a seed). sections.csv: the same by section, where titles read `Something: Section`.
documents.csv: tokens, bytes and bits per byte of every document, under every condition.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retro.base import stage
from retro.base.artifacts import Manifest, read_manifest, replacing, write_text
from retro.base.log import track
from retro.base.names import ALL
from retro.base.stage import UserError, given
from retro.dataset.dataset import Dataset
from retro.evaluation import tables
from retro.evaluation.bits_per_byte import ENOUGH, bits_per_byte, group_documents, section
from retro.evaluation.conditions import ON
from retro.evaluation.settings import EvaluationSettings

STAGE = "retro.evaluation.summarise"
DOCUMENTS = ("split", "source", "document", "group", "title", "tokens", "bytes")


def measure(dataset: Dataset, split: str, losses: list[Manifest], unit: str) -> tables.Measured:
    """Sum the losses of one split by document. Raises `UserError` for an empty split, and where a file does not fit."""
    rows = dataset.rows(split)
    if not len(rows):
        raise UserError(
            f"{dataset.path}: the {split} split is empty. Add documents, give it a larger share (dataset.split), or "
            f"remove it from evaluate.splits."
        )
    records = dataset.store.chunks(rows)
    documents = group_documents(rows, dataset.store.source(rows), records)
    nats = {}
    for manifest in track(losses, len(losses), f"sum {split}", "file"):
        array = manifest.array("losses.npy")
        if array.shape != (len(rows), dataset.chunk_length):
            raise UserError(
                f"{manifest.path}: losses of shape {array.shape}, wanted {(len(rows), dataset.chunk_length)} "
                f"for split {split}. Delete it and run snakemake again."
            )
        nats[manifest.settings["run"], manifest.settings["mode"]] = documents.nats(array)
    titles = [dataset.store.document(int(row)).get("title") or "" for row in documents.row]
    units = records["group"][documents.first] if unit == "group" else None
    return tables.Measured(split, dataset.sources, documents, [section(title) for title in titles], nats, units)


def document_rows(dataset: Dataset, split: str, losses: list[Manifest]) -> Iterator[list[Any]]:
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


def write_documents(dataset: Dataset, losses: list[Manifest], path: Path) -> None:
    """documents.csv. Raises `UserError` where a split lacks a run or a condition that another has."""
    names = list(dict.fromkeys((m.settings["run"], m.settings["mode"]) for m in losses))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*DOCUMENTS, *(f"{run} {mode}" for run, mode in names)])
        for split in dict.fromkeys(manifest.settings["split"] for manifest in losses):
            by_name = {(m.settings["run"], m.settings["mode"]): m for m in losses if m.settings["split"] == split}
            if by_name.keys() != set(names):
                raise UserError(
                    f"{path}: not every run and condition was measured on split {split}. Run snakemake again."
                )
            table.writerows(document_rows(dataset, split, [by_name[name] for name in names]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, nargs="+", type=Path, help="manifests of kind losses")
    parser.add_argument("--runs", required=True, type=given, help="each run's twin and seed, as JSON")
    parser.add_argument("--settings", required=True, type=given, help="the evaluate section, as JSON")
    parser.add_argument("--summary", required=True, type=Path, help="summary.csv to write")
    parser.add_argument("--comparison", required=True, type=Path, help="comparison.csv to write")
    parser.add_argument("--sections", type=Path, help="sections.csv to write")
    parser.add_argument("--documents", type=Path, help="documents.csv to write")
    options = parser.parse_args()
    settings = EvaluationSettings(**options.settings)
    dataset = Dataset.open(options.config)
    by_split: dict[str, list[Manifest]] = {}
    runs = {name: {"name": name, **facts} for name, facts in options.runs.items()}
    for path in options.losses:
        manifest = read_manifest(path, "losses")
        run = manifest.settings["run"]
        if run not in runs:
            raise UserError(f"{path}: losses of run {run!r}, which the config does not name.")
        runs[run]["architecture"] = manifest.settings["architecture"]
        by_split.setdefault(manifest.settings["split"], []).append(manifest)
    summary: list[dict] = []
    comparison: list[dict] = []
    sections: list[dict] = []
    for split in [name for name in settings.splits if name in by_split]:
        measured = measure(dataset, split, by_split[split], settings.bootstrap_unit)
        bootstrap = (settings.bootstrap, dataset.facts["seed"])
        summary += tables.summary_rows(measured, runs)
        comparison += tables.comparison_rows(measured, runs, *bootstrap)
        if options.sections:
            sections += tables.section_rows(measured, runs, *bootstrap)
    write_text(options.summary, tables.as_csv(tables.SUMMARY, summary))
    write_text(options.comparison, tables.as_csv(tables.COMPARISON, comparison))
    if options.sections:
        write_text(options.sections, tables.as_csv(tables.SECTIONS, sections))
    if options.documents:
        write_documents(dataset, [each for found in by_split.values() for each in found], options.documents)
    for row in comparison:
        if (row["source"], row["seed"], row["retrieval"]) == (ALL, ALL, ON):
            sure = (
                "95 % interval {low:+.2f} … {high:+.2f}" if row["units"] >= ENOUGH else "{units} {unit}s: no interval"
            )
            print(
                "{run} on {split}: {bits_per_byte:.4f} bits per byte, {difference_percent:+.2f} % against "
                "{twin} ".format(**row)
                + f"({sure.format(**row)})",
                file=sys.stderr,
            )
    print(f"{len(summary)} rows → {options.summary}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
