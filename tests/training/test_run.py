"""A run as one value: what it is written as, and what is refused."""

import json

import pytest
from pydantic import ValidationError

from retro.base.artifacts import canonical
from retro.base.stage import UserError
from retro.config.schema import parse
from retro.training.settings import ImportedModel, Recorded, Run, TrainedRun, described
from tests.training.toy import run_json

LENGTHS = {"chunk_length": 8, "retrieved_length": 16, "seq_length": 32, "vocab_size": 257}


def of(text, **more):
    return {**json.loads(text), **more}


def test_a_run_is_its_json_and_back():
    config = parse({"dataset": {"sources": {"corpus": {"path": "corpus"}}}, "seeds": [1, 2]})
    assert list(config.models()) == ["gpt-s1", "gpt-s2", "retro-s1", "retro-s2"]
    for name, run in config.models().items():
        text = canonical(run.facts())
        assert Run.parse(text, "--run") == run and canonical(config.models()[name].facts()) == text
        assert set(run.facts()) == {"name", "architecture", "twin", "seed", "model", "train", "from", "freeze"}


def test_a_run_cannot_be_changed():
    run = Run.parse(run_json(), "--run")
    for name, value in (("name", "other"), ("train", run.train)):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(run, name, value)


def test_a_trained_run_holds_what_its_manifest_holds_and_no_more():
    facts = Run.parse(run_json(), "--run").facts()
    for more in ({}, {"qa": {"name": "qa"}}):
        settings = {**facts, "recorded": LENGTHS, **more}
        run = described(settings, "model.json")
        assert isinstance(run, TrainedRun) and run.facts() == settings
    assert run.recorded.lengths == LENGTHS and run.base == "retro" and run.retrieves


def test_imported_weights_are_told_from_a_run():
    model = Run.parse(run_json("gpt"), "--run").model
    written = ImportedModel(name="theirs", architecture="gpt", model=model, recorded=Recorded(**LENGTHS)).facts()
    assert set(written) == {"name", "architecture", "seed", "model", "recorded"} and written["recorded"] == LENGTHS
    assert isinstance(described(written, "model.json"), ImportedModel)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (of(run_json(), seed="x"), "model.json: seed: wanted a valid integer"),
        (of(run_json(), colour=1), "model.json: colour: unknown key"),
        (of(run_json(model={"heads": 0})), "model.json: model.heads: wanted greater than or equal to 1"),
    ],
)
def test_each_fault_is_said_with_its_key(facts, message):
    with pytest.raises(UserError) as error:
        Run.of(facts, "model.json")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
