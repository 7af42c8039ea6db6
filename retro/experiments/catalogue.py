"""The experiments: of each what it asks, what it measures, how its rows are made and how they are drawn.

An experiment is declared here and nowhere else: the config's names, the rules' conditions, the tables, the figures and
the report's section follow. docs/evaluation.md says how to read it.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retro.base.names import ALL, unseeded
from retro.evaluation.conditions import (
    FIRST_IN_CONTEXT,
    IN_CONTEXT,
    KNN,
    NONE,
    OFF,
    ON,
    RANDOM,
    SHUFFLED,
    Condition,
    fraction_name,
)
from retro.report.read import Row, Run, where
from retro.report.readers import LABELS as UNREAD
from retro.report.readers import READERS, reader

LABELS = ("label", "x")  # columns that every experiment's rows have before those of comparison.csv
CONTROLS = (f"{ON}+neighbour", f"{ON}+continuation", SHUFFLED, RANDOM)


@dataclass(frozen=True)
class Offered:
    """What conditions can be made of: sections of the config, and a run that is shown `used` of `saved` neighbours.

    `fit`: neighbours for which there is room in the window of its twin; `first_fits`: whether there is for one in its
    own. `baselines`: other ways to read them.
    """

    k: Sequence[int]
    fractions: Sequence[float]
    fraction_seeds: Sequence[int]
    retrievals: Sequence[str]
    used: int
    saved: int
    fit: int = 0
    first_fits: bool = False
    baselines: Sequence[str] = ()


@dataclass(frozen=True)
class Found:
    """What was measured: the comparison's rows of one split over all sources, and what is known beside them.

    `runs`: by name in the config. `recall`: condition → recall of its search. `shown`: neighbours that evaluation shows
    to every run; None: as many as each was trained with.
    """

    rows: list[Row]
    runs: dict[str, Run]
    recall: dict[str, float]
    shown: int | None = None

    def pooled(self, conditions: Container[str] | None = None) -> list[Row]:
        """The rows over all seeds, of these conditions; None: of all."""
        return [row for row in where(self.rows, seed=ALL) if conditions is None or row["retrieval"] in conditions]


def _row(row: Row, label: str, x: float | None = None, **more: float | None) -> Row:
    return {**row, "label": label, "x": x, **more}


def _seeds(found: Found) -> list[Row]:
    kept = [row for row in found.rows if row["retrieval"] in (ON, OFF)]
    kept.sort(key=lambda row: (unseeded(row["run"]), row["retrieval"], row["seed"] == ALL, row["seed"]))
    several = len({row["seed"] for row in kept} - {ALL}) > 1

    def label(row: Row) -> str:
        which = "all seeds" if row["seed"] == ALL else f"seed {row['seed']}"
        return f"{unseeded(row['run'])}, {row['retrieval']}, {which}"

    return [_row(row, label(row)) for row in kept if several or row["seed"] != ALL]


def _counts(offered: Offered) -> list[str]:
    return [Condition(ON, k).name for k in offered.k if k not in (0, offered.used) and k <= offered.saved]


def _count(found: Found, row: Row) -> int | None:
    """Neighbours shown in a comparison of whole stored neighbours, or None."""
    condition = Condition.parse(row["retrieval"])
    if condition.source == OFF:
        return 0
    if condition.named or condition.control or condition.part != "both" or (condition.knn and not condition.copy):
        return None
    if condition.k is not None:
        return condition.k
    return found.runs[row["run"]].settings.train.neighbours_used if found.shown is None else found.shown


def _neighbours(found: Found) -> list[Row]:
    rows = [(_count(found, row), row) for row in found.pooled()]
    shown = sorted(((k, row) for k, row in rows if k is not None), key=lambda each: each[0])
    return [_row(row, f"k = {k}", k) for k, row in shown]


def _fractions(offered: Offered) -> list[str]:
    return [fraction_name(share, draw) for share in offered.fractions for draw in offered.fraction_seeds]


def _database(found: Found) -> list[Row]:
    rows = [_row(row, "whole database", 1.0) for row in found.pooled([ON])]
    for row in found.pooled():
        kept = Condition.parse(row["retrieval"]).fraction
        if kept:
            rows.append(_row(row, f"{kept[0]:.0%}, draw {kept[1]}", kept[0]))
    return sorted(rows, key=lambda row: (row["x"], row["label"]))


def _controls(found: Found) -> list[Row]:
    rows = {row["retrieval"]: row for row in found.pooled()}
    return [_row(rows[name], Condition.parse(name).shows) for name in (ON, *CONTROLS) if name in rows]


def _readings(offered: Offered) -> list[str]:
    """RETRO and its twin with each number of neighbours, alone, with a copier, and other ways to read them."""
    counts = sorted({k for k in offered.k if 0 < k <= offered.saved})
    shown = [Condition(ON, None if k == offered.used else k) for k in counts]
    found = [*shown, *(replace(each, copy=True) for each in shown), *(Condition(NONE, k, copy=True) for k in counts)]
    if IN_CONTEXT in offered.baselines:
        found += [Condition(IN_CONTEXT, k) for k in (0, *counts) if k <= offered.fit]
    if FIRST_IN_CONTEXT in offered.baselines and offered.used and offered.first_fits:
        found.append(Condition(FIRST_IN_CONTEXT))
    if KNN in offered.baselines:
        found += [Condition(NONE, knn=True), *(Condition(NONE, k, copy=True, knn=True) for k in counts)]
    return [each.name for each in found if each != Condition(ON)]


def _copying(found: Found) -> list[Row]:
    """A row for each reader and number of neighbours, the two without neighbours first."""
    rows, gpt = [], {}
    for row in found.pooled():
        gpt = {**{key: row[key] for key in ("split", "source", "seed")}, "run": row["twin"], "retrieval": NONE}
        gpt["bits_per_byte"] = row["twin_bits_per_byte"]
        who, k = reader(row["retrieval"]), _count(found, row)
        if who is not None or row["retrieval"] == OFF:
            label = UNREAD[OFF] if who is None else who.label if k is None else f"{who.label}, k = {k}"
            rows.append((-1 if who is None else READERS.index(who), k or 0, _row(row, label, k)))
    rows.sort(key=lambda each: each[:2])
    return [*([_row(gpt, UNREAD[NONE], 0)] if rows else []), *(row for *_, row in rows)]


def _retrofit(found: Found) -> list[Row]:
    def label(row: Row) -> str:
        run = found.runs[row["run"]].settings
        began = "" if not run.start else " (retro-fit)" if run.freeze else " (continued)"
        return f"{row['run']}, {row['retrieval']}{began}"

    rows = found.pooled([ON, OFF])
    return [
        _row(row, label(row)) for row in rows if row["run"] == rows[0]["run"] or found.runs[row["run"]].settings.start
    ]


def _retrievers(found: Found) -> list[Row]:
    def label(name: str) -> str:
        return "the dataset's own" if name == ON else name

    return [_row(row, label(row["retrieval"]), found.recall[row["retrieval"]]) for row in found.pooled(found.recall)]


def _architecture(found: Found) -> list[Row]:
    def label(name: str) -> str:
        model = found.runs[name].settings.model
        return f"{name}: cross-attention in {', '.join(map(str, model.cca_at))}; encoder of {model.encoder_layers}"

    rows = [row for row in found.pooled([ON]) if not found.runs[row["run"]].settings.start]
    return [_row(row, label(row["run"])) for row in rows]


def _cost(found: Found) -> list[Row]:
    """A point for each RETRO run and each twin of one."""
    rows: dict[str, Row] = {}
    for row in found.pooled([ON]):
        rows[row["run"]] = row
        gpt = {"run": row["twin"], "retrieval": NONE, "split": row["split"], "source": ALL, "seed": ALL}
        rows.setdefault(row["twin"], {**gpt, "bits_per_byte": row["twin_bits_per_byte"]})
    made = []
    for row in rows.values():
        run, counts = found.runs[row["run"]], found.runs[row["run"]].counts
        flop = counts["flops_per_token"] * counts["tokens"]
        facts = (counts["parameters"], counts["tokens"], flop, counts["flops_per_token"] / 3, run.seconds)
        made.append(_row(row, row["run"], flop, **dict(zip(COST, facts, strict=True))))
    return made


def _emergence(found: Found) -> list[Row]:
    """A point for each validation of each RETRO run: what retrieval changes, by the tokens trained on so far."""
    rows: list[Row] = []
    for run in found.runs.values():
        off = {line["step"]: line for line in run.validation(OFF)}
        for line in run.validation(ON):
            if (step := line["step"]) in off:
                percent = 100 * (line["loss"] / off[step]["loss"] - 1)
                facts = {"run": run.base, "retrieval": ON, "split": line["split"], "source": ALL}
                shown = {"bits_per_byte": line["bits_per_byte"], "off_percent": percent}
                rows.append(_row({**facts, **shown}, run.base, line["tokens"]))
    return rows


COST = ("parameters", "training_tokens", "training_flop", "inference_flop_per_token", "training_seconds")


@dataclass(frozen=True)
class Experiment:
    """A question to trained models. `kind` of figure: bars, line, points, curves (one a run, over its training), or
    readers (a line for each way to read neighbours).

    `question` and `caption` are the report's. `rows` makes the table's rows, each with a `label` and, for lines and
    points, an `x`; `extra` are columns of its own. `one_run`: it measures the run `experiments.of` and its twin, under
    `conditions` beside those of every evaluation, which are none by default; else it compares all runs. `recall`: it
    needs the recall of the config's retrievals. `usual`: a config measures it unless it says otherwise.
    `against`: what bars differ from, the GPT twin or the same weights with retrieval off. `x` is the axis' name,
    `axis` its form: one of `retro.experiments.draw.AXES`; `log`: logarithmic.
    """

    title: str
    kind: Literal["bars", "line", "points", "curves", "readers"]
    question: str
    caption: str
    rows: Callable[[Found], list[Row]]
    conditions: Callable[[Offered], list[str]] = lambda offered: []
    extra: tuple[str, ...] = ()
    one_run: bool = False
    recall: bool = False
    usual: bool = False
    against: Literal["twin", "off"] = "twin"
    x: str = ""
    axis: str = ""
    log: bool = False


CATALOGUE = {
    "seeds": Experiment(
        "Seeds",
        "bars",
        "Does the gain survive another start and another order of the samples?",
        "The difference from the GPT twin for each seed, and for all together: bars of one kind should agree.",
        _seeds,
        one_run=True,
        usual=True,
    ),
    "neighbours": Experiment(
        "Neighbours at evaluation",
        "line",
        "How many neighbours does a model use that was trained with a fixed number?",
        "Bits per byte by the number of neighbours shown: where the blue line turns flat, more neighbours tell nothing "
        "new; the dashed lines are retrieval off and the GPT.",
        _neighbours,
        _counts,
        one_run=True,
        usual=True,
        x="neighbours shown to each chunk (k)",
        axis="values",
    ),
    "database": Experiment(
        "Size of the database",
        "line",
        "What would a smaller database have given?",
        "Bits per byte by the share of the database that is kept, a dot for each draw: the steeper the line at its "
        "right end, the more a larger database still promises.",
        _database,
        _fractions,
        one_run=True,
        usual=True,
        x="share of the database's chunks",
        axis="shares",
        log=True,
    ),
    "controls": Experiment(
        "What in a neighbour helps",
        "bars",
        "Is it the neighbour, its continuation, or merely having something to attend to?",
        "The difference from the same weights with retrieval off: only what was looked up should lie left of zero; the "
        "random and shuffled bars should not.",
        _controls,
        lambda offered: list(CONTROLS),
        one_run=True,
        usual=True,
        against="off",
    ),
    "copying": Experiment(
        "Other ways to read the same neighbours",
        "readers",
        "What does a model of its own add to cheaper ways of reading neighbours?",
        "Bits per byte by the number of neighbours: the GPT with a copier, with neighbours in its own window and as a "
        "kNN-LM, which looks up tokens, not chunks, and is a level, until a copier is mixed in as well; RETRO alone, "
        "with the first neighbour in its window (RETRO++) and with a copier.",
        _copying,
        _readings,
        one_run=True,
        usual=True,
        x="neighbours of a chunk (k)",
        axis="values",
    ),
    "retrofit": Experiment(
        "Retro-fitting",
        "bars",
        "What does retrieval add to a model that was trained without?",
        "The difference from the GPT for models that began with trained weights, beside the first that did not.",
        _retrofit,
    ),
    "retrievers": Experiment(
        "Retrievers and indexes",
        "points",
        "Does a better search give better predictions?",
        "Bits per byte against the share of the exact neighbours that a search finds: compare the points at equal "
        "recall for the retriever, along the axis for the index.",
        _retrievers,
        lambda offered: list(offered.retrievals),
        one_run=True,
        recall=True,
        x="recall of the exact neighbours, at most k",
        axis="to one",
    ),
    "architecture": Experiment(
        "Cross-attention layers and encoder depth",
        "bars",
        "Which layers need to read, and how deep must the encoder be?",
        "The difference from the GPT twin for models of other shapes: where "
        "intervals overlap, bars cannot be told apart.",
        _architecture,
    ),
    "emergence": Experiment(
        "When does RETRO begin to read",
        "curves",
        "After how much training does retrieval change what a model says?",
        "Validation loss with retrieval on against off, the same weights, by tokens trained on: a curve that leaves "
        "the zero line downwards has begun to read.",
        _emergence,
        against="off",
        x="tokens trained on",
        axis="from zero",
    ),
    "cost": Experiment(
        "Cost",
        "points",
        "What does the gain cost, and what would another model have made of as much arithmetic?",
        "Bits per byte against the arithmetic of the training: further down and further left is better.",
        _cost,
        extra=COST,
        usual=True,
        x="FLOP of the training",
        axis="from zero",
    ),
}


def rows_of(
    name: str, comparison: list[Row], runs: dict[str, Run], recall: dict[str, float], shown: int | None = None
) -> list[Row]:
    """The rows of experiment `name`, of the first split of a comparison; `runs`, `recall` and `shown` as in `Found`."""
    split = comparison[0]["split"] if comparison else None
    return CATALOGUE[name].rows(Found(where(comparison, source=ALL, split=split), runs, recall, shown))
