"""The rows of an experiment's table, from comparisons and what is known of runs and retrievals. Pure functions.

Every row has a `label` and, for lines and points, an `x`.
"""

from retro.evaluation.conditions import Condition
from retro.experiments.plan import fraction_of
from retro.report.read import ALL, Row, Run, where

NAMES = {
    "on": "as looked up",
    "off": "retrieval off",
    "random": "random chunks",
    "shuffled": "neighbours of another chunk",
    "on+neighbour": "neighbours only",
    "on+continuation": "continuations only",
}
LABELS = ("label", "x")
EXTRA = {"cost": ("parameters", "training_tokens", "training_flop", "inference_flop_per_token", "training_seconds")}


def rows_of(name: str, comparison: list[Row], runs: dict[str, Run], recall: dict[str, float]) -> list[Row]:
    """The rows of experiment `name`, of the first split.

    `runs`: by name without seed. `recall`: condition → recall of its search.
    """
    split = comparison[0]["split"] if comparison else None
    rows = where(comparison, source=ALL, split=split)
    pooled = where(rows, seed=ALL)
    if name == "seeds":
        kept = [row for row in rows if row["retrieval"] in ("on", "off")]
        kept.sort(key=lambda row: (_base(row), row["retrieval"], row["seed"] == ALL, row["seed"]))
        seeds = {row["seed"] for row in kept} - {ALL}
        return [_row(row, _seed_label(row)) for row in kept if row["seed"] != ALL or len(seeds) > 1]
    if name == "neighbours":
        found = [(_count(row, runs), row) for row in pooled]
        return [
            _row(row, f"k = {k}", k) for k, row in sorted((f for f in found if f[0] is not None), key=lambda f: f[0])
        ]
    if name == "database":
        found = [(fraction_of(row["retrieval"]), row) for row in pooled]
        rows = [_row(row, f"{share[0]:.0%}, draw {share[1]}", share[0]) for share, row in found if share]
        whole = [_row(row, "whole database", 1.0) for row in where(pooled, retrieval="on")]
        return sorted(rows + whole, key=lambda row: (row["x"], row["label"]))
    if name == "controls":
        order = ["on", "on+neighbour", "on+continuation", "shuffled", "random"]
        found = {row["retrieval"]: row for row in pooled}
        return [_row(found[key], NAMES[key]) for key in order if key in found]
    if name == "retrievers":
        found = [row for row in pooled if row["retrieval"] in recall]
        return [_row(row, _retrieval(row), recall[row["retrieval"]]) for row in found]
    if name == "cost":
        return _cost(where(pooled, retrieval="on"), runs)
    chosen = [row for row in pooled if row["retrieval"] in ("on", "off")]
    if name == "retrofit":
        first = chosen[0]["run"] if chosen else None
        chosen = [row for row in chosen if row["run"] == first or runs[row["run"]].settings.start]
        return [_row(row, f"{row['run']}, {row['retrieval']}{_began(runs[row['run']])}") for row in chosen]
    fresh = [row for row in chosen if row["retrieval"] == "on" and not runs[row["run"]].settings.start]
    return [_row(row, _shape(row["run"], runs[row["run"]])) for row in fresh]


def _row(row: Row, label: str, x: float | None = None) -> Row:
    return {**row, "label": label, "x": x}


def _base(row: Row) -> str:
    return row["run"] if row["seed"] == ALL else row["run"].removesuffix(f"-s{row['seed']}")


def _seed_label(row: Row) -> str:
    which = "all seeds" if row["seed"] == ALL else f"seed {row['seed']}"
    return f"{_base(row)}, {row['retrieval']}, {which}"


def _count(row: Row, runs: dict[str, Run]) -> int | None:
    """Neighbours shown in a comparison of whole stored neighbours, or None."""
    condition = Condition.parse(row["retrieval"])
    if condition.source == "off":
        return 0
    if condition.source != "on" or condition.part != "both":
        return None
    return runs[row["run"]].settings.train.neighbours_used if condition.k is None else condition.k


def _retrieval(row: Row) -> str:
    return "the dataset's own" if row["retrieval"] == "on" else row["retrieval"]


def _began(run: Run) -> str:
    return "" if not run.settings.start else " (retro-fit)" if run.settings.freeze else " (continued)"


def _shape(name: str, run: Run) -> str:
    model = run.settings.model
    layers = ", ".join(map(str, model.cca_at))
    return f"{name}: cross-attention in {layers}; encoder of {model.encoder_layers}"


def _cost(rows: list[Row], runs: dict[str, Run]) -> list[Row]:
    """A point for each RETRO run and each twin of one."""
    found = []
    for row in rows:
        found.append((row["run"], row))
        if row["twin"] not in dict(found):
            gpt = {"run": row["twin"], "retrieval": "none", "split": row["split"], "source": ALL, "seed": ALL}
            found.append((row["twin"], {**gpt, "bits_per_byte": row["twin_bits_per_byte"]}))
    made = []
    for name, row in found:
        counts = runs[name].counts
        flop = counts["flops_per_token"] * counts["tokens"]
        facts = {
            "parameters": counts["parameters"], "training_tokens": counts["tokens"], "training_flop": flop,
            "inference_flop_per_token": counts["flops_per_token"] / 3, "training_seconds": runs[name].seconds,
        }  # fmt: skip
        made.append({**_row(row, name, flop), **facts})
    return made
