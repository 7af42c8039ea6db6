"""Code changed in any module: exactly the rules run again whose stage can reach what is changed."""

import ast
import re
from pathlib import Path

import pytest

from retro.base import provenance
from retro.base.definitions import Module
from retro.base.provenance import Package
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


OTHERS = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.BitOr: ast.BitAnd, ast.Eq: ast.NotEq, ast.Lt: ast.LtE}
OTHERS |= {ast.Gt: ast.GtE, ast.Is: ast.IsNot, ast.In: ast.NotIn, ast.And: ast.Or}
OTHERS |= {other: one for one, other in OTHERS.items()}
# What may hold text, or types alone.
PASSED = ast.Call | ast.JoinedStr | ast.Assert | ast.Raise | ast.AnnAssign | ast.arguments


class Edit(ast.NodeTransformer):
    """Changes the first number or operator it comes to."""

    done = False

    def visit(self, node: ast.AST) -> ast.AST:
        if self.done or isinstance(node, PASSED):
            return node
        if type(node) in OTHERS:
            self.done = True
            return OTHERS[type(node)]()
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            self.done = True
            return ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
        return self.generic_visit(node)


def edited(path: Path, number: int) -> str | None:
    """The text of a file with one edit in its top-level statement `number`; None where there is nothing to edit."""
    tree, edit = ast.parse(path.read_text(encoding="utf-8")), Edit()
    edit.generic_visit(tree.body[number])
    return ast.unparse(ast.fix_missing_locations(tree)) if edit.done else None


def test_an_edit_reruns_the_stages_that_reach_it_and_no_other(stages, tmp_path):
    """In every module: one definition of each set of stages that reach it is edited."""
    here = Package(ROOT / "retro")
    modules = sorted(set(stages.values()))
    before = {module: here.digest(module) for module in modules}
    reached = {module: {id(statement) for statement in here.reachable(module)} for module in modules}
    closures = {module: set(here.imported(module)) for module in modules}
    tried = 0
    for name in sorted(set().union(*closures.values())):
        path, groups = here.path(name), set()
        numbers = {statement.node.lineno: statement for statement in here.module(name).statements}
        for number, node in enumerate(ast.parse(path.read_text(encoding="utf-8")).body):
            statement = numbers.get(node.lineno)
            if statement is None or not statement.names:
                continue
            wanted = frozenset(module for module in modules if id(statement) in reached[module])
            if wanted in groups or (text := edited(path, number)) is None:
                continue
            groups.add(wanted)
            tried += 1
            (tmp_path / path.name).write_text(text, encoding="utf-8")
            there = Package(here.root)
            there.read = {**here.read, name: Module(name, tmp_path / path.name)}
            changed = {
                module for module in modules if name in closures[module] and there.digest(module) != before[module]
            }
            assert changed == wanted, f"{name}, line {node.lineno}: {ast.unparse(node)[:80]}"
    assert tried > 150


def test_rooms_do_not_rerun_what_stands_before_them(stages):
    """What an edit in a room can make run again at most: the direction in which data flows."""
    later = {
        "retro.validate": set(),
        "retro.planning": set(),
        "retro.interop": {"train"},
        "retro.report": {"leakage", "copying", "figures", "explorer", "page", "qa", "experiment", "experiments_part"},
        "retro.qa": {"finetune", "answer", "score", "qa"},
    }
    for rule, module in stages.items():
        for room, allowed in later.items():
            inside = [name for name in provenance.closure(module) if name.startswith(f"{room}.")]
            assert not inside or rule in allowed, f"{rule} runs again for {inside}"
