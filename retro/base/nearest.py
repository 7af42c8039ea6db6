"""What to say of a name that there is not: what there is, and which of it was probably meant."""

import difflib
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

LEAST = 0.5  # of 1, how alike two names are at least of which one may be meant
SHOWN = 20  # names of a list
LOOKED_AT = 10_000  # names at most, among which the nearest is looked for: a second
# What lies in a folder of results, by the folder's name.
KINDS = {
    "results": "dataset",
    "runs": "run",
    "retrievals": "retrieval",
    "experiments": "experiment",
    "tokens": "source",
    "chunks": "source",
    "embeddings": "source",
    "neighbours": "split",
    "candidates": "split",
    "overlap": "split",
    "evaluation": "split",
}


def nearest(wrong: str, known: Iterable[str], least: float = LEAST) -> str:
    """The known name that is spelt most like a wrong one, capitals aside; nothing where none is."""

    matcher = difflib.SequenceMatcher(b=wrong.lower())

    def likeness(name: str) -> float:
        matcher.set_seq1(name.lower())
        return matcher.ratio()

    best = max(islice(known, LOOKED_AT), key=likeness, default="")  # of several the first
    return best if likeness(best) >= least else ""


def listed(known: Iterable[str]) -> str:
    """Names in a line, of many the first few."""
    names = list(known) or ["none"]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing where no known name is near."""
    meant = nearest(wrong, known)
    return f"; did you mean {meant}?" if meant else ""


def unknown(what: str, wrong: str, known: Iterable[str], where: str = "") -> str:
    """`no run 'retro': runs in results/open-book: gpt-s1, retro-s1; did you mean retro-s1?`"""
    names = list(known)
    if not names:
        return f"no {what} {wrong!r}: there is none{where and f' in {where}'}."
    return f"no {what} {wrong!r}: {what}s{where and f' in {where}'}: {listed(names)}{did_you_mean(wrong, names) or '.'}"


def beside(path: Path) -> str:
    """What to say of a path that leads nowhere: what lies where it leaves what there is, if that has names of a kind
    or one that is near; else nothing.
    """
    missing = path
    while not os.path.lexists(missing.parent) and missing.parent != missing:
        missing = missing.parent
    folder, inside = missing.parent, missing != path
    if os.path.lexists(missing) or not folder.is_dir():
        return ""
    known = sorted(each.name for each in folder.iterdir() if each.name[0] != "." and (each.is_dir() or not inside))
    what = "condition" if folder.parent.name == "evaluation" else KINDS.get(folder.name)
    if what and known:
        said = unknown(what, missing.name, known, str(folder if what in ("dataset", "condition") else folder.parent))
        return f"N{said[1:]}"
    meant = nearest(missing.name, known, least=0.75)
    return f"Did you mean {folder / meant / path.relative_to(missing)}?" if meant else ""
