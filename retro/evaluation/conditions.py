"""Conditions: what a model is shown as neighbours when it is measured. Their names, and all that follows from a name.

A condition's name is the folder of its losses: where the neighbours come from, then `+k<number>` where not as
many are shown as the run trained with, then `+neighbour` or `+continuation` where only that part of each is, then
`+copy` where the model is mixed with a copier that reads them (`retro.evaluation.copying`). A model that is shown none
can be mixed, too: `none+k2+copy` is a GPT beside a copier of two stored neighbours. `none+knn` is a kNN-LM
(`retro.evaluation.knn_lm`): a GPT mixed with what followed states like its own in the database, `+k` of them;
`none+k2+knn+copy` is that kNN-LM mixed with a copier of two stored neighbours.

    none        a GPT: no retrieval at all            on        the stored neighbours
    off         RETRO without neighbours              random    database chunks drawn at random
    shuffled    the stored neighbours of a chunk of another group
    in-context  a GPT that has the stored neighbours in its window (`retro.evaluation.in_context`)
    first-in-context    a RETRO that has the first of them in its window, and the others as ever: RETRO++
    database-<share>-s<draw>    what a smaller database would give (`retro.retrieval.subsample`)
    <name>      another retrieval of the dataset, from the manifest given with --neighbours
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, cast

from retro.base.names import NEIGHBOURS, SUBSAMPLED, WORD, prefix
from retro.base.stage import UserError

NONE, ON, OFF, RANDOM, SHUFFLED = "none", "on", "off", "random", "shuffled"
IN_CONTEXT, FIRST_IN_CONTEXT = "in-context", "first-in-context"
COPY, KNN = "copy", "knn"


@dataclass(frozen=True)
class Kind:
    """What is known of a condition that needs no other neighbours than the dataset's own.

    `label` is a figure's, `shows` a table's; `ids` is what `retro.training.batches.Batcher` is told. A control
    shows what was not looked up. `colour` is the one of `retro.report.style.COLOURS` it has.
    """

    label: str
    shows: str
    ids: Literal["stored", "none", "random"]
    colour: str
    control: bool = False


BUILT_IN = {  # in the order of tables
    NONE: Kind("GPT", "a GPT", "none", NONE),
    ON: Kind("RETRO, retrieval on", "as looked up", "stored", ON),
    OFF: Kind("RETRO, retrieval off", "retrieval off", "none", OFF),
    RANDOM: Kind("RETRO, random neighbours", "random chunks", "random", RANDOM, control=True),
    IN_CONTEXT: Kind("GPT, neighbours in its window", "neighbours in the GPT's window", "stored", IN_CONTEXT),
    FIRST_IN_CONTEXT: Kind("RETRO++", "the first in RETRO's window", "stored", FIRST_IN_CONTEXT),
    SHUFFLED: Kind("RETRO, neighbours of another chunk", "neighbours of another chunk", "stored", RANDOM, control=True),
}
USUAL = (NONE, ON, OFF, RANDOM)  # what every evaluation measures, of one model or the other
LABELS = {name: kind.label for name, kind in BUILT_IN.items()}
Part = Literal["both", "neighbour", "continuation"]
PARTS = {"neighbour": "neighbours only", "continuation": "continuations only"}
SYNTAX = re.compile(
    rf"(?P<source>{WORD})(\+k(?P<k>\d+))?(\+(?P<part>{'|'.join(PARTS)}))?(\+(?P<knn>{KNN}))?(\+(?P<copy>{COPY}))?"
)
FRACTION = re.compile(r"database-(?P<share>\d+(\.\d+)?(e-\d+)?)-s(?P<draw>\d+)")


@dataclass(frozen=True)
class Condition:
    """`source` of the neighbours, how many (`k`; None: as in training), which `part` of each is seen, and whether the
    model is mixed with a copier of them (`copy`), with what followed `k` states like its own (`knn`), or with both:
    then `k` is of the copier.
    """

    source: str
    k: int | None = None
    part: Part = "both"
    copy: bool = False
    knn: bool = False

    @classmethod
    def parse(cls, name: str) -> "Condition":
        """The condition of a name. Raises `UserError` if it is none, says more of a condition without neighbours,
        does not say how many a copier reads beside a model that is shown none, looks up states of no GPT, or has no
        first neighbour.
        """
        found = SYNTAX.fullmatch(name)
        if found is None:
            raise UserError(
                f"condition {name!r}: wanted {', '.join(BUILT_IN)} or the name of a retrieval, then +k<number>, then "
                f"+neighbour or +continuation, then +copy, e.g. on+k5, shuffled+k1+neighbour or none+k2+copy; "
                f"or none+knn."
            )
        k = None if found["k"] is None else int(found["k"])
        part = cast(Part, found["part"] or "both")
        condition = cls(found["source"], k, part, bool(found["copy"]), bool(found["knn"]))
        if condition.knn and (condition.source != NONE or condition.part != "both" or k == 0):
            raise UserError(
                f"condition {name!r}: a kNN-LM is a GPT that looks up states. Ask for none+knn, or for none+k64+knn, "
                f"which looks up 64, or for none+k2+knn+copy, with a copier of two neighbours."
            )
        if condition.source == FIRST_IN_CONTEXT and k == 0:
            raise UserError(f"condition {name!r}: of no neighbours none is the first. Ask for +k1 or more, or for off.")
        if condition.empty and not condition.mixed and (k is not None or found["part"]):
            raise UserError(f"condition {name!r}: {condition.source} shows no neighbours, so leave out what follows.")
        if condition.empty and condition.copy and k is None:
            raise UserError(
                f"condition {name!r}: {condition.source} shows no neighbours, so say how many the copier reads, e.g. "
                f"{condition.source}+k2+copy."
            )
        return condition

    @property
    def name(self) -> str:
        """The canonical name, which `parse` reads."""
        count = [] if self.k is None else [f"k{self.k}"]
        part = [] if self.part == "both" else [self.part]
        mixed = [KNN] * self.knn + [COPY] * self.copy
        return "+".join([self.source, *count, *part, *mixed])

    @property
    def gpt(self) -> bool:
        """Whether it is a GPT that is measured; else a RETRO."""
        return self.source in (NONE, IN_CONTEXT)

    @property
    def in_window(self) -> bool:
        """Whether neighbours stand in the decoder's window."""
        return self.source in (IN_CONTEXT, FIRST_IN_CONTEXT)

    @property
    def mixed(self) -> bool:
        """Whether the losses are those of a model mixed with something else, by weights fitted on valid."""
        return self.copy or self.knn

    @property
    def model(self) -> "Condition":
        """What the model is shown that something is mixed with, a kNN-LM where that is a copier beside one; without
        that, the condition itself.
        """
        return Condition(self.source, knn=self.knn and self.copy) if self.empty else replace(self, copy=False)

    @property
    def copied(self) -> "Condition":
        """What the copier reads: what the model is shown; the stored neighbours where it is shown none."""
        return replace(self, source=ON if self.empty else self.source, copy=False, knn=False)

    @property
    def ids(self) -> Literal["stored", "none", "random"]:
        """Which neighbours the batches have: those of `manifest` count as stored."""
        return BUILT_IN[self.source].ids if self.source in BUILT_IN else "stored"

    @property
    def empty(self) -> bool:
        """Whether no neighbours are shown whatever the numbers."""
        return self.ids == "none"

    @property
    def named(self) -> bool:
        """Whether the neighbours are others than the dataset's own, so that a manifest of them is needed."""
        return self.source not in BUILT_IN

    @property
    def fraction(self) -> tuple[float, int] | None:
        """Share and draw of the smaller database, or None."""
        found = FRACTION.fullmatch(self.source)
        return (float(found["share"]), int(found["draw"])) if found else None

    @property
    def control(self) -> bool:
        """Whether what is shown was not looked up for the chunk."""
        return self.source in BUILT_IN and BUILT_IN[self.source].control

    @property
    def colour(self) -> str:
        """Which of `retro.report.style.COLOURS` draws it: that of `on` for whatever was looked up."""
        if self.mixed:
            return COPY if self.copy else KNN
        return BUILT_IN[self.source].colour if self.source in BUILT_IN else ON

    @property
    def shows(self) -> str:
        """What is shown, in a table's words."""
        shown = BUILT_IN[self.source].shows if self.part == "both" else PARTS[self.part]
        mixed = ["words after like states"] * self.knn + ["a copier"] * self.copy
        return f"{', '.join([shown, *mixed[:-1]])}, and {mixed[-1]}" if mixed else shown

    def manifest(self, split: str, retrievals: Collection[str]) -> str | None:
        """Where below the dataset's folder the neighbours of a split lie, if not the dataset's own. None also for a
        source that is no retrieval of the config: the stage refuses it.
        """
        if self.fraction:
            return f"{SUBSAMPLED.format(retrieval='', fraction=self.source, split=split)}/manifest.json"
        if self.source not in retrievals:
            return None
        return f"{NEIGHBOURS.format(retrieval=prefix(self.source), split=split)}/manifest.json"

    def of(self, architecture: str, run: str) -> "Condition":
        """Itself. Raises `UserError` for one that a model of this architecture cannot be measured under."""
        if (architecture == "gpt") != self.gpt:
            can = (
                f"{NONE} or {IN_CONTEXT}"
                if architecture == "gpt"
                else "on, off, random, shuffled, first-in-context or a retrieval's name"
            )
            raise UserError(
                f"run {run!r} is a {architecture}, which has no retrieval mode {self.name!r}. Evaluate it with {can}."
            )
        return self


def usual(architecture: str, controls: bool = False) -> list[str]:
    """What a model is always measured under: a GPT without retrieval, a RETRO with it on and off, and controls."""
    if architecture == "gpt":
        return [NONE]
    return [name for name in USUAL if name != NONE and (controls or not BUILT_IN[name].control)]


def ordered(names: Iterable[str]) -> list[str]:
    """Conditions in the order of tables: the usual ones first, the others by name."""
    found = set(names)
    return [name for name in USUAL if name in found] + sorted(found.difference(USUAL))


def fraction_name(share: float, draw: int) -> str:
    """The condition of a smaller database: `database-0.05-s1`."""
    return f"database-{share:g}-s{draw}"
