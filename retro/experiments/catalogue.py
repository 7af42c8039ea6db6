"""What each experiment asks and how its figure is read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """`kind` of figure: bars, line or points; `x` is its axis, where it has one. `question` and `caption` are the
    report's.
    """

    title: str
    kind: str
    question: str
    caption: str
    x: str = ""
    log: bool = False


CATALOGUE = {
    "seeds": Experiment(
        "Seeds", "bars",
        "Does the gain survive another start and another order of the samples?",
        "The difference from the GPT twin for each seed, and for all together: bars of one kind should agree.",
    ),
    "neighbours": Experiment(
        "Neighbours at evaluation", "line",
        "How many neighbours does a model use that was trained with a fixed number?",
        "Bits per byte by the number of neighbours shown: where the blue line turns flat, more neighbours tell nothing "
        "new; the dashed lines are retrieval off and the GPT.",
        "neighbours shown to each chunk (k)",
    ),
    "database": Experiment(
        "Size of the database", "line",
        "What would a smaller database have given?",
        "Bits per byte by the share of the database that is kept, a dot for each draw: the steeper the line at its "
        "right end, the more a larger database still promises.",
        "share of the database's chunks", True,
    ),
    "controls": Experiment(
        "What in a neighbour helps", "bars",
        "Is it the neighbour, its continuation, or merely having something to attend to?",
        "The difference from the same weights with retrieval off: only what was looked up should lie left of zero; the "
        "random and shuffled bars should not.",
    ),
    "retrofit": Experiment(
        "Retro-fitting", "bars",
        "What does retrieval add to a model that was trained without?",
        "The difference from the GPT for models that began with trained weights, beside the first that did not.",
    ),
    "retrievers": Experiment(
        "Retrievers and indexes", "points",
        "Does a better search give better predictions?",
        "Bits per byte against the share of the exact neighbours that a search finds: compare the points at equal "
        "recall for the retriever, along the axis for the index.",
        "recall of the exact neighbours, at most k",
    ),
    "architecture": Experiment(
        "Cross-attention layers and encoder depth", "bars",
        "Which layers need to read, and how deep must the encoder be?",
        "The difference from the GPT twin for models of other shapes: where "
        "intervals overlap, bars cannot be told apart.",
    ),
    "cost": Experiment(
        "Cost", "points",
        "What does the gain cost, and what would another model have made of as much arithmetic?",
        "Bits per byte against the arithmetic of the training: further down and further left is better.",
        "FLOP of the training",
    ),
}  # fmt: skip
