"""The report's section Indexes: recall and cost of a config's retrievals; indexes.csv, .svg, .png and its HTML.

`draw` shows recall against the cost of a query for the settings of one index.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from retro.base import stage
from retro.base.artifacts import read_manifest, replacing, sha256, write_text
from retro.base.stage import UserError, whole
from retro.dataset.dataset import Dataset
from retro.report import style
from retro.report.style import figure_html
from retro.retrieval.approximate import Sample, read_mapped
from retro.retrieval.settings import IndexSettings

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # 0.2, not 2 × 10⁻¹


def draw(rows: list[dict[str, Any]], folder: Path, name: str, title: str, wanted: float | None = None) -> None:
    """A point a row (`name`, `recall`, `ms`); the cheapest for each recall joined by a line."""
    best, front = -1.0, []
    for row in sorted(rows, key=lambda row: (row["ms"], -row["recall"])):
        if row["recall"] > best:
            best = row["recall"]
            front.append(row)
    with style.figure(folder, name, 4.2) as (_, axes):
        axes.plot([r["ms"] for r in front], [r["recall"] for r in front], color=style.BETTER, zorder=2)
        axes.scatter([r["ms"] for r in rows], [r["recall"] for r in rows], s=22, color=style.BETTER, zorder=3)
        exact = next(row for row in rows if row["name"] == "exact search")
        axes.scatter(exact["ms"], exact["recall"], s=60, marker="D", color=style.WORSE, zorder=4)
        axes.annotate("exact search", (exact["ms"], exact["recall"]), (0, -14), textcoords="offset points", ha="center")
        if wanted is not None:
            axes.axhline(wanted, color=style.SOFT, linewidth=0.8, linestyle="--")
        axes.set(xscale="log", xlabel="CPU milliseconds a query", ylabel="recall", title=title)
        plain(axes)


def draw_indexes(rows: list[dict[str, Any]], folder: Path, k: int) -> None:
    """Figure `indexes`: a labelled point an index (`label`, `recall`, `ms`, `bytes`), as large as its vectors."""
    with style.figure(folder, "indexes", 5.2) as (_, axes):
        axes.scatter(
            [row["ms"] for row in rows],
            [row["recall"] for row in rows],
            s=[20 + row["bytes"] / 8 for row in rows],
            color=style.BETTER,
            alpha=0.6,
            linewidth=0,
        )
        gap, above = 0.045, 2.0
        span = max(1.0 - min(row["recall"] for row in rows), 0.02)
        for row in sorted(rows, key=lambda row: (-row["recall"], row["ms"])):
            height = min(row["recall"], above - gap * span)  # labels, one below the other, never overlap
            above = height
            axes.annotate(
                f"{row['label']} · {row['bytes']:.0f} B",
                (row["ms"], row["recall"]),
                (1.02, height),
                textcoords=axes.get_yaxis_transform(),
                fontsize=8.5,
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": style.SOFT, "linewidth": 0.5},
            )
        axes.set(
            xscale="log",
            xlabel="CPU milliseconds a query (exclusion and exact scores included)",
            ylabel=f"recall@{k}",
            title="Indexes: recall against cost; areas are bytes a vector",
        )
        plain(axes)


def plain(axes: Axes) -> None:
    """Numbers as people write them on the logarithmic axis."""
    axes.xaxis.set_major_formatter(PLAIN)
    low, high = axes.get_xlim()
    if high < 10 * low:  # hardly a power of ten to label
        axes.xaxis.set_minor_formatter(PLAIN)


STAGE = "retro.report.indexes"
COLUMNS = ["name", "factory", "recall", "recall_of_split", "ms", "bytes"]

ENOUGH = 0.95  # recall that the section's first sentence asks for
CAPTION = (
    "Each point is an index: the share of the exact nearest neighbours that it finds, and what a query costs on one "
    "CPU core, exclusion and exact scores of the candidates included. The larger a point, the more bytes a vector "
    "takes. Exact search is hard to beat on a small database, but costs as much more as the database is larger."
)
HEAD = (
    '<tr><th>retrieval</th><th>index</th><th class="n">recall@{k}</th><th class="n">recall@{k}, all of {split}</th>'
    '<th class="n">CPU ms a query</th><th class="n">bytes a vector</th></tr>'
)


def sentence(rows: list[dict[str, Any]], k: int, vectors: int, queries: int) -> str:
    """What was measured, and the cheapest and the smallest index that find enough."""
    told = (
        f"Different indexes over the {vectors:,} vectors of the database, searched for the {k} nearest neighbours of "
        f"{queries:,} chunks."
    )
    enough = [row for row in rows if row["recall"] >= ENOUGH]
    if not enough:
        return f"{told} None finds {ENOUGH:.0%} of them."
    fast, small = (min(enough, key=lambda row: (row[what], row["ms"])) for what in ("ms", "bytes"))
    return (
        f"{told} The cheapest that finds {ENOUGH:.0%} of them is {fast['factory']} ({fast['ms']:.2f} ms a query), the "
        f"smallest {small['factory']} ({small['bytes']:,.0f} bytes a vector)."
    )


def line(row: dict[str, Any]) -> Markup:
    """A row of the table as HTML."""
    recorded = "" if row["recall_of_split"] is None else f"{row['recall_of_split']:.3f}"
    cells = (row["name"], row["factory"], f"{row['recall']:.3f}", recorded, f"{row['ms']:.2f}", f"{row['bytes']:,.0f}")
    return Markup("<tr><td>{}</td><td>{}</td>" + '<td class="n">{}</td>' * 4 + "</tr>\n").format(*cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--names", required=True, nargs="+", help="names of the retrievals")
    parser.add_argument("--left-out", nargs="*", default=[], help="names of those with encoders of their own")
    parser.add_argument("--neighbours", required=True, nargs="+", type=Path, help="their neighbours' manifests")
    parser.add_argument("--indexes", required=True, nargs="+", type=Path, help="their indexes' manifests")
    parser.add_argument("--split", required=True, help="the split these are the neighbours of")
    parser.add_argument("--k", type=whole, default=10, help="neighbours a query")
    parser.add_argument("--sample", type=whole, default=1000, help="queries measured")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the figure and the table")
    parser.add_argument("--part", required=True, type=Path, help="parts/indexes.html to write")
    options = parser.parse_args()
    dataset, rows = Dataset.open(options.config), []
    own = {sha256(dataset.folder / "embeddings" / name / "manifest.json") for name in dataset.sources}
    sample = Sample(dataset, options.split, options.sample, options.k)
    for name, neighbours, index in zip(options.names, options.neighbours, options.indexes, strict=True):
        found, built = read_manifest(neighbours, "neighbours"), read_manifest(index, "index")
        if not own <= set(built.facts["inputs"].values()):
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
    with (
        replacing(options.output_folder / "indexes.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    labelled = [
        {**row, "label": row["factory"] if row["name"] != "auto" else f"auto: {row['factory']}"} for row in rows
    ]
    draw_indexes(labelled, options.output_folder, options.k)
    drawn = figure_html(
        options.output_folder / "indexes.svg", CAPTION, table=f"{options.output_folder.name}/indexes.csv"
    )
    head = Markup(HEAD).format(k=options.k, split=options.split)
    table = head + Markup("").join(line(row) for row in sorted(rows, key=lambda row: row["ms"]))
    told = sentence(rows, options.k, len(sample.database), len(sample.truth))
    if options.left_out:
        told += f" Not compared, their encoders being others: {', '.join(options.left_out)}."
    part = Markup('<p>{}</p>\n{}<div class="wide"><table>{}</table></div>\n')
    write_text(options.part, part.format(told, drawn, table))


if __name__ == "__main__":
    stage.run(main)
