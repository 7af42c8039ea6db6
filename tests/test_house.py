"""The rooms of the package: the drawn map is what the imports say, and borders are where they are worth something."""

import ast
import re
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from itertools import combinations
from pathlib import Path

from retro.base import provenance
from tests.base.watched import STAGES

PACKAGE = provenance.ROOT
ROOT = PACKAGE.parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
SMALL = 80  # lines that two modules of equal reruns have together at least


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file names in an import statement, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if (source := provenance.source_path(name)) and source.name != "__init__.py"}


@cache
def arrows() -> dict[str, set[str]]:
    """Rooms, and the rooms that each imports."""
    found: dict[str, set[str]] = {}
    for path in MODULES:
        room = name_of(path).split(".")[1]
        found.setdefault(room, set()).update(name.split(".")[1] for name in imported(path) if name.startswith("retro."))
    return {room: others - {room} for room, others in found.items()}


@cache
def drawn() -> frozenset[tuple[str, str]]:
    """Arrows of the map in docs/architecture.md."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^\s*(\w+) --> (\w+)$", page.split("```mermaid")[1].split("```")[0], re.MULTILINE))


def reached(room: str, ways: set[tuple[str, str]]) -> set[str]:
    """Rooms that can be reached from one by the arrows."""
    found, waiting = set(), [room]
    while waiting:
        here = waiting.pop()
        new = {after for before, after in ways if before == here} - found
        found |= new
        waiting += new
    return found


def test_rooms_import_in_one_direction():
    assert list(TopologicalSorter(arrows()).static_order())  # raises CycleError, which names the circle


def test_modules_of_a_room_import_in_one_direction():
    TopologicalSorter({name_of(path): imported(path) for path in MODULES}).prepare()


def test_every_import_follows_the_arrows_of_the_map():
    wrong = {
        f"{room} imports {other}"
        for room, others in arrows().items()
        for other in others
        if other not in reached(room, drawn())
    }
    assert not wrong


def test_every_arrow_of_the_map_is_an_import():
    assert {(before, after) for before, after in drawn() if after not in arrows().get(before, ())} == set()


def test_the_map_has_no_arrow_that_others_imply():
    implied = {(before, after) for before, after in drawn() if after in reached(before, drawn() - {(before, after)})}
    assert not implied


def test_nothing_lies_beside_the_rooms():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py"}
    assert all(path.parent.parent == PACKAGE for path in MODULES)


def test_small_modules_of_equal_reruns_are_one_module():
    """A border between modules of one room is worth having where it parts what reruns, or what one reads at once."""
    assert len(STAGES) > 20
    closures = {stage: set(provenance.closure(stage)) for stage in STAGES}
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    signature = {name: frozenset(stage for stage in STAGES if name in closures[stage]) for name in lines}
    pairs = [
        f"{one} and {other}: {lines[one] + lines[other]} lines"
        for one, other in combinations(sorted(lines), 2)
        if one.split(".")[1] == other.split(".")[1]
        and signature[one] == signature[other]
        and lines[one] + lines[other] < SMALL
        and not {one, other} & {f"retro.{one.split('.')[1]}.settings"}  # every room keeps its settings in one place
    ]
    assert pairs == []


def test_what_needs_no_tensors_starts_without_torch(warm):
    """What the rules import, in every Snakemake process, and the stages before vectors: torch takes seconds."""
    rules = (ROOT / "rules/common.smk").read_text(encoding="utf-8")
    needed = set(re.findall(r"^(?:from|import) (retro[\w.]*)", rules, re.MULTILINE))
    stages = {stage for stage in STAGES if stage.startswith("retro.corpus.")}
    assert "retro.config.schema" in needed and "retro.corpus.tokenize" in stages
    modules = sorted(needed | stages | {"retro.database.chunk", "retro.database.assemble", "retro.retrieval.bm25"})
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([warm.python, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "faiss"} & set(done.stdout.split())
