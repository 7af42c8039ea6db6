"""The report's section Beyond copying: copying.csv, figure copying.svg/png and its HTML, from losses with and without a
copier (`retro.evaluation.copying`).

copying.csv has the first RETRO run and its twin, seeds pooled, a row for each condition and `kind`. `all`: the whole
split, against the GPT and against the GPT with a copier of as many neighbours, `k`. `match`: targets by how many
of the tokens before them a neighbour has (`least` … `most`), in nats a token. `overlap`: chunks by the share of them
that stands in a neighbour (above `least`, up to `most`), as buckets of leakage.csv.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from retro.base import stage
from retro.base.artifacts import Manifest, read_manifest, write_text
from retro.base.names import ALL, unseeded
from retro.base.stage import given
from retro.dataset.dataset import Dataset
from retro.evaluation import tables
from retro.evaluation.bits_per_byte import bits_per_byte
from retro.evaluation.conditions import NONE, OFF, ON, Condition
from retro.evaluation.copying import FEW, LONGEST
from retro.evaluation.filtered import kept, slices
from retro.evaluation.leakage import ratio, views
from retro.evaluation.settings import EvaluationSettings
from retro.evaluation.summarise import measure
from retro.report import style
from retro.report.read import Row, read_csv, where
from retro.report.readers import BOTH, COPIER, READERS, RETRO, label, reader
from retro.report.style import figure_html, interval, percent

STAGE = "retro.report.copying"
COLUMNS = (
    "run", "twin", "seed", "retrieval", "split", "kind", "k", "least", "most", "tokens", "chunks", "bytes", "nats",
    "bits_per_byte", "difference_percent", "low", "high", "copier_percent", "copier_low", "copier_high", "seeds",
    "unit", "units",
)  # fmt: skip
MATCHES = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, LONGEST - 1), (LONGEST, LONGEST))  # lengths told together


CAPTION = (
    "Bits per byte by the number of neighbours: the GPT with a copier that is trained on nothing, RETRO, and RETRO "
    "with the same copier; without neighbours, the GPT and RETRO alone. Where blue lies on green, RETRO does no more "
    "than copying; where the dashed line lies below green, it knows what copying does not give."
)


@dataclass(frozen=True)
class Pair:
    """The losses of the seeds of a RETRO run (`names`) and of their `twins` in one split, by (run, condition)."""

    names: list[str]
    twins: list[str]
    losses: dict[tuple[str, str], Manifest]

    @classmethod
    def of(cls, losses: list[Manifest], runs: dict[str, dict]) -> "Pair":
        """The first run that has a twin, all its seeds."""
        found = {(m.settings["run"], m.settings["mode"]): m for m in losses}
        measured = [name for name, run in runs.items() if run["twin"] and (name, ON) in found]
        names = [name for name in measured if unseeded(name) == unseeded(measured[0])]
        return cls(names, [runs[name]["twin"] for name in names], found)

    def members(self, condition: Condition) -> list[str]:
        """The runs that are measured under a condition, seed by seed."""
        return self.twins if condition.source == NONE else self.names

    def conditions(self) -> dict[str, int]:
        """Conditions that all seeds were measured under, with the number of neighbours, in the order of the table.

        Without those whose copier could not be fitted, for want of matches in the valid split.
        """
        found = {}
        for name in dict.fromkeys(mode for _, mode in self.losses):
            manifests = [self.losses.get((member, name)) for member in self.members(Condition.parse(name))]
            if all(m is not None and fitted(m) for m in manifests) and manifests[0]:
                found[name] = int(manifests[0].settings["neighbours_used"])
        order = [NONE, OFF, *(place for place, _ in enumerate(READERS))]

        def key(name: str) -> tuple[int, int]:
            condition = Condition.parse(name)
            places = [2 + place for place, reader in enumerate(READERS) if reader.has(condition)]
            return (order.index(name) if name in order else places[0] if places else len(order), found[name])

        return {name: found[name] for name in sorted(found, key=key)}

    def stacked(self, name: str, values: dict[tuple[str, str], np.ndarray]) -> np.ndarray:
        """What `values` have of a condition, the seeds as last axis."""
        return np.stack([values[member, name] for member in self.members(Condition.parse(name))], axis=-1)


def fitted(losses: Manifest) -> bool:
    """Whether there were matches enough to fit weights on; they are 0 where a model copies by itself."""
    found = losses.counts.get("fitted_on")
    return found is None or sum(found[1:]) >= FEW


def copier(k: int) -> str:
    """The condition of the GPT with a copier of `k` neighbours."""
    return Condition(NONE, k, copy=True).name


Nats = dict[tuple[str, str], np.ndarray]  # by run and condition


class Table:
    """The rows of copying.csv, of one split."""

    def __init__(self, dataset: Dataset, split: str, pair: Pair, settings: EvaluationSettings):
        self.pair, self.conditions = pair, pair.conditions()
        losses = {key: manifest for key, manifest in pair.losses.items() if key[1] in self.conditions}
        self.measured = measure(dataset, split, list(losses.values()), settings.bootstrap_unit)
        self.arrays = {key: manifest.array("losses.npy") for key, manifest in losses.items()}
        self.records, self.draw = dataset.store.chunks(dataset.rows(split)), (settings.bootstrap, dataset.facts["seed"])
        self.same = {
            "run": unseeded(pair.names[0]), "twin": unseeded(pair.twins[0]), "seed": ALL, "split": split,
            "seeds": len(pair.names), "unit": "document" if self.measured.units is None else "group",
        }  # fmt: skip

    def rows(self, overlap: Manifest | None) -> Iterator[dict[str, Any]]:
        """All of them."""
        yield from self.whole()
        yield from self.by_match()
        if overlap is not None:
            yield from self.by_overlap(overlap)

    def _row(self, name: str, kind: str, tokens: int, **more: Any) -> dict[str, Any]:
        return {**self.same, "retrieval": name, "kind": kind, "k": self.conditions[name], "tokens": tokens, **more}

    def _compared(self, name: str, nats: Nats, size: np.ndarray) -> dict[str, Any]:
        """What documents' nats under a condition are in bits per byte, and against the GPT and its copier.

        Of documents that have bytes: `size` int64 [D].
        """
        pair, chosen, k = self.pair, size > 0, self.conditions[name]
        ours = pair.stacked(name, nats)
        found = {"bytes": int(size.sum()), "bits_per_byte": float(bits_per_byte(ours.sum(0).mean(), size.sum()))}
        if name != NONE:
            gpt = self.measured.compare(ours, pair.stacked(NONE, nats), chosen, *self.draw)
            found |= {"difference_percent": gpt.percent, "low": gpt.low, "high": gpt.high, "units": gpt.units}
        if k and copier(k) in self.conditions and name != copier(k):
            other = self.measured.compare(ours, pair.stacked(copier(k), nats), chosen, *self.draw)
            found |= {"copier_percent": other.percent, "copier_low": other.low, "copier_high": other.high}
            found["units"] = other.units
        return found

    def whole(self) -> Iterator[dict[str, Any]]:
        """A row for each condition, of all chunks."""
        documents = self.measured.documents
        tokens = int(documents.tokens.sum())
        for name in self.conditions:
            nats = float(self.pair.stacked(name, self.measured.nats).sum(0).mean())
            compared = self._compared(name, self.measured.nats, documents.bytes)
            yield self._row(name, ALL, tokens, chunks=len(self.records), nats=nats / tokens, **compared)

    def by_match(self) -> Iterator[dict[str, Any]]:
        """Mean nats of targets by the length of their match in the neighbours: of the GPT and of who reads as many."""
        real = np.isfinite(self.arrays[self.pair.twins[0], NONE])
        for k in sorted({k for name, k in self.conditions.items() if name == copier(k)}):
            lengths = self.pair.losses[self.pair.twins[0], copier(k)].array("lengths.npy")
            for least, most in MATCHES:
                chosen = real & (lengths >= least) & (lengths <= most)
                if not chosen.any():
                    continue
                for name in [NONE, *(name for name, shown in self.conditions.items() if shown == k)]:
                    runs = self.pair.members(Condition.parse(name))
                    nats = [float(self.arrays[run, name][chosen].mean(dtype=np.float64)) for run in runs]
                    more = {"k": k, "least": least, "most": most, "nats": sum(nats) / len(nats)}
                    yield {**self._row(name, "match", int(chosen.sum())), **more}

    def by_overlap(self, overlap: Manifest) -> Iterator[dict[str, Any]]:
        """Buckets of chunks by overlap with what the run is shown as it was trained."""
        shown = next(self.pair.losses[run, ON].settings for run in self.pair.names)
        view = (shown["neighbours_used"], shown["retrieved_chunks"])
        array = next((name for name, seen in views(overlap.settings).items() if seen == view), None)
        if array is None:
            return
        documents, chunk = self.measured.documents, {}
        for key, losses in self.arrays.items():
            chunk[key] = np.asarray(np.nansum(losses, 1, np.float64))
        for kind, over, alpha, chosen in slices(ratio(overlap.array(f"{array}.npy"), self.records["length"])):
            if kind != "bucket" or not chosen.any():
                continue
            size = kept(documents, self.records["bytes"].astype(np.int64), chosen)
            nats = {key: kept(documents, values, chosen) for key, values in chunk.items()}
            tokens = int(self.records["length"][chosen].sum(dtype=np.int64))
            more = {"least": over, "most": alpha, "chunks": int(chosen.sum())}
            for name, k in self.conditions.items():
                if k in (0, view[0]) and size.sum():
                    yield self._row(name, "overlap", tokens, **more, **self._compared(name, nats, size))


def draw(rows: list[Row], folder: Path) -> None:
    """Bits per byte over the number of neighbours, `k`, a line for each reader; all begin without neighbours.

    A row without a number of neighbours is a level.
    """
    counts = sorted({row["k"] for row in rows if row["k"] is not None})
    with style.figure(folder, "copying", 3.9) as (_, axes):
        if len(counts) < 2:
            style.nothing(axes, "Nothing was copied.")
            return
        for each in READERS:
            mine = [row for row in rows if row["retrieval"] == each.start or reader(row["retrieval"]) == each]
            if not any(reader(row["retrieval"]) == each for row in mine):
                continue
            how = {"linestyle": each.line, "color": style.COLOURS[each.colour], "label": each.label}
            mine.sort(key=lambda row: -1 if row["k"] is None else row["k"])
            if mine[0]["k"] is None:
                axes.axhline(mine[0]["bits_per_byte"], **how)
            at = [0 if row["k"] is None else counts.index(row["k"]) for row in mine]
            sizes = [row["bits_per_byte"] for row in mine]
            if mine[0]["k"] is not None:
                axes.plot(at, sizes, "o", markersize=4.5, **how)
            texts = [f"{label(row)}, k {row['k'] or 0:.0f}: {row['bits_per_byte']:.4f} bits per byte" for row in mine]
            style.points(axes, at, sizes, texts)
        axes.set_xticks(range(len(counts)), [f"{k:.0f}" for k in counts])
        axes.set(xlabel="neighbours of a chunk (k)", ylabel="bits per byte")
        axes.legend(loc="upper right", handlelength=3.5)  # so long that dashes are seen


HEAD = Markup(
    '<div class="wide"><table><tr><th></th><th class="n">neighbours</th><th class="n">bits per byte</th>'
    '<th class="n">against the GPT</th><th class="n">95 % interval</th>'
    '<th class="n">against GPT + copier</th><th class="n">95 % interval</th></tr>\n'
)


def differences(row: Row) -> tuple[str, str, str, str]:
    """The cells that compare: with the GPT, its interval, with the copier, its interval."""
    other = {"low": row["copier_low"], "high": row["copier_high"]}
    known = [percent(row[key]) if row[key] is not None else "" for key in ("difference_percent", "copier_percent")]
    return known[0], interval(row), known[1], interval(other)


def table(rows: list[Row]) -> Markup:
    """The rows of all chunks as HTML."""
    line = Markup("<tr><td>{}</td>" + '<td class="n">{}</td>' * 6 + "</tr>\n")
    cells = [(label(row), f"{row['k']:.0f}", f"{row['bits_per_byte']:.4f}", *differences(row)) for row in rows]
    return Markup("").join([HEAD, *(line.format(*each) for each in cells), Markup("</table></div>\n")])


def crossed(rows: list[Row], heads: tuple[str, str], value: str, cell: str, span: str) -> Markup:
    """Rows of slices as HTML: a line for each slice, a column for each condition.

    `heads` of the first two columns, the second a column of the table; `cell` and `span` are formats, of a `value` and
    of the slice it is of.
    """
    names = list(dict.fromkeys(row["retrieval"] for row in rows))
    slices: dict[tuple[float, float], dict[str, Row]] = {}
    for row in rows:
        slices.setdefault((row["least"], row["most"]), {})[row["retrieval"]] = row
    labels = [heads[1], *(label(where(rows, retrieval=name)[0]) for name in names)]
    lines = [Markup("<th>{}</th>").format(heads[0]) + _cells("th", labels)]
    for (least, most), here in slices.items():
        amount = f"{next(iter(here.values()))[heads[1]]:,.0f}"
        told = span.format(least, most) if least != most else f"{least:.0f}"
        cells = [amount, *(cell.format(here[name][value]) if name in here else "" for name in names)]
        lines.append(Markup("<td>{}</td>").format(told) + _cells("td", cells))
    made = Markup("").join(Markup("<tr>{}</tr>\n").format(line) for line in lines)
    return Markup('<div class="wide"><table>{}</table></div>\n').format(made)


def _cells(tag: str, texts: list[str]) -> Markup:
    return Markup("").join(Markup('<{0} class="n">{1}</{0}>').format(tag, text) for text in texts)


def by_copier(rows: list[Row]) -> dict[float, dict[str, Row]]:
    """Rows of all chunks by number of neighbours and label, where the GPT was mixed with a copier of as many."""
    found: dict[float, dict[str, Row]] = {}
    for row in where(rows, kind=ALL):
        found.setdefault(row["k"], {})[label(row)] = row
    return {k: here for k, here in sorted(found.items()) if COPIER.label in here}


def sentences(rows: list[Row]) -> list[str]:
    """What a copier gives beside what RETRO gives: one for each number of neighbours."""
    found, gpt = [], where(rows, kind=ALL, retrieval=NONE)
    own = next((row["k"] for row in where(rows, kind=ALL, retrieval=ON)), None)
    for k, here in by_copier(rows).items():
        copy, retro, both = (here.get(each.label) for each in (COPIER, RETRO, BOTH))
        if copy is None or retro is None or both is None:
            continue
        other = {"low": retro["copier_low"], "high": retro["copier_high"]}
        found.append(
            f"With {k:.0f} neighbours{', as in training,' if k == own else ''} a copier takes the GPT from "
            f"{gpt[0]['bits_per_byte']:.3f} to {copy['bits_per_byte']:.3f} bits per byte; RETRO has "
            f"{retro['bits_per_byte']:.3f}, {percent(retro['copier_percent'])} {interval(other)} against that, and "
            f"{both['bits_per_byte']:.3f} with a copier of its own."
        )
    return found


HOW = (
    "What is copied word for word needs no model: a copier looks for the last tokens before a token in the neighbours "
    "shown there, says how often each token followed, and is mixed with a model by weights, one for each length of "
    "match, that were fitted on the validation split. It is trained on nothing else and reads the same neighbours. "
    "What RETRO has beyond the GPT with a copier it does not have from copying word for word. Experiment copying, of "
    "snakemake experiments, has other ways to read them beside these: a kNN-LM, and neighbours in the GPT's own window."
)


DETAILS = Markup("<details><summary>{}</summary>{}</details>\n")


def part(rows: list[Row], figure: Path) -> Markup:
    """The section's HTML."""
    copied = by_copier(rows)
    if not copied:
        few = (
            f"Nothing was mixed: fewer than {FEW} tokens of the validation split have a match, too few to fit weights."
        )
        return Markup("<p>{}</p>\n<p>{}</p>\n").format(HOW, few)
    found = [Markup("<p>{}</p>\n").format(text) for text in (HOW, " ".join(sentences(rows)))]
    found += [figure_html(figure, CAPTION, table="copying.csv"), table(where(rows, kind=ALL))]
    for k in copied:
        title = f"With {k:.0f} neighbours: nats a token, by how many of the tokens before it stand in a neighbour"
        mine = [row for row in where(rows, kind="match") if row["k"] == k]
        inside = crossed(mine, ("match", "tokens"), "nats", "{:.3f}", "{:.0f} … {:.0f}")
        found.append(DETAILS.format(title, inside))
    if buckets := where(rows, kind="overlap"):
        title = "Bits per byte, by the share of a chunk that stands in a neighbour shown to it"
        mine = [{**row, "least": 100 * row["least"], "most": 100 * row["most"]} for row in buckets]
        inside = crossed(mine, ("share", "chunks"), "bits_per_byte", "{:.4f}", "{:.1f} … {:.1f} %")
        found.append(DETAILS.format(title, inside))
    return Markup("").join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, nargs="+", type=Path, help="manifests of kind losses, of one split")
    parser.add_argument("--overlap", type=Path, help="manifest of kind overlap of that split")
    parser.add_argument("--runs", required=True, type=given, help="each run's twin and seed, as JSON")
    parser.add_argument("--settings", required=True, type=given, help="the evaluate section, as JSON")
    parser.add_argument("--table", required=True, type=Path, help="copying.csv to write")
    parser.add_argument("--output-folder", required=True, type=Path, help="folder of the figure")
    parser.add_argument("--part", required=True, type=Path, help="parts/copying.html to write")
    options = parser.parse_args()
    dataset, settings = Dataset.open(options.config), EvaluationSettings(**options.settings)
    losses = [read_manifest(path, "losses") for path in options.losses]
    overlap = read_manifest(options.overlap, "overlap") if options.overlap else None
    pair = Pair.of(losses, options.runs)
    found = list(Table(dataset, losses[0].settings["split"], pair, settings).rows(overlap))
    write_text(options.table, tables.as_csv(COLUMNS, found))
    rows = read_csv(options.table)
    draw(where(rows, kind=ALL), options.output_folder)
    write_text(options.part, part(rows, options.output_folder / "copying.svg"))
    told = " ".join(sentences(rows)) or "nothing was mixed"
    print(f"{told}\n{len(rows)} rows → {options.table}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
