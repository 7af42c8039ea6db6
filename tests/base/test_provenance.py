"""The digest changes with code that a stage can reach, and with nothing else; a closure is what Python really loads."""

import subprocess
import textwrap

import pytest

from retro.base import provenance
from retro.base.log import duration
from retro.base.provenance import Package
from tests.base.watched import STAGES, watched


@pytest.fixture
def package(tmp_path):
    """Writes a small package, in a new folder each time, that the digest is taken of instead of this one."""
    written = {"__init__": "", "room____init__": ""}

    def write(**files):
        written.update(files)
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in written.items():
            path = root / (name.replace("room__", "room/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        return Package(root)

    return write


def test_the_closure_follows_every_form_of_import(package):
    found = package(
        stage="import retro.a\nfrom retro import b\n\ndef f():\n    from retro.room.c import thing\n",
        a="from .room import d\n",
        b="",
        room__c="thing = 1\n",
        room__d="from . import e\n",
        room__e="",
        unrelated="",
    )
    names = {name.removeprefix("retro.") for name in found.imported("retro.stage")}
    assert names == {"retro", "stage", "a", "b", "room", "room.c", "room.d", "room.e"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("x = 1", True),
        ("# a comment\nx   =   1\n\n", True),
        ('"""A docstring."""\nx = 1', True),
        ("x = 1\ny = 1", True),
        ("import retro.b\nx = 1", True),
        ("x = 2", False),
        ("x = 1.0", False),
        ("x = 1\nx = x", False),
        ("x = 1\nprint(2)", False),
        ("import os\nx = 1", False),
    ],
)
def test_the_digest_sees_code_that_is_reached_and_nothing_else(package, text, same):
    before = package(stage="from retro.a import x\n\ndef main():\n    return x\n", a="x = 1", b="").digest(
        "retro.stage"
    )
    assert (package(a=text).digest("retro.stage") == before) is same


WAYS = {  # from a `main` to the constant `x` of the module `a`
    "its name": "from retro.a import x\ndef main(): return x",
    "another name": "from retro.a import x as y\ndef main(): return y",
    "its module": "from retro import a\ndef main(): return a.x",
    "its module's other name": "import retro.a as b\ndef main(): return b.x",
    "the whole path": "import retro.a\ndef main(): return retro.a.x",
    "an import in a function": "def main():\n    from retro.a import x\n    return x",
    "an import on a condition": "try:\n    from retro.a import x\nexcept ImportError:\n    x = 0\ndef main(): return x",
    "a star": "from retro.a import *\ndef main(): return x",
    "another module": "from retro.b import x\ndef main(): return x",
    "another module as a whole": "from retro import b\ndef main(): return b.x",
    "a module as a value": "from retro import a\ndef main(): return getattr(a, 'x')",
    "a function": "from retro.a import x\ndef f(): return x\ndef main(): return f()",
    "a method": "from retro.a import x\nclass C:\n    def f(self): return x\ndef main(): return C().f()",
    "a base class": "from retro.a import x\nclass B:\n    y = x\nclass C(B): pass\ndef main(): return C",
    "a default": "from retro.a import x\ndef main(y=x): return y",
    "a decorator": "from retro import a\ndef d(f): return a.x\n@d\ndef main(): pass",
    "a table": "from retro.a import x\nTABLE = {'x': lambda: x}\ndef main(): return TABLE['x']()",
    "a quoted annotation": "from retro import a\nclass C:\n    y: 'a.x'\ndef main(): return C",
    "a global": "from retro.a import x\ny = 0\ndef f():\n    global y\n    y = x\ndef main(): f(); return y",
    "a call on import": "from retro.a import x\nprint(x)\ndef main(): pass",
    "a call for a constant": "from retro.a import x\ndef f(): return x\ny = f()\ndef main(): pass",
    "a changed attribute": "from retro import a, b\nb.y = a.x\ndef main(): pass",
    "a registration": "from retro import a, b\n@b.register\ndef f(): return a.x\ndef main(): pass",
    "a call on another module's import": "from retro import c\ndef main(): pass",
    "a derived class": "from retro import d\ndef main(): pass",
    "no main": "from retro.a import x\ny = x",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_constant_is_reached_by(package, way):
    """And nothing beside it is, unless all of its module is."""
    files = {
        "a": "x = 1\nz = 1",
        "b": "from retro.a import x\ny = 0\ndef register(f): return f",
        "c": "from retro import a\nprint(a.x)",
        "d": "from retro import a\nclass B:\n    def __init_subclass__(cls): pass\nclass C(B):\n    y = a.x\n",
    }
    before = package(stage=WAYS[way], **files).digest("retro.stage")
    assert package(a="x = 2\nz = 1").digest("retro.stage") != before
    assert (package(a="x = 1\nz = 2").digest("retro.stage") == before) is (way != "a module as a value")


def test_a_local_variable_is_not_the_module_s_of_the_same_name(package):
    stage = "from retro import a\ndef main():\n    a = [1]\n    return a\ndef other(): return a.x\n"
    before = package(stage=stage, a="x = 1").digest("retro.stage")
    assert package(a="x = 2").digest("retro.stage") == before


def test_a_definition_that_moves_to_another_module_changes_nothing(package):
    main = "def main(): return f() + y"
    files = {
        "a": "def f(): return x\nx = 1",
        "b": "y = 2",
        "stage": f"from retro.a import f\nfrom retro.b import y\n{main}",
    }
    before = package(**files).digest("retro.stage")
    moved = {"a": "", "b": "def f(): return x\ny = 2\nx = 1", "stage": f"from retro.b import f, y\n{main}"}
    assert package(**moved).digest("retro.stage") == before
    here = {"a": "", "b": "", "stage": f"x = 1\ny = 2\ndef f(): return x\n{main}"}
    assert package(**here).digest("retro.stage") == before


@pytest.mark.parametrize(
    "swapped",
    [
        {"stage": "from retro.b import x\nfrom retro.a import x as y\ndef main(): return x - y"},
        {"a": "from retro.d import z\ndef x(): return z", "b": "from retro.c import z\ndef x(): return z"},
        {"c": "z = 2", "d": "z = 1"},
    ],
    ids=["names", "what they refer to", "values"],
)
def test_two_definitions_of_one_name_that_change_places_are_noticed(package, swapped):
    files = {
        "stage": "from retro.a import x\nfrom retro.b import x as y\ndef main(): return x - y",
        "a": "from retro.c import z\ndef x(): return z",
        "b": "from retro.d import z\ndef x(): return z",
        "c": "z = 1",
        "d": "z = 2",
    }
    before = package(**files).digest("retro.stage")
    assert package(**swapped).digest("retro.stage") != before


def test_another_package_under_the_same_name_is_noticed(package):
    before = package(stage="import numpy as np\ndef main(): return np.load").digest("retro.stage")
    assert package(stage="import pandas as np\ndef main(): return np.load").digest("retro.stage") != before


def test_where_a_module_lies_counts_for_what_looks_at_it(package):
    text = "from pathlib import Path\nfolder = Path(__file__)"
    files = {"stage": "from retro.a import folder\ndef main(): return folder", "a": text}
    before = package(**files).digest("retro.stage")
    moved = {"stage": "from retro.room.a import folder\ndef main(): return folder", "room__a": text}
    assert package(**moved).digest("retro.stage") != before


def test_what_runs_on_import_counts_in_its_order(package):
    before = package(stage="import retro.a\nimport retro.b\ndef main(): pass", a="print(1)", b="print(2)")
    after = package(stage="import retro.b\nimport retro.a\ndef main(): pass")
    assert before.digest("retro.stage") != after.digest("retro.stage")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_nothing_outside_its_closure(stage, warm):
    code = f"import sys, {stage}; print(*[m for m in sys.modules if m.split('.')[0] == 'retro'])"
    loaded = subprocess.run([warm.python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= set(provenance.closure(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_explains_itself(stage, warm):
    done = subprocess.run([warm.python, "-m", stage, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert any(word in done.stdout for word in ("--output", "--summary", "--scores"))


def test_training_does_not_rerun_for_reports_or_the_config_file():
    closure = provenance.closure("retro.training.train")
    assert not [name for name in closure if name.startswith(("retro.report", "retro.evaluation"))]
    assert "retro.config.schema" not in closure


def test_the_model_imports_nothing_from_other_rooms():
    for name in provenance.closure("retro.model.build"):
        assert name in ("retro", "retro.model") or name.startswith("retro.model."), name


@pytest.mark.slow  # a quick run watches no stage
def test_a_stage_that_runs_more_than_its_digest_covers_is_noticed():
    with pytest.raises(AssertionError, match="does not cover"), watched("retro.dataset.dataset"):
        duration(1)
