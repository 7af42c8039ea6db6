"""The config refuses what it does not know, in words a user can act on, and its documentation is current."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from retro.base import stage
from retro.base.stage import UserError
from retro.config import layers, schema
from retro.config.checks import doubts
from retro.tools import docs

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"dataset": {"name": "d", "sources": {"a": {"path": "a.jsonl"}}}}

ASKED = {"query_path": "'e'", "pooling": "'cls'", "dimensions": 8}


def merged(**sections):
    return layers.merged(GOOD, sections)


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    schema.load(path)


@pytest.mark.parametrize("path", sorted((ROOT / "config/models").glob("*.yaml")), ids=lambda path: path.name)
def test_every_preset_makes_a_valid_config(path):
    assert schema.parse(merged(preset=path.stem)).model.layers >= 1


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (merged(trian={}), ["trian: unknown key"]),
        (merged(dataset={"chunk_lenght": 64}), ["chunk_lenght: unknown key; did you mean dataset.chunk_length?"]),
        (merged(lr=0.1), ["lr: unknown key; did you mean train.lr?"]),
        (merged(dataset={"sources": {"a": {"pth": "x"}}}), ["did you mean dataset.sources.a.path?"]),
        (merged(dataset={"duplicates": {"action": False}}), ["found False; YAML reads on, off", "in quotes"]),
        (merged(train=None), ["train: wanted a mapping of keys to values (found nothing)"]),
        (merged(results="a{b}"), ["results: 'a{b}' has braces"]),
        (merged(results=" "), ["results: found blank text"]),
        (merged(train={"lr": float("inf")}), ["train.lr: found inf", "finite"]),
        (merged(dataset={"seed": 2**70}), ["dataset.seed: found 1180591620717411303424", "64 bits"]),
        (merged(evaluate={"stride": 33}), ["evaluate.stride: found 33", "multiple of dataset.chunk_length 64"]),
        (merged(train={"neighbours_used": 50}), ["neighbours_used: found 50, but dataset.neighbours.saved is 20"]),
        (merged(experiments={"of": "x"}), ["experiments.of: found 'x'", "of this config: retro"]),
        (merged(experiments={"k": [30]}), ["experiments.k: found 30, but dataset.neighbours.saved is 20"]),
        (
            merged(dataset={"neighbours": {"exclude": ["later"]}}),
            ["dataset.neighbours.exclude: later", "source a has none", "dataset.sources.a.fields.date"],
        ),
        (merged(dataset={"neighbours": {"filter": {"splits": ["test"]}}}), ["names no bound; set run or jaccard"]),
        (merged(dataset={"neighbours": {"filter": {"run": 65}}}), ["filter.run: found 65", "has 64 tokens"]),
        (
            merged(
                evaluate={"retrieved_chunks": 2},
                retrievals={"clean": {"neighbours": {"filter": {"run": 13, "chunks": 1}}}},
            ),
            ["evaluate.retrieved_chunks: found 2, but retrievals.clean.neighbours.filter.chunks is 1"],
        ),
        (merged(retrievals={"then": {"neighbours": {"exclude": ["later"]}}}), ["retrievals.then.neighbours.exclude"]),
        (merged(train={"lr": 1e-4}), ["train.min_lr 0.0003 is above train.lr 0.0001"]),
        (
            merged(train={"optimizer": "muon", "parallel": {"fsdp": True}}, resources={"processes": 2}),
            ["runs.gpt: train.optimizer muon needs whole matrices", "over 2 processes"],
        ),
        (
            merged(train={"optimizer": "muon", "parallel": {"tensor": 2}}, resources={"nodes": 2}),
            ["train.optimizer muon needs whole matrices"],
        ),
        (merged(dataset={"tokenizer": {"path": "t.json"}}), ["tokenizer.path: found 't.json', but type bpe"]),
        (merged(dataset={"tokenizer": {"merges": "m"}}), ["tokenizer.merges: found 'm', but type bpe has none"]),
        (merged(dataset={"encoder": {"path": "e"}}), ["encoder.path: found 'e', but type minilm has none"]),
        (
            merged(dataset={"encoder": {"type": "static", "query_path": "e", "pooling": "cls", "dimensions": 8}}),
            [f"encoder.{key}: found {value}, but type static has none" for key, value in ASKED.items()],
        ),
        (
            merged(dataset={"encoder": {"dimensions": 512}}),
            ["dataset.encoder.dimensions: found 512, but its vectors have 384; take at most so many"],
        ),
        (merged(retrievals={"r": {"encoder": {"dimensions": 385}}}), ["retrievals.r.encoder.dimensions: found 385"]),
        (
            merged(retrievals={"r": {"encoder": {"type": "static", "query_path": "e", "dimensions": 8}}}),
            [
                f"retrievals.r.encoder.{key}: found {ASKED[key]}, but type static"
                for key in ("query_path", "dimensions")
            ],
        ),
        (
            merged(retrievals={"r": {"encoder": {"path": "e"}}}),
            ["retrievals.r.encoder.path: found 'e', but type minilm"],
        ),
        (merged(dataset={"encoder": {"query_template": "query: "}}), ["encoder.query_template: ", "{text} once"]),
        (merged(seeds=[1, 1]), ["seeds: found [1, 1], wanted each one once"]),
        (merged(seeds=[-1]), ["seeds: found [-1], wanted numbers from 0 on"]),
        (merged(retrievals={"r\n": {}}), ["retrievals: found 'r\\n'", "letters, digits"]),
        (merged(dataset={"samples": {"seq_length": 100}}), ["seq_length 100", "not a multiple of chunk_length 64"]),
        (merged(dataset={"name": "../up"}), ["dataset.name", "../up"]),
        (merged(dataset={"sources": {"a b": {"path": "x"}}}), ["dataset.sources: found 'a b'", "letters, digits"]),
        (merged(dataset={"split": {"valid": 0.6, "test": 0.5}}), ["leaves nothing to train on"]),
        (merged(train={"lr": "fast"}), ["train.lr", "'fast'"]),
        (merged(runs={"r": {"architecture": "retro", "twin": "nobody"}}), ["twin 'nobody' is not a gpt run"]),
        (
            merged(runs={"r": {"architecture": "gpt", "model": {"widht": 3}}}),
            ["runs.r.model.widht: unknown key; did you mean runs.r.model.width?"],
        ),
        (merged(preset="huge"), ["preset: no file", "presets: 2b, 4b, 857m, small, tiny"]),
        ({"dataset": {}}, ["dataset.sources: is missing"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(raw, words):
    with pytest.raises(UserError) as caught:
        schema.parse(raw)
    for word in words:
        assert word in str(caught.value)


def test_what_a_retrieval_takes_over_from_the_dataset_may_be_left_unread():
    encoder = {"type": "transformers", "path": "e", "query_template": "query: {text}"}
    schema.parse(merged(dataset={"encoder": encoder}, retrievals={"cheap": {"encoder": {"type": "static"}}}))


@pytest.mark.parametrize(("width", "refused"), [(16, True), (17, False), (None, False), ("x", False)])
def test_more_dimensions_than_a_folder_has_are_refused_where_it_tells(width, refused, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": width}))
    raw = merged(dataset={"encoder": {"type": "transformers", "path": str(tmp_path), "dimensions": 17}})
    with pytest.raises(UserError, match="found 17, but its vectors have 16") if refused else nullcontext():
        schema.parse(raw)


@pytest.mark.parametrize("broken", [{"dataset": {"samples": [1]}}, {"dataset": {"samples": "a"}}, {"results": 5}])
def test_a_key_that_preprocessing_decides_is_named_whatever_else_is_wrong(broken):
    with pytest.raises(UserError, match=r"train\.seq_length is decided by preprocessing.*wanted 1024"):
        schema.parse({"dataset": {}, "train": {"seq_length": 1024}, **broken})


def test_training_may_not_set_what_preprocessing_decided(tmp_path):
    raw = merged(results=str(tmp_path), train={"seq_length": 1024})
    with pytest.raises(UserError, match=r"train\.seq_length is decided by preprocessing.*wanted 1024"):
        schema.parse(raw)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/config.json").write_text('{"samples": {"seq_length": 512}}')
    with pytest.raises(UserError, match=r"recorded as 512 in .*config\.json, wanted 1024"):
        schema.parse(raw)


def test_a_run_overrides_model_and_training_and_a_new_flavour_brings_its_own_defaults():
    raw = merged(
        preset="tiny",
        seeds=[1, 2],
        runs={
            "gpt": {"architecture": "gpt"},
            "paper": {"architecture": "retro", "twin": "gpt", "model": {"flavour": "paper"}, "train": {"lr": 0.5}},
        },
    )
    runs = schema.parse(raw).models()
    assert list(runs) == ["gpt-s1", "gpt-s2", "paper-s1", "paper-s2"]
    assert runs["paper-s2"].twin == "gpt-s2"
    assert runs["paper-s1"].train.lr == 0.5 != runs["gpt-s1"].train.lr
    assert runs["gpt-s1"].model.cca == "copy-ready"
    assert runs["paper-s1"].model.cca == "standard"


def test_overrides_on_the_command_line_land_on_the_default_config(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert schema.from_snakemake({}).dataset.name == "open-book"
    assert schema.from_snakemake({"dataset": {"name": "mine"}}).dataset.name == "mine"


def test_readme_and_schema_are_current():
    remedy = "run: python -m retro.tools.docs"
    assert (ROOT / "config/README.md").read_text(encoding="utf-8") == docs.readme(), remedy
    assert (ROOT / "config/schema.json").read_text(encoding="utf-8") == docs.schema(), remedy


def test_every_key_is_described():
    def walk(model):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            inside = stage.settings_in(field.annotation)
            if inside:
                walk(inside)

    walk(schema.Config)


def test_a_broken_file_is_one_clear_message(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: [1,\nb: 2")
    with pytest.raises(UserError, match=r"c\.yaml: not valid YAML"):
        schema.load(path)
    path.write_text(yaml.safe_dump([1, 2]))
    with pytest.raises(UserError, match=r"wanted a mapping of sections, found list"):
        schema.load(path)
    path.write_text("train: {lr: 1}\nseeds: [1]\ntrain: {lr: 2}\n")
    with pytest.raises(UserError, match="line 3: train stands here a second time"):
        schema.load(path)
    path.write_text("a: &x {b: *x}\n")
    with pytest.raises(UserError, match="leads back to itself"):
        schema.load(path)
    with pytest.raises(UserError, match=r"no such config file"):
        schema.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"train": {"warmup_samples": 100}, "dataset": {"samples": {"train_samples": 100}}}, []),
        (
            {"train": {"warmup_samples": 101}, "dataset": {"samples": {"train_samples": 100}}},
            ["runs.gpt", "runs.retro"],
        ),
        ({"runs": {"retro": {"train": {"samples_share": 0.01}}}}, ["runs.retro"]),
        ({"qa": {"questions": "q.jsonl", "examples": 299}}, ["qa.warmup_samples 300"]),
        ({"qa": {"examples": 299}}, []),
    ],
    ids=["just as long", "longer", "of one run", "of fine-tuning", "of no fine-tuning"],
)
def test_a_warm_up_longer_than_its_training_is_doubted(over, told):
    runs = {"gpt": {"architecture": "gpt"}, "retro": {"architecture": "retro", "twin": "gpt"}}
    config = schema.parse(layers.merged({**GOOD, "runs": runs}, over))
    lines = list(doubts(config, config.models()))
    assert [line.partition(":")[0].partition(" is ")[0] for line in lines] == told
    assert all("learning rate never reaches" in line for line in lines)


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_no_shipped_config_is_doubted(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = schema.load(path)
    assert not list(doubts(config, config.models()))
