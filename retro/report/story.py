"""The sentences of the report: what the figures say, no more. Pure functions of the tables and the config."""

from dataclasses import dataclass
from typing import Any

from retro.base.names import ALL
from retro.evaluation.bits_per_byte import ENOUGH
from retro.evaluation.conditions import NONE, OFF, ON, RANDOM, Condition
from retro.report.read import Row, Run, where
from retro.report.style import interval, percent
from retro.training.samples import doubt

FEW = 20  # documents below which a bootstrap interval is too narrow to rely on
READ = 50_000  # different tokens read below which a training is too short to say anything: docs/evaluation.md


@dataclass(frozen=True)
class Reach:
    """How far a training and its evaluation reach: documents (or groups) evaluated, different tokens that a model read,
    bytes of text a token, and all tokens of the training text.
    """

    split: str
    units: int
    unit: str
    read: float
    token_bytes: float
    whole: float = 0


def advice(reach: Reach) -> tuple[str, str] | None:
    """What stands in place of headline and sentence where the text is too little for a figure to mean anything."""
    few, short = reach.units < ENOUGH, reach.read < READ
    if not few and not short:
        return None
    found = []
    if few:
        units = f"{reach.units} {reach.unit}{'s' if reach.units != 1 else ''}"
        found.append(
            f"The {reach.split} split has {units}, and from fewer than {ENOUGH} no interval can be told: raise "
            f"dataset.split.{reach.split}, or add {reach.unit}s."
        )
    if short and reach.whole >= READ:
        found.append(
            f"A model read {reach.read:,.0f} of {reach.whole:,.0f} tokens, and below {READ:,} it learns which words "
            f"there are and little more: set dataset.samples.epochs to more, or leave dataset.samples out."
        )
        return "Too little was trained on to tell what retrieval buys.", " ".join(found)
    if short:
        need = READ * reach.token_bytes / 1000
        found.append(
            f"A model read {reach.read:,.0f} different tokens. Below {READ:,} it learns which words there are and "
            f"little more: preset tiny wants about {need:,.0f} kB of text like this, and gains from ten times as much."
        )
    found.append(
        "As it is, this text can be a book: in the database of models that are trained on more (train: false, as in "
        "config/config.yaml; config/swap-book.yaml for models that are trained already), or searched by "
        "`retro show`."
    )
    what = "This is too little text" if short else f"Too few {reach.unit}s are held out"
    return f"{what} to tell what retrieval buys.", " ".join(found)


def main_rows(comparison: list[Row]) -> dict[str, Row]:
    """The rows the headline is about: the first RETRO run's, all seeds and sources, by mode of retrieval."""
    rows = where(comparison, seed=ALL, source=ALL)
    first = next((row for row in rows if row["retrieval"] == ON), None)
    if first is None:
        return {}
    return {row["retrieval"]: row for row in where(rows, run=first["run"], split=first["split"])}


def amount(row: Row, less: str = "fewer", more: str = "more") -> str:
    """A comparison in words: `12.0 % fewer`."""
    value = row["difference_percent"]
    if abs(value) < 0.05:
        return "as many"
    return f"{abs(value):.1f} % {less if value < 0 else more}"


def sure(row: Row) -> bool:
    """Whether the 95 % interval leaves out zero."""
    return row["low"] is not None and (row["low"] > 0 or row["high"] < 0)


def copier(copying: list[Row]) -> Row | None:
    """The row of copying.csv of the GPT twin beside a copier that reads the neighbours of the first RETRO run."""
    rows = where(copying, kind=ALL)
    shown = next((row["k"] for row in rows if row["retrieval"] == ON), 0)
    wanted = Condition(NONE, int(shown), copy=True).name
    return next((row for row in rows if row["retrieval"] == wanted), None)


def headline(comparison: list[Row], documents: int, groups: int, copier: Row | None = None) -> tuple[str, str]:
    """The headline and the sentence below it; `copier`: what the twin has beside one."""
    rows = main_rows(comparison)
    if not rows:
        return "No RETRO run has been compared with a GPT twin.", ""
    on = rows[ON]
    text = f"held-out text ({documents} documents of {groups} groups)"
    if groups == documents:
        text = f"held-out text ({documents} documents)"
    against = f"than its GPT twin (95 % interval {interval(on).strip('()')} %)" if on["low"] is not None else ""
    if sure(on) or not against:
        first = f"On {text} RETRO needs {amount(on)} bits per byte {against or 'than its GPT twin'}."
    else:
        first = (
            f"On {text} no difference between RETRO and its GPT twin can be told from chance: RETRO needs "
            f"{amount(on)} bits per byte (95 % interval {interval(on).strip('()')} %)."
        )
    if copier is not None:
        first = (
            f"{first[:-1]}; the twin with a copier that reads the same neighbours and is trained on nothing needs "
            f"{amount(copier)}."
        )
    return first, " ".join([*_controls(rows), *_caution(documents)])


def _controls(rows: dict[str, Row]) -> list[str]:
    """What the controls say about where a gain comes from."""
    found = []
    if RANDOM in rows:
        on, random = rows[ON], rows[RANDOM]
        gain = random.get("off_percent")
        found.append(f"With random neighbours in place of those it looked up it needs {amount(random)}")
        if gain is not None:
            found[-1] += f", {amount({'difference_percent': gain})} than with retrieval off"
        if on["difference_percent"] >= random["difference_percent"]:
            found[-1] += ", so what it looked up does not help it"
        elif on["high"] is not None and on["high"] < random["low"]:
            found[-1] += ", so it is what it looked up that helps"
        found[-1] += "."
    if OFF in rows:
        found.append(f"With retrieval switched off it needs {amount(rows[OFF])}.")
    return found


def _caution(documents: int) -> list[str]:
    if documents >= FEW:
        return []
    return [f"{documents} documents are too few to rely on the interval."]


def drawn(comparison: list[Row]) -> str:
    """What intervals are drawn from, or why there is none."""
    unit = comparison[0]["unit"] if comparison else "document"
    few = sorted({row["units"] for row in comparison if row["low"] is None})
    if not few:
        return f"Intervals are a bootstrap over {unit}s."
    of = ", ".join(f"{number:.0f}" for number in few)
    return f"Intervals are a bootstrap over {unit}s. Fewer than {ENOUGH} are too few {unit}s for an interval ({of})."


def seeds_sentence(comparison: list[Row]) -> str:
    """How many trainings the headline rests on."""
    on = main_rows(comparison).get(ON)
    if on is None:
        return ""
    if on["seeds"] == 1:
        return (
            "Each model was trained once: the interval covers the choice of documents, not the luck of a "
            "training. Set seeds in the config to train more."
        )
    return (
        f"Each model was trained {on['seeds']:.0f} times; by seed the difference is between "
        f"{on['seeds_min']:+.1f} and {on['seeds_max']:+.1f} %. The interval covers the choice of documents "
        "and of seeds."
    ).replace("-", "−")


def book(sources: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Whether the book is open or closed, in a word and a sentence."""
    opened = [name for name, source in sources.items() if source["database"] and not source["train"]]
    if opened:
        return "open", (
            f"The book is open: besides the training text the database holds {', '.join(opened)}, which "
            "neither model was ever trained on. A gain shows knowledge that is read, not remembered. Do "
            "not compare it with results of a closed book."
        )
    return "closed", (
        "The book is closed: the database holds only text that both models were trained on, so retrieval can "
        "only remind the model of what it has seen."
    )


def warnings(facts: dict[str, Any]) -> list[str]:
    """What a reader must know of the data before any figure; of the recorded config."""
    found, counts = [], facts["counts"]
    tokens = {name: counts.get(f"tokens/{name}/manifest.json", {}) for name in facts["source_order"]}
    for name, each in tokens.items():
        if each.get("changed"):
            found.append(
                f"The tokenizer changed {each['changed']} of {each['documents']} documents of {name} "
                f"({each['unknown']} tokens are unknown): bits per byte are of the text as it gives it back, and "
                "cannot be compared with those of another tokenizer."
            )
        for field, absent in each.get("absent", {}).items():
            if absent and field == facts["sources"][name]["fields"].get("group"):
                found.append(
                    f"{absent} records of {name} lack the field {field}: each is a group of its own, and may be "
                    "retrieved for others of its group."
                )
        if each.get("skipped"):
            found.append(f"{each['skipped']} malformed records of {name} were left out: tokens/{name}/skipped.jsonl.")
    also = counts.get("database/manifest.json", {}).get("evaluated_in_database", {})
    parts = [f"{number} of equal {what[:-1]} in {name}" for what in also for name, number in also[what].items()]
    if parts:
        found.append(f"Documents that are evaluated are in the database, too: {', '.join(parts)}.")
    return found


def doubts(runs: list[Run]) -> list[str]:
    """What the logs of the trainings warned of."""
    found = []
    for run in runs:
        train, samples = run.settings.train, run.counts["samples"]
        if said := doubt(run.counts):
            found.append(f"{run.name} {said}")
        if train.warmup_samples > samples:
            found.append(
                f"{run.name} was trained on {samples} samples, fewer than its warm-up has ({train.warmup_samples}): "
                f"its learning rate never reached {train.lr:g}."
            )
    return found


def flavour(runs: list[Run], comparison: list[Row]) -> str:
    """Which RETRO each run is, for the readers of the paper, and what copy-ready cross-attention bought."""
    names: dict[str, list[str]] = {}
    gains: dict[bool, list[str]] = {True: [], False: []}
    for base in dict.fromkeys(run.base for run in runs if run.architecture == "retro"):
        model = next(run.settings.model for run in runs if run.base == base)
        ready = model.cca == "copy-ready"
        found = where(comparison, run=base, seed=ALL, source=ALL, retrieval=ON)
        gains[ready] += [f"{base} {percent(row['difference_percent'])} {interval(row)}" for row in found]
        names.setdefault("copy-ready" if ready else model.flavour, []).append(base)
    sentences = []
    for flavour, bases in names.items():
        have = f"{listed(bases)} {'has' if len(bases) == 1 else 'have'}"
        if flavour == "copy-ready":
            sentences.append(
                f"{have} copy-ready cross-attention. This is an option of this project, not the paper's RETRO: "
                "cross-attention is told where in a neighbour the last tokens it read occur, and reads the token "
                "that comes next there, so that it can copy from the first hundred steps."
            )
        else:
            sentences.append(f"{have} the cross-attention of flavour {flavour}; copy-ready is off.")
    if gains[True] and gains[False]:
        bought = "; ".join(gains[True] + gains[False])
        sentences.append(f"What copy-ready bought, in bits per byte against the same twin: {bought}.")
    elif gains[True]:
        sentences.append("No run of flavour paper was trained beside it, so what it bought is not shown here.")
    return " ".join(sentences)


def why(runs: list[Run], samples: dict[str, Any]) -> str:
    """Why the curves of loss move as they do: what a step reads, and what the learning rate does meanwhile."""
    each, length, tested = (samples[key] for key in ("global_batch_size", "seq_length", "eval_iterations"))
    size = f"{each} sample{'s' if each > 1 else ''} of {length} tokens"
    told = [
        f"Training loss jumps, as every step reads {size} of other text; validation reads the same {tested} "
        f"batch{'es' if tested > 1 else ''} each time, so its dots can be compared."
    ]
    schedules = {run.settings.train.schedule for run in runs}
    if schedules & {"cosine", "linear"}:
        told.append(
            "Loss falls steeply while the commonest words are learned. Near the end it flattens as the learning rate "
            f"falls ({listed(sorted(schedules))}): that alone does not show that nothing is left to learn."
        )
    if {run.architecture for run in runs} == {"gpt", "retro"}:
        told.append("On the right RETRO's curves are longer: the steps are as many, and each takes more time.")
    return " ".join(told)


def listed(names: list[str]) -> str:
    """Names in a sentence: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def excluded(rules: list[str]) -> str:
    """What is never a chunk's neighbour: a chunk …"""
    words = {
        "document": "of the same document",
        "group": "of the same group in the same source",
        "group_of_any_source": "of the same group in any source",
        "text": "of exactly the same text",
        "later": "of a later date",
    }
    return ", ".join(words[rule] for rule in words if rule in {"document", *rules})
