"""The digest changes with code, and with nothing else; the static closure is what Python really loads."""

import subprocess
import textwrap

import pytest

from retro import provenance

STAGES = [
    "retro.corpus.train_tokenizer",
    "retro.corpus.tokenize",
    "retro.database.chunk",
    "retro.database.embed",
    "retro.database.assemble",
    "retro.retrieval.index",
    "retro.retrieval.neighbours",
    "retro.record",
    "retro.training.train",
    "retro.evaluation.losses",
    "retro.evaluation.summarise",
    "retro.evaluation.sample",
    "retro.report.figures",
    "retro.report.explorer",
    "retro.report.page",
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package that the digest is taken of instead of this one."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        for cached in (provenance._tree, provenance.closure, provenance.digest):
            cached.cache_clear()

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "room").mkdir()
    (tmp_path / "room/__init__.py").write_text("")
    yield write
    for cached in (provenance._tree, provenance.closure, provenance.digest):
        cached.cache_clear()


def test_the_closure_follows_every_form_of_import(package):
    package(
        stage="import retro.a\nfrom retro import b\n\ndef f():\n    from retro.room.c import thing\n",
        a="from .room import d\n",
        b="",
        room__c="thing = 1\n",
        room__d="from . import e\n",
        room__e="",
        unrelated="",
    )
    names = {name.removeprefix("retro.") for name in provenance.closure("retro.stage")}
    assert names == {"retro", "stage", "a", "b", "room", "room.c", "room.d", "room.e"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("x = 1", True),
        ("# a comment\nx   =   1\n\n", True),
        ('"""A docstring."""\nx = 1', True),
        ("x = 2", False),
        ("x = 1\ny = 1", False),
        ("import retro.b\nx = 1", False),
    ],
)
def test_the_digest_sees_code_and_nothing_else(package, text, same):
    package(stage="import retro.a\n", a="x = 1", b="")
    before = provenance.digest("retro.stage")
    package(a=text)
    assert (provenance.digest("retro.stage") == before) is same


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_nothing_outside_its_closure(stage, warm):
    code = f"import sys, {stage}; print(*[m for m in sys.modules if m.split('.')[0] == 'retro'])"
    loaded = subprocess.run([warm.python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= set(provenance.closure(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_explains_itself(stage, warm):
    done = subprocess.run([warm.python, "-m", stage, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--output" in done.stdout or "--summary" in done.stdout


def test_training_does_not_rerun_for_reports_or_the_config_file():
    closure = provenance.closure("retro.training.train")
    assert not [name for name in closure if name.startswith(("retro.report", "retro.evaluation"))]
    assert "retro.config" not in closure


def test_the_model_imports_nothing_from_other_rooms():
    for name in provenance.closure("retro.model.build"):
        assert name in ("retro", "retro.model") or name.startswith("retro.model."), name
