"""The colours of figures and pages: calm, and told apart by colour-blind readers (after Okabe and Ito)."""

from retro.evaluation.conditions import NONE, OFF, ON, RANDOM, Condition

INK, SOFT, FAINT, PAPER = "#1f2933", "#64707d", "#e3e7eb", "#ffffff"
COLOURS = {NONE: "#7b8794", ON: "#0072b2", OFF: "#e69f00", RANDOM: "#cc79a7"}
BETTER, WORSE = "#0072b2", "#d55e00"
SOURCES = ["#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#7b8794"]


def colour(condition: str) -> str:
    """What a condition is drawn in."""
    return COLOURS[Condition.parse(condition).colour]
