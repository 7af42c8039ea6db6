"""What to say of a name that there is not: what there is, and which of it was probably meant."""

import difflib
from collections.abc import Iterable

LEAST = 0.5  # of 1, how alike two names are at least of which one may be meant
SHOWN = 20  # names of a list


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The known name that is spelt most like a wrong one, capitals aside; nothing where none is."""

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), wrong.lower()).ratio()

    best = max(known, key=likeness, default="")  # of several the first
    return best if likeness(best) >= LEAST else ""


def listed(known: Iterable[str]) -> str:
    """Names in a line, of many the first few."""
    names = list(known)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def unknown(what: str, wrong: str, known: Iterable[str], where: str = "") -> str:
    """`no run 'retro': runs in results/open-book: gpt-s1, retro-s1; did you mean retro-s1?`"""
    names = list(known)
    if not names:
        return f"no {what} {wrong!r}: there is none{where and f' in {where}'}."
    return f"no {what} {wrong!r}: {what}s{where and f' in {where}'}: {listed(names)}{did_you_mean(wrong, names) or '.'}"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing where no known name is near."""
    meant = nearest(wrong, known)
    return f"; did you mean {meant}?" if meant else ""
