"""What to say of a target of Snakemake's that is none: Snakemake names only the wrong one."""

import os
from collections.abc import Collection
from itertools import pairwise
from pathlib import PurePosixPath

from retro.base.names import LISTED, tuned
from retro.base.nearest import KINDS, did_you_mean, listed, unknown
from retro.config.workflow import Workflow
from retro.evaluation.conditions import BUILT_IN, Condition
from retro.experiments.catalogue import CATALOGUE

TARGETS = (  # rules that are worth asking for by their names
    *("all", "preprocess", "train_all", "retrievals", "indexes", "experiments", "leakage", "copying", "qa"),
    "validate",
)


def no_target(workflow: Workflow, target: str, rules: Collection[str]) -> str:
    """What to say of a target that is none: no rule, no file, of a name that the config does not have. Else
    nothing: Snakemake knows what it makes.
    """
    *above, name = PurePosixPath(os.path.relpath(target)).parts
    if target in rules or os.path.lexists(target):
        return ""
    if not above:
        near = did_you_mean(target, [*TARGETS, *rules])
        return f"no target {target!r}: targets: {listed(TARGETS)}, or a file below {workflow.folder}{near or '.'}"
    folder, parts = PurePosixPath(os.path.relpath(workflow.folder)), [*above, name]
    if above[: len(folder.parts)] != [*folder.parts]:
        dataset = PurePosixPath(*parts[: len(folder.parts)])
        if len(dataset.parts) < len(folder.parts) or dataset.parent != folder.parent:
            return ""
        return f"{unknown('dataset', dataset.name, [folder.name], 'this config')} Another config makes another."
    below = parts[len(folder.parts) :]
    for before, each in pairwise(below):
        what, there = KINDS.get(before), known(workflow).get(before)
        wanted = each.split(".")[0] if what == "experiment" else each
        if what and there is not None and wanted not in there:
            return unknown(what, wanted, there, "this config")
    if len(below) > 4 and below[0] == "runs" and below[2] == "evaluation":
        source = below[4].split("+")[0]
        sources = [*BUILT_IN, *workflow.retrievals.named]
        if source not in sources and not Condition(source).fraction:
            return unknown("condition", source, sources, "this config")
    return ""


def known(workflow: Workflow) -> dict[str, list[str]]:
    """Names that the config has, by the folder that has a folder of each."""
    runs = [*workflow.runs, *(tuned(run, workflow.config.qa.name) for run in workflow.runs)]
    names = {"runs": runs, "retrievals": workflow.retrievals.named, "experiments": list(CATALOGUE)}
    lists = {"source": workflow.sources, "split": list(LISTED)}
    return names | {folder: lists[what] for folder, what in KINDS.items() if what in lists}
