"""Words of a text that another text has, too: copied runs, marked."""

import re
from collections.abc import Iterable

from markupsafe import Markup, escape

RUN = 4  # words in a row that count as copied
WORDS = re.compile(r"[^\W_]+")


def runs(text: str) -> set[tuple[str, ...]]:
    """Every `RUN` words in a row of a text, in small letters."""
    words = [found[0].lower() for found in WORDS.finditer(text)]
    return {tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)}


def marked(text: str, others: Iterable[str]) -> Markup:
    """A text as HTML, escaped, with <mark> around what stands in one of `others` in runs of at least `RUN` words."""
    known = {run for other in others for run in runs(other)}
    found = list(WORDS.finditer(text))
    copied = [False] * len(found)
    for at in range(len(found) - RUN + 1):
        if tuple(word[0].lower() for word in found[at : at + RUN]) in known:
            copied[at : at + RUN] = [True] * RUN
    parts, done, at = [], 0, 0
    while at < len(found):
        end = at
        while end < len(found) and copied[end]:
            end += 1
        if end > at:
            low, high = found[at].start(), found[end - 1].end()
            parts += [escape(text[done:low]), Markup("<mark>{}</mark>").format(text[low:high])]
            done = high
        at = end + 1
    return Markup("").join([*parts, escape(text[done:])])
