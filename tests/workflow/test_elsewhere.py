"""What is made elsewhere counts by its content: other content with an older time is noticed, another time is not."""

import json
import os
from pathlib import Path

import pytest

from retro.base.artifacts import write_json
from retro.config.layers import merged
from tests.model.families import LLAMA
from tests.workflow.conftest import Project
from tests.workflow.keys import BASE, FOREIGN, TARGETS, prepare
from tests.workflow.plan import Plan

BERT = {"type": "transformers", "path": "data/bert"}
BEGUN = {"runs": {"retro": {"from": "data/begun"}}}

# What a config names, by file: the config, and the first rules that read it.
NAMED = {
    "data/tiny.jsonl": ({}, {"train_tokenizer", "tokenize"}),
    "data/book.jsonl": ({}, {"tokenize"}),
    "data/vocab.json": ({"dataset": FOREIGN}, {"train_tokenizer"}),
    "data/merges.txt": (
        {"dataset": {"tokenizer": {"type": "gpt2", "path": "data/vocab.json", "merges": "data/merges.txt"}}},
        {"train_tokenizer"},
    ),
    "data/bert/model.safetensors": ({"dataset": {"encoder": BERT}}, {"embed"}),
    "data/bert/1_Pooling/config.json": ({"retrievals": {"fast": {"encoder": BERT}}}, {"retrieval_embed"}),
    "data/questions.jsonl": ({"qa": {"instructions": ["data/others.jsonl"]}}, {"answer"}),
    "data/others.jsonl": ({"qa": {"instructions": ["data/others.jsonl"]}}, {"finetune"}),
    "data/begun/model.json": (BEGUN, {"train"}),
    "data/begun/model.safetensors": (BEGUN, {"train"}),
    "data/hub/model.safetensors": ({"runs": {"retro": {"from": "data/hub"}}}, {"train"}),
    "data/hub/tokenizer.json": (
        {"dataset": {"tokenizer": {"type": "huggingface", "path": "data/hub"}}},
        {"train_tokenizer"},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project in which nothing was run, with all that is named above."""
    project = Project.create(tmp_path_factory.mktemp("elsewhere") / "project")
    prepare(project.folder)
    data = project.folder / "data"
    hub = ("hub/model.safetensors", "hub/tokenizer.json", "hub/config.json")
    for name in ("bert/model.safetensors", "bert/1_Pooling/config.json", "begun/model.safetensors", *hub):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("{}", encoding="utf-8")
    facts = {
        "format": 1,
        "kind": "model",
        "files": {"model.safetensors": {}},
        "inputs": {},
        "settings": {},
        "counts": {},
    }
    write_json(data / "begun/model.json", facts)
    write_json(data / "hub/config.json", LLAMA)
    for file in data.rglob("*"):
        os.utime(file, (1.5e9, 1.5e9))
    return project.folder


def first(plan: Plan, before: Plan) -> set[str]:
    """The rules of jobs that differ themselves, not those that follow."""
    return {rule for (rule, _), record in plan.records.items() if before.records.get((rule, _)) != record}


def replace(file: Path, older: bool = True) -> None:
    """Other content of the same size, and a time long before."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if older:
        os.utime(file, (1e9, 1e9))


@pytest.mark.parametrize("name", NAMED)
def test_other_content_with_an_older_time_runs_what_reads_it(folder, name):
    over, wanted = NAMED[name]
    config, file = merged(BASE, over), folder / name
    before, content = Plan.of(folder, config, TARGETS), file.read_bytes()
    if name.endswith("model.json"):
        file.write_text(json.dumps(json.loads(content) | {"counts": {}}), encoding="utf-8")
    else:
        replace(file)
    try:
        assert first(Plan.of(folder, config, TARGETS), before) == wanted
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", NAMED)
def test_another_time_runs_nothing(folder, name):
    config = merged(BASE, NAMED[name][0])
    before = Plan.of(folder, config, TARGETS)
    os.utime(folder / name)
    assert first(Plan.of(folder, config, TARGETS), before) == set()


def test_what_an_encoder_does_not_read_of_its_folder_runs_nothing(folder):
    config = merged(BASE, {"dataset": {"encoder": BERT}})
    before = Plan.of(folder, config, TARGETS)
    (folder / "data/bert/README.md").write_text("a remark", encoding="utf-8")
    assert first(Plan.of(folder, config, TARGETS), before) == set()


def test_a_model_that_the_config_trains_itself_is_a_beginning_however_its_path_is_written(folder):
    config = merged(BASE, {"runs": {"retro": {"from": "results/../results/tiny/runs/gpt-s1"}}})
    plan = Plan.of(folder, config, TARGETS)
    reading = next(jobs for (_, made), jobs in plan.dependants.items() if "results/tiny/runs/gpt-s1/model.json" in made)
    assert any("results/tiny/runs/retro-s1/model.json" in made for _, made in reading)
