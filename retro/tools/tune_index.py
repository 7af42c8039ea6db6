"""Sweep the search parameters of an index and say which setting is the cheapest that finds enough.

python -m retro.tools.tune_index --config results/<dataset>/config.json --factory IVF256,SQ8 --recall 0.95

Builds the index string given (or reads the dataset's own index), searches a seeded sample of a split's chunks
with every setting of nprobe, ef_search and k_factor that the index knows, compares with exact search, prints a
table, and writes tune.csv, tune.svg and tune.png. Times are CPU milliseconds a query, everything included.
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss

from retro.base import command
from retro.base.artifacts import replacing
from retro.base.names import LISTED
from retro.base.stage import UserError, finite, whole
from retro.dataset.dataset import Dataset
from retro.dataset.named import recorded_config
from retro.report.indexes import draw
from retro.retrieval import factory
from retro.retrieval.approximate import Sample, read_mapped
from retro.retrieval.index import make
from retro.retrieval.settings import IndexSettings

COLUMNS = ["name", "nprobe", "ef_search", "k_factor", "recall", "ms"]


def settings_of(index: faiss.Index) -> Iterator[dict[str, Any]]:
    """The settings worth trying: each parameter the index has, doubled from little to plenty."""
    layers = list(factory.layers(index))
    grid: dict[str, list[int] | list[float]] = {}
    lists = [layer.nlist for layer in layers if isinstance(layer, faiss.IndexIVF)]
    if lists:
        grid["nprobe"] = [1 << step for step in range(max(lists).bit_length()) if 1 << step <= min(max(lists), 512)]
    elif any(isinstance(layer, faiss.IndexHNSW) for layer in layers):
        grid["ef_search"] = [16, 32, 64, 128, 256, 512, 1024]
    coded = any(hasattr(layer, "pq") or hasattr(layer, "rabitq") or hasattr(layer, "sq") for layer in layers)
    if coded or any(isinstance(layer, faiss.IndexRefine) for layer in layers):
        grid["k_factor"] = [1.0, 2.0, 4.0, 8.0, 16.0]
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def cheapest(rows: list[dict[str, Any]], recall: float) -> dict[str, Any] | None:
    """The row of the least time that reaches `recall`; None if none does."""
    return min((row for row in rows if row["recall"] >= recall), key=lambda row: row["ms"], default=None)


def suggestion(name: str, rows: list[dict[str, Any]], recall: float) -> str:
    """A line about the cheapest row, in words of a config; the first is exact search, which is all that is left where
    there is nothing to find.
    """
    chosen = cheapest(rows, recall) or rows[0]
    what = chosen["name"] if chosen is rows[0] else f"dataset.index: {{factory: {name!r}, {told(chosen)}}}"
    return f"cheapest with recall {recall}: {what} ({chosen['ms']:.3f} ms a query)"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of `COLUMNS`, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def told(row: dict[str, Any]) -> str:
    """Settings of a row, as they are written in a config."""
    known = [f"{key}: {row[key]:g}" for key in ("nprobe", "ef_search", "k_factor") if key in row]
    return ", ".join(known) or "(no search parameters)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=recorded_config, help="a dataset, by name or folder")
    parser.add_argument("--factory", help="faiss factory string to build and sweep; default: the dataset's index")
    parser.add_argument("--split", default="valid", choices=LISTED, help="where queries come from")
    parser.add_argument("--sample", type=whole, default=1000, help="queries, a seeded random sample of the split")
    parser.add_argument("--k", type=whole, default=10, help="recall of the first k; as many as saved are searched")
    parser.add_argument("--recall", type=finite, default=0.95, help="the recall wanted, 0 to 1")
    parser.add_argument(
        "--output-folder", type=Path, help="for tune.csv, .svg and .png; default: tune/ beside the config"
    )
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
    options = parser.parse_args()
    if not 0 <= options.recall <= 1:
        raise UserError(f"--recall {options.recall:g}: wanted a share from 0 to 1. Give 0.95 for 95 %.")
    dataset = Dataset.open(options.config)
    sample = Sample(dataset, options.split, options.sample, options.k, options.threads)
    base, manifest = dataset.facts["index"], dataset.manifest("index/manifest.json", "index")
    name = options.factory or manifest.settings["factory"]
    if options.factory:
        index = make(name, sample.vectors, sample.database, IndexSettings(**base), dataset.facts["seed"])
    else:
        index = read_mapped(manifest.file("index.faiss"))
    rows = [{"name": "exact search", **sample.measure(None, IndexSettings(**base))}]
    print(f"{name}: {len(sample.queries)} chunks of {options.split}, recall@{options.k}, CPU ms a query")
    for setting in [] if factory.is_exact(index) else settings_of(index):
        rows.append({"name": name, **setting, **sample.measure(index, IndexSettings(**{**base, **setting}))})
        print(f"  {told(setting):40} recall {rows[-1]['recall']:.4f}  {rows[-1]['ms']:.3f} ms", flush=True)
    print(f"  {'exact search':40} recall 1.0000  {rows[0]['ms']:.3f} ms")
    folder = options.output_folder or dataset.folder / "tune"
    write_csv(folder / "tune.csv", rows)
    draw(rows, folder, "tune", f"{name}: recall@{options.k} against time", wanted=options.recall)
    print(suggestion(name, rows, options.recall))
    print(f"{folder}: tune.csv, tune.svg, tune.png", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
