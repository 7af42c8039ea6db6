"""A constant changed in any module: exactly the rules run again whose stage can run that module."""

import ast
import re

import pytest

from retro import provenance
from tests.workflow.conftest import ROOT
from tests.workflow.test_rerun_keys import base, folder  # noqa: F401

UNTRACKED = {"recompute"}  # runs whenever it is asked for
STARTS = {"retro.training.launch": "retro.training.train"}  # a launcher changes no byte


@pytest.fixture(scope="module")
def stages(base) -> dict[str, str]:  # noqa: F811
    """Rule: the module it runs, checked against the digest that is its param."""
    found = {}
    for (rule, _), (params, _, shell) in base.records.items():
        named = re.search(r"python -m (retro[\w.]+)", shell or "")
        if named and rule not in UNTRACKED:
            module = found[rule] = STARTS.get(named[1], named[1])
            assert any(provenance.digest(module) in param for param in params), f"{rule} has no code() of {module}"
    assert len(found) >= 25
    return found


def test_every_module_reruns_the_stages_whose_closure_holds_it_and_no_other(stages, monkeypatch):
    """The digest of a stage is taken of the modules as they are, then with one of them changed."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "retro").rglob("*.py"))
    ]
    closures = {rule: set(provenance.closure(module)) for rule, module in stages.items()}
    trees = {name: ast.Constant(name) for name in modules}  # stand for the modules: what is hashed is their tree
    monkeypatch.setattr(provenance, "_tree", trees.__getitem__)
    digest = provenance.digest.__wrapped__
    before = {rule: digest(module) for rule, module in stages.items()}
    for name in modules:
        trees[name] = ast.Constant(f"{name}, edited")
        changed = {rule for rule, module in stages.items() if digest(module) != before[rule]}
        trees[name] = ast.Constant(name)
        assert changed == {rule for rule, closure in closures.items() if name in closure}, name


def test_rooms_do_not_rerun_what_stands_before_them(stages):
    """What an edit in a room can make run again at most: the direction in which data flows."""
    later = {
        "retro.validate": set(),
        "retro.planning": set(),
        "retro.interop": {"train"},
        "retro.report": {"leakage", "figures", "explorer", "page", "qa", "experiment", "experiments_part"},
        "retro.qa": {"finetune", "answer", "score", "qa"},
    }
    for rule, module in stages.items():
        for room, allowed in later.items():
            inside = [name for name in provenance.closure(module) if name.startswith(f"{room}.")]
            assert not inside or rule in allowed, f"{rule} runs again for {inside}"
