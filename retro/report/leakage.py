"""The report's section Leakage: figure leakage.svg/png and its HTML, from leakage.csv."""

import argparse
import sys
from pathlib import Path

from markupsafe import Markup

from retro.base import stage
from retro.base.artifacts import write_text
from retro.evaluation.conditions import LABELS, NONE, OFF, ON
from retro.report import style
from retro.report.read import Row, read_csv, where
from retro.report.style import figure_html, interval, percent

STAGE = "retro.report.leakage"
OVERLAPS = {"training": "Overlap with the training data", "shown": "Overlap with the neighbours shown"}
MODES = {name: LABELS[name] for name in (NONE, OFF, ON)}
CAPTION = (
    "Bits per byte of the chunks whose longest common run of tokens is at most a share of the chunk; below, how many "
    "chunks that are: a gap between blue and grey that remains at the left end is no copying of long passages; short "
    "runs, of up to an eighth of a chunk, can still be copied there."
)
HEAD = (
    "<tr><th>overlap with</th><th>share of the chunk</th><th>retrieval</th>"
    '<th class="n">chunks</th><th class="n">bits per byte</th><th class="n">against the GPT</th><th class="n">95 % '
    "interval</th></tr>"
)


AGED = (
    '<tr><th>older than the text by</th><th class="n">chunks</th><th class="n">bits per byte</th>'
    '<th class="n">against the GPT</th><th class="n">95 % interval</th><th class="n">against retrieval off</th>'
    '<th class="n">95 % interval</th></tr>'
)


def days(over: float | None, alpha: float | None) -> str:
    """What ages a row is of."""
    if alpha is None:
        return f"more than {over:.0f} days"
    return f"{over:.0f} … {alpha:.0f} days" if over is not None else "the same date, or later"


def by_age(rows: list[Row]) -> Markup:
    """The table by age of what was read, RETRO's rows; nothing where no document has a date."""
    found = Markup("")
    for row in where(rows, retrieval=ON, kind="age"):
        cells = [days(row["over"], row["alpha"]), f"{row['chunks']:.0f}", f"{row['bits_per_byte']:.4f}"]
        for value, low, high in (("difference_percent", "low", "high"), ("off_percent", "off_low", "off_high")):
            known = row[value] is not None
            cells += [percent(row[value]), interval({"low": row[low], "high": row[high]})] if known else ["", ""]
        found += Markup("<tr><td>{}</td>" + '<td class="n">{}</td>' * 6 + "</tr>\n").format(*cells)
    told = Markup(
        "<details open><summary>By age of what was read</summary><p>How much older the neighbours were, on average, "
        "that RETRO read while it predicted a chunk. Chunks without a date, or with none read, are left out.</p>"
        '<div class="wide">'
        "<table>{}{}</table></div></details>\n"
    )
    return told.format(Markup(AGED), found) if found else found


def first(rows: list[Row]) -> list[Row]:
    """The rows of the first RETRO run that has a twin, and of that twin, in one split."""
    run = next((row for row in rows if row["retrieval"] == ON and row["twin"]), None)
    if run is None:
        return []
    names = (run["run"], run["twin"])
    return [row for row in rows if row["run"] in names and row["split"] == run["split"] and row["retrieval"] in MODES]


def draw(rows: list[Row], folder: Path) -> None:
    """A column for each overlap: bits per byte of r ≤ alpha above, chunks below."""
    ratios = {"height_ratios": [3, 1]}
    with style.figure(folder, "leakage", 4.6, nrows=2, ncols=2, sharex=True, sharey="row", gridspec_kw=ratios) as (
        _,
        axes,
    ):
        for (above, below), (name, title) in zip(axes.T, OVERLAPS.items(), strict=True):
            here = where(rows, overlap=name, kind="up to")
            if not here:
                style.nothing(above, "No RETRO run has a GPT twin.")
                continue
            for mode, label in MODES.items():
                mine = where(here, retrieval=mode)
                x, y = [row["alpha"] for row in mine], [row["bits_per_byte"] for row in mine]
                above.plot(x, y, "o-", color=style.colour(mode), markersize=4, label=label)
                texts = [f"{label}, α ≤ {at:.3g}: {size:.4f} bits per byte" for at, size in zip(x, y, strict=True)]
                style.points(above, x, y, texts)
                known = [row for row in mine if row["bpb_low"] is not None]
                above.fill_between(
                    [row["alpha"] for row in known], [row["bpb_low"] for row in known],
                    [row["bpb_high"] for row in known], color=style.colour(mode), alpha=0.12, linewidth=0,
                )  # fmt: skip
            above.set_title(title)
            mine = where(here, retrieval=ON)
            below.bar([row["alpha"] for row in mine], [row["chunks"] for row in mine], 0.08, color=style.SOURCES[1])
            below.set_xlabel("largest share of a chunk that overlaps (α)")
        axes[0, 0].set_ylabel("bits per byte")
        axes[1, 0].set_ylabel("chunks")
        if rows:
            axes[0, 1].legend()


def line(row: Row) -> Markup:
    """A row of a bucket as HTML."""
    known = row["difference_percent"] is not None
    span = f"{100 * row['over']:.1f} … {100 * row['alpha']:.1f} %"
    cells = (row["overlap"], span, MODES[row["retrieval"]], f"{row['chunks']:.0f}", f"{row['bits_per_byte']:.4f}")
    difference = (percent(row["difference_percent"]), interval(row)) if known else ("", "")
    return Markup("<tr>" + "<td>{}</td>" * 3 + '<td class="n">{}</td>' * 4 + "</tr>\n").format(*cells, *difference)


def sentence(rows: list[Row]) -> str:
    """What is left of the gain where under an eighth of a chunk overlaps with what the model is shown."""
    found = [row for row in where(rows, retrieval=ON, overlap="shown", kind="up to") if row["low"] is not None]
    if not found:
        return ""
    little, whole = found[0], found[-1]
    return (
        f"Against the GPT, retrieval changes bits per byte by {percent(whole['difference_percent'])} {interval(whole)} "
        f"on all {whole['chunks']:.0f} chunks, and by {percent(little['difference_percent'])} {interval(little)} on "
        f"the {little['chunks']:.0f} of which at most {100 * little['alpha']:.1f} % stands in the neighbours shown."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", required=True, type=Path, help="leakage.csv")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the figure")
    parser.add_argument("--part", required=True, type=Path, help="parts/leakage.html to write")
    options = parser.parse_args()
    rows = first(read_csv(options.table))
    draw(rows, options.output_folder)
    told = Markup(
        "<p>For each evaluated chunk, the longest run of tokens it shares with its 10 nearest chunks of the training "
        "data and their continuations (what the weights may remember), and with the neighbours retrieval shows "
        "(what can be copied), as a share of the chunk.</p>\n<p>{}</p>\n{}<details><summary>By overlap</summary>"
        '<div class="wide"><table>{}{}</table></div></details>\n{}'
    )
    buckets = Markup("").join(line(row) for row in where(rows, kind="bucket"))
    drawn = figure_html(options.output_folder / "leakage.svg", CAPTION, table="leakage.csv")
    write_text(options.part, told.format(sentence(rows), drawn, Markup(HEAD), buckets, by_age(rows)))
    print(f"leakage → {options.output_folder}, {options.part}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
