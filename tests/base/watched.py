"""Watches a stage that runs in this process: what runs must be what the stage's digest covers."""

import gc
import inspect
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from retro.base import provenance
from tests import quick

ROOT = provenance.ROOT.parent
RULES = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "Snakefile", *sorted(ROOT.glob("rules/*.smk"))])
STAGES = sorted(set(re.findall(r'code\("([\w.]+)"\)', RULES)))  # modules that rules run


@contextmanager
def watched(module: str) -> Iterator[None]:
    """Note every function of the package that is called in the block, and compare at its end; not in a quick run."""
    if quick.running:
        yield
        return
    codes, before = set(), sys.gettrace()

    def note(frame, event, argument):
        codes.add(frame.f_code)

    gc.disable()  # generators that an earlier test left behind end later; to collect them here would take a second
    threading.settrace(note)
    sys.settrace(note)
    try:
        yield
    finally:
        sys.settrace(before)
        threading.settrace(before)
        gc.enable()
    outside = called(codes) - covered(module)
    assert not outside, f"{module} runs what its digest does not cover: {sorted(outside)}"


def called(codes) -> set[tuple[str, str]]:
    """File and top-level name of the code that is the package's; what runs when a module is imported has no name."""
    root = f"{provenance.ROOT}/"
    functions = [code for code in codes if code.co_flags & inspect.CO_OPTIMIZED]  # a module or a class body is none
    functions = [code for code in functions if code.co_name != "__del__"]  # of what an earlier stage left behind
    names = {(code.co_filename, code.co_qualname.partition(".")[0]) for code in functions}
    return {(path, name) for path, name in names if path.startswith(root) and path.endswith(".py") and name[0] != "<"}


def covered(module: str) -> set[tuple[str, str]]:
    """File and name of every definition that a stage's digest covers."""
    reached = provenance.package().reachable(module)
    return {(str(provenance.source_path(each.module.name)), name) for each in reached for name in each.names}
