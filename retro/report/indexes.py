"""Measure the indexes of a config's retrievals and draw recall against cost: indexes.csv, .svg, .png."""

import argparse
import csv
import sys
from pathlib import Path

from retro import errors
from retro.artifacts import read_manifest, replacing
from retro.errors import UserError
from retro.recorded import Dataset
from retro.report.recall import draw_indexes
from retro.retrieval.approximate import read_mapped
from retro.retrieval.costs import Sample
from retro.retrieval.settings import IndexSettings

STAGE = "retro.report.indexes"
COLUMNS = ["name", "factory", "recall", "recall_of_split", "ms", "bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--names", required=True, nargs="+", help="names of the retrievals")
    parser.add_argument("--neighbours", required=True, nargs="+", type=Path, help="their neighbours' manifests")
    parser.add_argument("--indexes", required=True, nargs="+", type=Path, help="their indexes' manifests")
    parser.add_argument("--split", required=True, help="the split these are the neighbours of")
    parser.add_argument("--k", type=int, default=10, help="neighbours a query")
    parser.add_argument("--sample", type=int, default=1000, help="queries measured")
    parser.add_argument("--output-folder", required=True, type=Path)
    options = parser.parse_args()
    sample, rows = Sample(Dataset.open(options.config), options.split, options.sample, options.k), []
    for name, neighbours, index in zip(options.names, options.neighbours, options.indexes, strict=True):
        found, built = read_manifest(neighbours, "neighbours"), read_manifest(index, "index")
        if built.counts.get("width") != sample.vectors.width:
            raise UserError(
                f"{index}: not an index of the dataset's own embeddings, which alone can be compared. Leave it "
                "out of --indexes."
            )
        path = built.file("index.faiss")
        opened = None if built.settings["exact"] else read_mapped(path)
        measured = sample.measure(opened, IndexSettings(**found.settings["index"]))
        size = round(path.stat().st_size / built.counts["vectors"], 1)
        recorded = found.counts["recall"].get(str(options.k))
        rows.append({"name": name, "factory": built.settings["factory"], "recall_of_split": recorded, "bytes": size})
        rows[-1] |= measured
        print(f"{name}: {rows[-1]}", file=sys.stderr)
    options.output_folder.mkdir(parents=True, exist_ok=True)
    with replacing(options.output_folder / "indexes.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    labelled = [
        {**row, "label": row["factory"] if row["name"] != "auto" else f"auto: {row['factory']}"} for row in rows
    ]
    draw_indexes(labelled, options.output_folder, options.k)


if __name__ == "__main__":
    errors.run(main)
