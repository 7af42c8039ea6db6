"""A run that begins with a folder of Hugging Face's: what the folder decides, what the config may say, what is read."""

import json
from pathlib import Path

import pytest

from retro.base.stage import UserError
from retro.config.layers import merged
from retro.config.schema import Config, parse
from retro.config.workflow import Workflow
from retro.corpus.settings import TokenizerSettings
from retro.corpus.train_tokenizer import copy_given, with_end
from tests.model.families import LLAMA


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with everything but tensors."""
    monkeypatch.chdir(tmp_path)
    made = Path("models/small")
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps(LLAMA))
    (made / "model.safetensors").write_bytes(b"")
    added = [{"id": 2, "content": "</end>", "special": True}, {"id": 5, "content": "<other>", "special": True}]
    (made / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return made


def config(**over) -> Config:
    base = {
        "dataset": {"name": "d", "sources": {"a": {"path": "a.jsonl"}}, "samples": {"seq_length": 64}},
        "runs": {
            "base": {"architecture": "gpt", "from": "models/small", "freeze": "base"},
            "fitted": {"architecture": "retro", "twin": "base", "from": "base", "freeze": "base"},
        },
    }
    return parse(merged(base, over))


def test_the_decoder_is_the_folder_s_and_the_retrieval_half_the_config_s(folder):
    runs = config(preset="tiny", model={"cca_layers": "paper", "encoder_width": 16}).models()
    for run in runs.values():
        s = run.model
        assert (s.layers, s.width, s.heads, s.kv_heads, s.ffn_dim) == (9, 24, 3, 1, 40)  # not the preset's
        assert (s.activation, s.norm_eps, s.rope_base, s.tied) == ("swiglu", 1e-6, 500.0, True)
        assert (s.cca_at, s.encoder_dim, s.flavour) == ((6, 9), 16, "copy-ready")
    assert runs["base-s1"].start == "models/small/config.json"
    assert runs["fitted-s1"].start == "results/d/runs/base-s1/model.json"


def test_a_model_json_in_a_folder_comes_before_a_config_json(folder):
    (folder / "model.json").write_text("{}")
    assert config().models()["base-s1"].start == "models/small/model.json"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"runs": {"fitted": {"model": {"layers": 6}}}}, "runs.fitted.model.layers: found 6, but .*decides it: 9"),
        ({"runs": {"base": {"model": {"norm": "layernorm"}}}}, "runs.base.model.norm: found 'layernorm', but"),
        ({"model": {"width": 32, "heads": 4}}, "(?s)model.width: found 32.*model.heads: found 4"),
    ],
)
def test_what_contradicts_the_folder_is_refused_by_its_key(over, message, folder):
    with pytest.raises(UserError, match=message):
        config(**over)


def test_what_says_the_same_as_the_folder_is_taken(folder):
    assert config(model={"width": 24, "heads": 3, "qkv_bias": False}, runs={"fitted": {"model": {"layers": 9}}})


def test_the_section_may_be_of_another_run(folder):
    """The folder's runs take theirs from the folder all the same."""
    runs = config(model={"width": 32, "heads": 4}, runs={"own": {"architecture": "gpt"}}).models()
    assert (runs["own-s1"].model.width, runs["fitted-s1"].model.width) == (32, 24)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"sliding_window": 32, "model_type": "mistral"},
            "config.json: sliding_window is 32, which texts of 64 tokens",
        ),
        ({"model_type": "mamba"}, "config.json: model_type is 'mamba', wanted one of"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "config.json: rope_scaling.rope_type is 'dynamic'"),
        ({"model_type": ["llama"]}, r"config.json: model_type is \['llama'\], wanted one of"),
        ({"hidden_size": "24"}, "config.json: hidden_size is '24', wanted a number above 0"),
        ({"num_attention_heads": 0}, "config.json: num_attention_heads is 0, wanted a number above 0"),
        ({"intermediate_size": 0}, "config.json: intermediate_size is 0, wanted"),
        ({"rope_theta": None}, "config.json: lacks rope_theta"),
        ({"rope_parameters": [1]}, r"config.json: rope_parameters is \[1\], wanted an object"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "rope_parameters.factor is '4', wanted a number"),
    ],
)
def test_a_folder_of_another_kind_is_refused_by_its_key(facts, message, folder):
    (folder / "config.json").write_text(json.dumps(LLAMA | facts))
    with pytest.raises(UserError, match=message):
        config()


@pytest.mark.parametrize("what", ["folder", "config.json"])
def test_a_folder_that_is_not_there_is_refused_with_the_command_that_fetches_it(what, folder):
    for path in folder.iterdir() if what == "folder" else [folder / what]:
        path.unlink()
    if what == "folder":
        folder.rmdir()
    with pytest.raises(UserError, match="hf download <owner>/small --local-dir models/small") as error:
        Workflow(config())
    assert str(error.value).startswith("runs.base.from: models/small: ")


def test_what_is_read_of_a_folder_counts_by_its_content(folder):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    assert Workflow(config()).begun("base-s1") == (None, [f"{folder}/config.json", f"{folder}/model.safetensors"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for number in (1, 2):
        (folder / f"model-{number}.safetensors").write_bytes(b"")
    names = ["config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"]
    assert Workflow(config()).begun("base-s1") == (None, [f"{folder}/{name}" for name in names])
    assert Workflow(config()).begun("fitted-s1") == ("results/d/runs/base-s1/model.json", [])


def test_the_tokenizer_is_the_folder_s_and_ends_texts_as_it_does(folder, tmp_path):
    given = TokenizerSettings(type="huggingface", path="models/small")
    assert TokenizerSettings(**given.facts()) == given and given.eod == ""
    assert given.given == [f"{folder}/tokenizer.json", f"{folder}/config.json"]
    assert with_end(given).eod == "</end>"
    assert with_end(TokenizerSettings(type="huggingface", path="models/small", eod="<other>")).eod == "<other>"
    assert list(copy_given(given, tmp_path / "made")) == given.given
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("generation_config.json", {"eos_token_id": [5, 2]}),
        ("tokenizer_config.json", {"eos_token": "<other>"}),
        ("special_tokens_map.json", {"eos_token": {"content": "<other>", "lstrip": False}}),
    ],
)
def test_the_end_of_text_is_found_in_whichever_file_names_it(name, facts, folder):
    (folder / "config.json").write_text(json.dumps({key: LLAMA[key] for key in LLAMA if key != "eos_token_id"}))
    given = TokenizerSettings(type="huggingface", path="models/small")
    with pytest.raises(UserError, match=r"models/small: names no token that ends a text"):
        with_end(given)
    (folder / name).write_text(json.dumps(facts))
    assert with_end(given).eod == "<other>"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "[]", "tokenizer.json: not what a tokenizer's folder holds under this name"),
        ("tokenizer.json", '{"added_tokens": {"</end>": 2}}', "tokenizer.json: not what a tokenizer's folder holds"),
        ("config.json", "[]", "config.json: not what a tokenizer's folder holds under this name"),
        ("config.json", '{"eos_token_id": [[2]]}', "models/small: names no token that ends a text"),
    ],
)
def test_a_damaged_folder_of_a_tokenizer_is_refused_by_its_file(name, text, message, folder):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        with_end(TokenizerSettings(type="huggingface", path="models/small"))
