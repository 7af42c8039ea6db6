"""Bits per byte and perplexity of every run, and paired comparisons of RETRO runs with their GPT twins.

summary.csv: a row for each run, mode of retrieval, split and source. comparison.csv: each RETRO run and
mode against its twin of the same seed, with the 95 % interval of a bootstrap over documents or groups; then, for each
run name, all its seeds together (seed `all`; seeds_min and seeds_max are the smallest and largest
difference of a seed). sections.csv: the same by section, where titles read `Something: Section`.
"""

import argparse
import sys
from pathlib import Path

from retro.base import stage
from retro.base.artifacts import Manifest, read_manifest, write_text
from retro.base.log import track
from retro.base.names import ALL
from retro.base.stage import UserError, given
from retro.dataset.dataset import Dataset
from retro.evaluation import tables
from retro.evaluation.bits_per_byte import group_documents, section
from retro.evaluation.conditions import ON
from retro.evaluation.settings import EvaluationSettings

STAGE = "retro.evaluation.summarise"


def measure(dataset: Dataset, split: str, losses: list[Manifest], unit: str) -> tables.Measured:
    """Sum the losses of one split by document. Raises `UserError` where a file does not fit the split."""
    rows = dataset.rows(split)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, nargs="+", type=Path, help="manifests of kind losses")
    parser.add_argument("--runs", required=True, type=given, help="each run's twin and seed, as JSON")
    parser.add_argument("--settings", required=True, type=given, help="the evaluate section, as JSON")
    parser.add_argument("--summary", required=True, type=Path, help="summary.csv to write")
    parser.add_argument("--comparison", required=True, type=Path, help="comparison.csv to write")
    parser.add_argument("--sections", type=Path, help="sections.csv to write")
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
    for row in comparison:
        if (row["source"], row["seed"], row["retrieval"]) == (ALL, ALL, ON):
            print(
                "{run} on {split}: {bits_per_byte:.4f} bits per byte, {difference_percent:+.2f} % against "
                "{twin} (95 % interval {low:+.2f} … {high:+.2f})".format(**row),
                file=sys.stderr,
            )
    print(f"{len(summary)} rows → {options.summary}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
