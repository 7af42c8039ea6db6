"""Who reads neighbours, and how: the lines of the figures on copying, and what rows are called there."""

from dataclasses import dataclass
from typing import Any

from retro.evaluation.conditions import COPY, FIRST_IN_CONTEXT, IN_CONTEXT, KNN, NONE, OFF, ON, Condition
from retro.report.read import Row


@dataclass(frozen=True)
class Reader:
    """A line of the figure: its conditions by source and what is mixed in, with `start` as that of no neighbours."""

    label: str
    source: str
    mixed: str
    start: str
    colour: str
    line: Any = "-"

    def has(self, condition: Condition) -> bool:
        """Whether a condition is one of this reader's."""
        mixed = "+".join([KNN] * condition.knn + [COPY] * condition.copy)
        return (condition.source, condition.part, mixed) == (self.source, "both", self.mixed)


COPIER = Reader("GPT + copier", NONE, COPY, NONE, COPY)
RETRO = Reader("RETRO", ON, "", OFF, ON)
BOTH = Reader("RETRO + copier", ON, COPY, OFF, ON, (0, (4, 2)))
READERS = (  # in the order of the table; another way to read neighbours is another line here
    COPIER,
    Reader("kNN-LM", NONE, KNN, "", KNN, (0, (1, 1.5))),  # of tokens, not of chunks: a level, whatever their number
    Reader("kNN-LM + copier", NONE, f"{KNN}+{COPY}", "", KNN),
    Reader("GPT, neighbours in its window", IN_CONTEXT, "", "", IN_CONTEXT),
    RETRO,
    Reader(
        "RETRO++, first neighbour in its window", FIRST_IN_CONTEXT, "", OFF, FIRST_IN_CONTEXT, (0, (5, 1.5, 1, 1.5))
    ),
    BOTH,
)
LABELS = {NONE: "GPT", OFF: "RETRO, retrieval off"}


def reader(name: str) -> Reader | None:
    """The line of the figure that a condition is on, beside its beginning."""
    condition = Condition.parse(name)
    return next((each for each in READERS if each.has(condition)), None)


def label(row: Row) -> str:
    """What a row is called in a table."""
    found = reader(row["retrieval"])
    return found.label if found else LABELS.get(row["retrieval"], str(row["retrieval"]))
