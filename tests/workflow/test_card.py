"""The card of an exported run: what was recorded, in the hub's form; no figure of other weights; code that runs."""

import csv
import re
import shutil
import warnings
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from retro.base.artifacts import read_json, write_json
from retro.interop.card import difference
from retro.interop.huggingface import export


@pytest.fixture
def exported(finished, tmp_path):
    """A function that exports a run of the tiny pipeline; its folder."""

    def made(run: str):
        export(finished.results(f"runs/{run}"), tmp_path / run)
        return tmp_path / run

    return made


def test_a_card_says_what_was_recorded_and_makes_nothing_up(exported, finished):
    card = ModelCard.load(exported("retro-s1") / "README.md")
    facts = card.data.to_dict()
    assert facts.pop("tags") == ["retro", "retrieval-augmented", "custom_code"]
    assert facts == {"library_name": "transformers", "pipeline_tag": "text-generation"}  # no licence, no language
    config = read_json(finished.results("config-retro.json"))["counts"]["tokens/tiny/manifest.json"]
    assert (
        f"| tiny | tiny.jsonl | {config['documents']} | {config['tokens']:,} | training, looked up | not recorded |"
        in card.text
    )
    model = read_json(finished.results("runs/retro-s1/model.json"))
    for fact in (
        f"{model['counts']['parameters']:,} parameters",
        "| samples | 48 |",
        "| seed | 1 |",
        model["fingerprint"],
    ):
        assert fact in card.text
    assert "{{" not in card.text and "None" not in card.text


def test_its_figures_are_those_of_the_tables(exported, finished):
    rows = re.findall(
        r"^\| test \| (\w+) \| 4 \| ([\d.]+) \| [\d.]+ \| (.*?) \|$",
        (exported("retro-s1") / "README.md").read_text(encoding="utf-8"),
        re.M,
    )
    with open(finished.results("summary.csv"), newline="") as file:
        wanted = {
            row["retrieval"]: f"{float(row['bits_per_byte']):.3f}"
            for row in csv.DictReader(file)
            if (row["run"], row["source"]) == ("retro-s1", "all")
        }
    assert {name: value for name, value, _ in rows} == wanted and len(rows) == 3
    assert {name: told for name, _, told in rows}["on"] == "−8.8 (too few documents for an interval)"
    assert difference({"difference_percent": "-8.79", "low": "-10.06", "high": "1.2"}) == "−8.8 (−10.1 … +1.2)"


def test_figures_of_other_weights_are_not_shown(finished, tmp_path):
    for name in ("tokenizer", "runs/retro-s1"):
        shutil.copytree(finished.results(name), tmp_path / name)
    for name in ("summary.csv", "comparison.csv"):
        shutil.copy(finished.results(name), tmp_path)
    facts = read_json(tmp_path / "runs/retro-s1/model.json")
    facts["seed"] = 2  # trained again since
    write_json(tmp_path / "runs/retro-s1/model.json", facts)
    export(tmp_path / "runs/retro-s1", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "No figures: none that were measured of these weights" in text
    assert "## Data\n\nNot recorded." in text  # nor is the config here that it was trained with


@pytest.mark.parametrize("run", ["retro-s1", "gpt-s1"])
def test_the_code_it_shows_runs(exported, run, monkeypatch, capsys):
    monkeypatch.chdir(exported(run))
    [code] = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(encoding="utf-8"), re.DOTALL)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*book closed")
        exec(compile(code, "README.md", "exec"), {})
    assert "The text to go on with" in capsys.readouterr().out
