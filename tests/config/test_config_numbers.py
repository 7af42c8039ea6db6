"""Values that YAML or a type would change without a word are refused, with what they would have become."""

import json
from pathlib import Path

import pytest
import yaml

from retro.base.stage import UserError
from retro.config import schema
from retro.config.layers import read

BASE = "preset: tiny\ndataset: {sources: {a: {path: x.jsonl}}}\n"


def load(tmp_path: Path, text: str, name: str = "c.yaml") -> schema.Config:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return schema.load(tmp_path / name)


CHANGED = {
    # what is written: (as what it is read, its base)
    "0100": ("64", 8),
    "010": ("8", 8),
    "-017": ("-15", 8),
    "0_7": ("7", 8),
    "00": ("0", 8),
    "1:30": ("90", 60),
    "-1:00:00": ("-3600", 60),
    "1:30.5": ("90.5", 60),
}


@pytest.mark.parametrize("written", CHANGED)
@pytest.mark.parametrize("line", ["seeds: [{}]", "dataset: {{samples: {{train_samples: {}}}}}", "train: {{lr: {}}}"])
def test_a_number_that_yaml_would_change_is_refused_with_what_it_would_become(tmp_path, written, line):
    value, base = CHANGED[written]
    with pytest.raises(UserError) as caught:
        load(tmp_path, f"preset: tiny\n{line.format(written)}\n")
    assert f"c.yaml: not valid YAML: line 2: {written} would become {value}," in str(caught.value)
    assert f"to the base of {base}" in str(caught.value)
    assert yaml.safe_load(written) == float(value)


def test_a_key_that_yaml_would_change_is_refused(tmp_path):
    with pytest.raises(UserError, match="line 3: 010 would become 8"):
        load(tmp_path, BASE + "runs: {010: {architecture: gpt}}\n")


def test_a_preset_s_numbers_are_looked_at_too(tmp_path):
    (tmp_path / "under.yaml").write_text(BASE + "seeds: [010]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"under\.yaml.*010 would become 8"):
        load(tmp_path, f"preset: {tmp_path / 'under.yaml'}\n")


@pytest.mark.parametrize(
    ("written", "value"), [("0", 0), ("8", 8), ("1_000", 1000), ("0x10", 16), ("'010'", 10), ("+5", 5), ("1e1", None)]
)
def test_other_numbers_are_read_as_they_are_written(tmp_path, written, value):
    text = BASE + f"seeds: [{written}]\n"
    if value is None:  # to YAML 1.1 it is text, and no integer
        with pytest.raises(UserError, match="seeds"):
            load(tmp_path, text)
    else:
        assert load(tmp_path, text).seeds == [value]


TRUTHS = {
    "seeds: [{}]": "seeds",
    "train: {{lr: {}}}": "train.lr",
    "model: {{layers: {}}}": "model.layers",
    "model: {{cca_layers: [{}]}}": "model.cca_layers",
    "dataset: {{sources: {{a: {{path: x, weight: {}}}}}}}": "dataset.sources.a.weight",
    "resources: {{gpus: {}}}": "resources.gpus",
    "runs: {{gpt: {{architecture: gpt, train: {{lr: {}}}}}}}": "runs.gpt.train.lr",
}


@pytest.mark.parametrize("line", TRUTHS)
@pytest.mark.parametrize("word", ["yes", "on", "true", "no", "off"])
def test_a_word_that_yaml_reads_as_true_is_no_number(tmp_path, line, word):
    text = BASE if not line.startswith("dataset") else "preset: tiny\n"
    with pytest.raises(UserError) as caught:
        load(tmp_path, text + line.format(word) + "\n")
    assert f"{TRUTHS[line]}" in str(caught.value)
    assert "wanted a number" in str(caught.value)


@pytest.mark.parametrize("word", ["yes", "on", "true"])
def test_a_word_that_yaml_reads_as_true_is_true(tmp_path, word):
    assert load(tmp_path, BASE + f"evaluate: {{random_neighbours: {word}}}\n").evaluate.random_neighbours is True


TWICE = [
    '{"preset": "tiny", "seeds": [1], "seeds": [2]}',
    '{"preset": "tiny", "dataset": {"sources": {"a": {"path": "x"}, "a": {"path": "y"}}}}',
    '{"preset": "tiny", "train": {"lr": 1,\n\t"lr": 2}}',
]


@pytest.mark.parametrize("text", TWICE)
@pytest.mark.parametrize("name", ["c.json", "c.yaml", "c.yml", "c", "c.conf"])
def test_a_key_that_stands_twice_is_refused_whatever_the_file_is_called(tmp_path, text, name):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"stands (t)?here a second time"):
        read(path)
    with pytest.raises(UserError, match=r"stands (t)?here a second time"):  # what Snakemake read of it is whole
        schema.from_snakemake(json.loads(text), [path])


def test_numbers_of_a_file_that_is_not_called_yaml_are_looked_at(tmp_path):
    path = tmp_path / "c.conf"
    path.write_text(BASE + "seeds: [010]\n", encoding="utf-8")
    with pytest.raises(UserError, match="010 would become 8"):
        schema.from_snakemake(yaml.safe_load(path.read_text()), [path])


def test_json_is_read(tmp_path):
    raw = {"preset": "tiny", "dataset": {"sources": {"a": {"path": "x"}}}, "seeds": [3]}
    assert load(tmp_path, json.dumps(raw, indent="\t"), "c.json").seeds == [3]
