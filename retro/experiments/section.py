"""The report's section Experiments: a question, a figure and a table for each."""

import argparse
import sys
from pathlib import Path

from markupsafe import Markup

from retro.base import stage
from retro.base.artifacts import write_text
from retro.base.stage import UserError
from retro.experiments.catalogue import CATALOGUE
from retro.report.read import Row, read_csv
from retro.report.style import figure_html, interval, percent

STAGE = "retro.experiments.section"
HEAD = Markup(
    '<div class="wide"><table><tr><th></th><th>retrieval</th><th class="n">bits per byte</th>'
    '<th class="n">against the GPT</th><th class="n">95 % interval</th>'
    '<th class="n">against off</th><th class="n">95 % interval</th></tr>\n'
)
LINE = Markup("<tr><td>{}</td><td>{}</td>" + '<td class="n">{}</td>' * 5 + "</tr>\n")


def table(rows: list[Row]) -> Markup:
    """The rows of an experiment as HTML."""
    found = [HEAD]
    for row in rows:
        off = {"low": row["off_low"], "high": row["off_high"]}
        known = [percent(row[key]) if row[key] is not None else "" for key in ("difference_percent", "off_percent")]
        size = f"{row['bits_per_byte']:.4f}"
        found.append(
            LINE.format(row["label"], row["retrieval"], size, known[0], interval(row), known[1], interval(off))
        )
    return Markup("").join([*found, Markup("</table></div>\n")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", required=True, nargs="+", type=Path, help="<experiment>.csv, its figure beside it")
    parser.add_argument("--output", required=True, type=Path, help="parts/experiments.html to write")
    options = parser.parse_args()
    found = []
    for path in options.tables:
        experiment = CATALOGUE.get(path.stem)
        if experiment is None:
            raise UserError(f"{path}: not the table of an experiment. Give some of {', '.join(CATALOGUE)}.csv.")
        found.append(Markup("<h3>{}</h3>\n<p>{}</p>\n").format(experiment.title, experiment.question))
        found.append(
            figure_html(
                path.with_suffix(".svg"),
                experiment.caption,
                f"experiment-{path.stem}",
                table=f"{path.parent.name}/{path.name}",
            )
        )
        rows = read_csv(path)
        found.append(Markup("<details><summary>{} rows</summary>{}</details>\n").format(len(rows), table(rows)))
    write_text(options.output, Markup("").join(found))
    print(f"{len(options.tables)} experiments → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
