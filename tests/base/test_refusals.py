"""A wrong key or value is told in the same words wherever settings are read: config, command line, run, web page."""

import json

import pytest
from pydantic import ValidationError

from retro.base.stage import UserError, read_section, reasons
from retro.config.layers import RetrievalSettings, resolve
from retro.generation.serve import Wish
from retro.retrieval.settings import IndexSettings
from retro.training.settings import Run

RUN = {"name": "gpt-s1", "architecture": "gpt", "seed": 1, "model": {}, "train": {}}


def index_of(index: dict) -> None:
    dataset = {"retriever": "dense", "encoder": {}, "index": {}, "neighbours": {}}
    resolve(dataset, RetrievalSettings(index=index))


def section_of(index: dict) -> None:
    read_section(IndexSettings, index, "index")


def run_of(train: dict) -> None:
    Run.parse(json.dumps({**RUN, "train": train}), "--run")


@pytest.mark.parametrize(
    ("read", "key", "value", "words"),
    [
        (section_of, "nprob", 1, "--settings: index.nprob: unknown key; did you mean index.nprobe? "),
        (section_of, "nprobe", 0, "--settings: index.nprobe: wanted greater than 0 (found 0)"),
        (index_of, "nprob", 1, "index.nprob: unknown key; did you mean index.nprobe? "),
        (index_of, "nprobe", 0, "index.nprobe: wanted greater than 0"),
        (run_of, "lrr", 1, "--run: train.lrr: unknown key; did you mean train.lr? "),
        (run_of, "lr", 0, "--run: train.lr: wanted greater than 0 (found 0)"),
    ],
)
def test_the_key_the_value_and_a_way_out_are_named(read, key, value, words):
    with pytest.raises((UserError, ValueError)) as refused:
        read({key: value})
    assert words in str(refused.value) and "Input should be" not in str(refused.value)


def test_a_key_of_the_model_is_told_as_one():
    with pytest.raises(UserError, match=r"--run: model\.widht: unknown key; did you mean model\.width\?"):
        Run.parse(json.dumps({**RUN, "model": {"widht": 1}}), "--run")


def test_a_page_is_told_its_own_keys_not_the_configs():
    with pytest.raises(ValidationError) as refused:
        Wish.model_validate_json('{"prompt": "a", "tokns": 3}')
    (line,) = reasons(refused.value, Wish, listed="wanted prompt, tokens")
    assert line.startswith("tokns: unknown key; ") and line.endswith("wanted prompt, tokens")
