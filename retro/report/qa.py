"""The report's sections Question answering and Instructions: a figure and HTML, from the tables of `retro.qa.score`."""

import argparse
import sys
from pathlib import Path

from markupsafe import Markup

from retro.base import stage
from retro.base.artifacts import write_text
from retro.evaluation.conditions import LABELS
from retro.report import style
from retro.report.read import Row, read_csv, read_lines
from retro.report.style import figure_html

STAGE = "retro.report.qa"
EXAMPLES = 12
CAPTION = (
    "Share of questions about held-out groups, such as countries, answered word for word, with 95 % intervals over "
    "groups; paler, the answer stands in what was written. Models read the question alone (off, GPT) or with what a "
    "search for it found (on)."
)
HEAD = Markup(
    '<div class="wide"><table><tr><th>model</th><th class="n">questions</th><th class="n">exact match, %</th>'
    '<th class="n">95 % interval</th><th class="n">F1, %</th><th class="n">95 % interval</th>'
    '<th class="n">answer in what was written, %</th><th class="n">in the first neighbour, %</th></tr>\n'
)
LINE = Markup("<tr><td>{}</td>" + '<td class="n">{}</td>' * 7 + "</tr>\n")
GAIN = Markup("<li>{}: {} points of exact match {}.</li>\n")
ASKED = Markup("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n")


def label(row: Row) -> str:
    """Which model, whether it was fine-tuned, and if not, how many examples it was shown."""
    shown = f", {row['shots']:.0f} shown" if row["shots"] else ""
    return f"{LABELS[row['retrieval']]}, {'fine-tuned' if row['tuned'] else 'as trained' + shown}"


def bounds(row: Row, name: str) -> str:
    """An interval in words, nothing where there is none."""
    if row[f"{name}_low"] is None:
        return ""
    return f"({row[f'{name}_low']:.1f} … {row[f'{name}_high']:.1f})".replace("-", "−")


def draw(rows: list[Row], folder: Path, name: str) -> None:
    """A bar of exact match for each model and mode, on a paler one of match."""
    with style.figure(folder, name, 1.1 + 0.36 * max(len(rows), 3)) as (_, axes):
        for position, row in enumerate(rows):
            value, low, high = (row[f"exact_match{end}"] for end in ("", "_low", "_high"))
            colour = style.colour(row["retrieval"])
            axes.barh(position, row["match"], color=colour, height=0.7, alpha=0.3)
            bar = axes.barh(position, value, color=colour, height=0.7)
            style.tell(bar[0], f"{label(row)}: {value:.1f} % {bounds(row, 'exact_match')}, match {row['match']:.1f} %")
            edge = max(value, row["match"])
            if low is not None:
                style.whisker(axes, low, high, position)
                edge = max(high, edge)
            axes.text(edge, position, f"  {value:.1f} %", va="center")
        axes.set_yticks(range(len(rows)), [label(row) for row in rows])
        style.bars(axes)
        axes.set_xlim(0, 1.16 * axes.get_xlim()[1])
        axes.set_xlabel("exact match, %; right is better")


def table(rows: list[Row]) -> Markup:
    """The rows of qa.csv as HTML."""
    found = [HEAD]
    for row in rows:
        recall = "" if row["recall@1"] is None else f"{row['recall@1']:.0f}"
        em, f1 = f"{row['exact_match']:.1f}", f"{row['f1']:.1f}"
        exact, overlap, held = bounds(row, "exact_match"), bounds(row, "f1"), f"{row['match']:.1f}"
        cells = (f"{row['questions']:.0f}", em, exact, f1, overlap, held, recall)
        found.append(LINE.format(label(row), *cells))
    return Markup("").join([*found, Markup("</table></div>\n")])


def gains(rows: list[Row]) -> Markup:
    """What fine-tuning and retrieval add, as a list."""
    found = []
    for row in rows:
        what = {"fine-tuning": "fine-tuning", "retrieval": "retrieval on against off"}[row["kind"]]
        value = f"{row['exact_match']:+.1f}".replace("-", "−")
        found.append(GAIN.format(f"{label(row)}, {what}", value, bounds(row, "exact_match")))
    return Markup("<ul>\n{}</ul>\n").format(Markup("").join(found))


def examples(path: Path) -> Markup:
    """The first answers of a file, as they are."""
    lines = read_lines(path)[:EXAMPLES]
    shown = [ASKED.format(line["prompt"], " / ".join(line["answers"]), line["prediction"]) for line in lines]
    head = Markup('<div class="wide"><table><tr><th>question</th><th>answer</th><th>found</th></tr>\n')
    return Markup("").join([head, *shown, Markup("</table></div>\n")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scores", required=True, type=Path, help="qa.csv")
    parser.add_argument("--differences", required=True, type=Path, help="qa-differences.csv")
    parser.add_argument("--answers", required=True, type=Path, help="answers of which the first are shown")
    parser.add_argument("--output-folder", required=True, type=Path, help="where the figure, .svg and .png, goes")
    parser.add_argument("--part", required=True, type=Path, help="parts/<name>.html to write, named as the figure")
    options = parser.parse_args()
    rows, name = read_csv(options.scores), options.part.stem
    draw(rows, options.output_folder, name)
    seeds = {f"{row['seeds']:.0f}" for row in rows}
    parts = [
        figure_html(options.output_folder / f"{name}.svg", CAPTION, table=options.scores.name),
        Markup("<p>Means over {} seeds.</p>\n").format(", ".join(sorted(seeds))) if seeds != {"1"} else "",
        gains(read_csv(options.differences)),
        table(rows),
        Markup("<details><summary>The first answers</summary>{}</details>\n").format(examples(options.answers)),
    ]
    write_text(options.part, Markup("").join(parts))
    print(f"{len(rows)} rows → {options.part}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
