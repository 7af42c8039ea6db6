"""config/schema.json, which editors check configs with, takes what the project ships and refuses what it refuses."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from retro.base import provenance

ROOT = provenance.ROOT.parent
SHIPPED = sorted([*(ROOT / "config").glob("*.yaml"), *(ROOT / "config/models").glob("*.yaml")])
SCHEMA = Draft202012Validator(json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path):
    assert not list(SCHEMA.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_names_the_schema_in_its_first_line(path):
    mark, schema = path.read_text(encoding="utf-8").splitlines()[0].split("=")
    assert mark == "# yaml-language-server: $schema"
    assert (path.parent / Path(schema)).resolve() == ROOT / "config/schema.json"


@pytest.mark.parametrize(
    "wrong", [{"datset": {}}, {"dataset": {"chunk_length": "long"}}, {"train": {"lr": -1}}, {"runs": {"a": {"b": 1}}}]
)
def test_what_no_config_may_have_is_underlined(wrong):
    assert list(SCHEMA.iter_errors(wrong))
