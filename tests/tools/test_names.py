"""Whatever a user names, a name that is wrong is answered with those that there are and the one that was meant."""

import argparse
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from retro.base import stage
from retro.base.nearest import beside, listed, nearest, unknown
from retro.base.stage import UserError
from retro.config.layers import merged
from retro.config.schema import load, parse
from retro.config.targets import TARGETS, no_target
from retro.config.workflow import Workflow
from retro.dataset import named
from retro.tools import cli, run
from tests.base.watched import STAGES
from tests.evaluation.built import build_dataset, write_run
from tests.tools.test_commands import COMMANDS, actions, opened, parser_of

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
ROOT = Path(__file__).resolve().parents[2]
RUNS = ["gpt-s1", "retro-s1"]
# What names a run or a dataset on a command line, by its type: a right one, a wrong one, those that are told.
NAMED = {
    named.run_folder: ("retro-s1", "retro-s9", RUNS),
    named.model_json: ("retro-s1", "results/words/runs/retro", RUNS),
    named.recorded_config: ("words", "wrods", ["words"]),
    named.dataset_folder: ("words", "results/wrods", ["words"]),
}
TYPED = [command for command in COMMANDS if command.split()[0] not in STAGES and ".bench.corpus" not in command]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with the dataset `words` and two runs below `results`."""
    folder = tmp_path_factory.mktemp("names")
    dataset = build_dataset(folder / "results" / "words")
    for name in RUNS:
        write_run(dataset, name)
    return folder


@pytest.fixture
def project(built, monkeypatch):
    monkeypatch.chdir(built)


def said(line: list[str], monkeypatch, capsys) -> str:
    """What a command says that ends with an error: one of `retro`, or a module as `python -m` runs it."""
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stopped:
        if line[0] == "retro":
            stage.run(cli.main)
        else:
            runpy.run_module(line[0], run_name="__main__")
    told = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and told.count("error: ") == 1 and "Traceback" not in told
    return told.rpartition("error: ")[2]


def suggests(told: str, known: list[str], meant: str) -> bool:
    """Whether it lists all that is known, and asks whether one was meant."""
    return all(name in told for name in known) and f"did you mean {meant}?" in told.lower()


# Every argument of every command that people type


def line_of(parser: argparse.ArgumentParser, wrong: argparse.Action, value: str) -> list[str]:
    """A command line in which all that is required is right, and one argument is not."""
    found: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            inside = {name: below for name, below in action.choices.items() if wrong in actions(below)}
            name, below = next(iter((inside or action.choices).items()))
            found += [name, *line_of(below, wrong, value)] if action is not wrong else [value]
        elif action is wrong or action.required or (not action.option_strings and action.nargs not in ("*", "?")):
            right = NAMED.get(action.type, ("1",))[0] if not action.choices else str(next(iter(action.choices)))
            given = value if action is wrong else "{}" if action.type is stage.given else right
            found += [*action.option_strings[-1:], given]
    return found


@pytest.mark.parametrize("command", TYPED)
def test_every_argument_that_names_a_run_or_a_dataset(command, project, monkeypatch, capsys):
    module, chosen = opened(command, monkeypatch)
    parser = parser_of(module, monkeypatch)
    for action in [each for each in actions(parser) if each.type in NAMED]:
        _, wrong, known = NAMED[action.type]
        told = said([module.__name__, *chosen, *line_of(parser, action, wrong)], monkeypatch, capsys)
        assert suggests(told, known, known[-1]), (action.dest, told)


@pytest.mark.parametrize("command", TYPED)
def test_every_argument_with_choices(command, project, monkeypatch, capsys):
    module, chosen = opened(command, monkeypatch)
    parser = parser_of(module, monkeypatch)
    for action in [each for each in actions(parser) if each.choices]:
        known = [*map(str, action.choices)]
        wrong = f"{known[0][:-1]}_{known[0][-1]}"
        told = said([module.__name__, *chosen, *line_of(parser, action, wrong)], monkeypatch, capsys)
        assert suggests(told, known, known[0].lower()), (action.dest, told)


def test_some_commands_have_such_arguments(monkeypatch):
    found: list[tuple[str, str]] = []
    for command in TYPED:
        module, _ = opened(command, monkeypatch)
        found += [
            (module.__name__, each.dest) for each in actions(parser_of(module, monkeypatch)) if each.type in NAMED
        ]
    for module, argument in [
        ("retro.generation.generate", "run"),
        ("retro.generation.serve", "database"),
        ("retro.generation.plant", "database"),
        ("retro.interop.huggingface", "run"),
        ("retro.interop.megatron", "model"),
        ("retro.qa.ask", "run"),
        ("retro.qa.harness", "model"),
        ("retro.retrieval.search", "config"),
        ("retro.tools.verify", "folder"),
    ]:
        assert (module, argument) in found


OTHERS = [
    ("retro show --text x --split tset", ["train", "valid", "test"], "test"),
    ("retro show --text x --retrieval bm52", ["bm25"], "bm25"),
    ("retro show --document alba-econmy", [], "alba-economy"),
    ("retro write --run results/words/runs/retro --prompt x", RUNS, "retro-s1"),
    ("retro write --run results/wrods/runs/retro-s1 --prompt x", ["words"], "words"),
    ("retro write --run retro-s1 --promt x", [], "--prompt"),
    ("retro show --config results/wrods/config.json --text x", ["words"], "words"),
    ("retro export --megatron retro-s9 x", RUNS, "retro-s1"),
    ("retro plan tyny.yaml", ["seeds.yaml", "tiny.yaml"], "tiny.yaml"),
    ("retro plan --preset smal --database-tokens 1e9", ["small", "tiny", "4b"], "small"),
    ("retro archive check results/words/confg.json results/words", [], "results/words/config.json"),
    ("retro archive pcak", ["pack", "check"], "pack"),
    ("retro exprot", list(cli.BY_NAME), "export"),
]


@pytest.mark.parametrize(("line", "known", "meant"), OTHERS, ids=[line for line, _, _ in OTHERS])
def test_whatever_else_is_named(line, known, meant, project, built, monkeypatch, capsys):
    (built / "tiny.yaml").write_text("")
    (built / "results/words/retrievals/bm25/neighbours/test").mkdir(parents=True, exist_ok=True)
    (built / "results/words/retrievals/bm25/neighbours/test/manifest.json").write_text("{}")
    assert suggests(said(line.split(), monkeypatch, capsys), known, meant)


# What a config names

GPT = {"architecture": "gpt"}
REFERENCES = [
    ({"runs": {"gpt": GPT, "retro": {"architecture": "retro", "twin": "gtp"}}}, ["gpt"], "gpt"),
    ({"runs": {"gpt": GPT, "more": GPT, "late": {**GPT, "from": "gtp"}}}, ["gpt", "more"], "gpt"),
    ({"experiments": {"of": "rerto"}}, ["retro"], "retro"),
    ({"experiments": {"names": ["neighbors"]}}, ["seeds", "neighbours", "cost"], "neighbours"),
    ({"evaluate": {"splits": ["tset"]}}, ["valid", "test"], "test"),
    ({"evaluate": {"bootstrap_unit": "documents"}}, ["document", "group"], "document"),
    ({"qa": {"splits": ["vlaid"]}}, ["train", "valid", "test"], "valid"),
    ({"dataset": {"split": {"by": "groups"}}}, ["group", "document"], "group"),
    ({"dataset": {"retriever": "bm52"}}, ["dense", "bm25"], "bm25"),
    ({"dataset": {"neighbours": {"exclude": ["grup"]}}}, ["document", "group"], "group"),
    ({"retrievals": {"words": {"retriever": "bm52"}}}, ["dense", "bm25"], "bm25"),
    ({"retrievals": {"words": {"encoder": {"type": "statik"}}}}, ["minilm", "static"], "static"),
    ({"preset": "tinny"}, ["small", "tiny"], "tiny"),
]


@pytest.mark.parametrize(("over", "known", "meant"), REFERENCES, ids=[json.dumps(over) for over, _, _ in REFERENCES])
def test_every_reference_of_a_config(over, known, meant):
    with pytest.raises(UserError) as refused:
        parse(merged({"dataset": {"sources": {"a": {"path": "a.jsonl"}}}}, over), "c.yaml")
    assert str(refused.value).startswith("c.yaml: ") and suggests(str(refused.value), known, meant)


# What Snakemake is asked for

D = "results/open-book"
WANTED = [
    ("experimets", TARGETS, "experiments"),
    ("preproces", TARGETS, "preprocess"),
    ("results/opn-book/report.html", ["open-book"], "open-book"),
    (f"{D}/runs/retro-s2/model.json", ["gpt-s1", "retro-s1"], "retro-s1"),
    (f"{D}/tokens/factbok/manifest.json", ["factbook", "factbook-2015"], "factbook"),
    (f"{D}/neighbours/tset/ids.npy", ["train", "valid", "test"], "test"),
    (f"{D}/retrievals/bm52/neighbours/test/ids.npy", ["bm25"], "bm25"),
    (f"{D}/experiments/controlls.csv", ["controls", "copying"], "controls"),
    (f"{D}/runs/retro-s1/evaluation/test/random_/manifest.json", ["none", "on", "off", "bm25"], "random"),
]


@pytest.fixture(scope="module")
def workflow():
    facts = {"preset": str(ROOT / "config/config.yaml"), "retrievals": {"bm25": {"retriever": "bm25"}}, "dataset": {}}
    return Workflow(parse(facts))


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """Names of all rules; the test goes on in an empty folder, where no target is there already."""
    monkeypatch.chdir(ROOT)
    found = run.rules()
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize(("target", "known", "meant"), WANTED)
def test_every_target_that_is_none(target, known, meant, workflow, rules):
    assert suggests(no_target(workflow, target, rules), known, meant)


def test_targets_that_there_are_are_left_to_snakemake(workflow, rules):
    made = [*workflow.preprocessed(), *workflow.models(), *workflow.reports(), *workflow.losses(), *workflow.copiers()]
    made += [f"{D}/experiments/seeds.csv", f"{D}/experiments/seeds/summary.csv", f"{D}/runs/retro-s1-qa/model.json"]
    made += [f"{D}/runs/retro-s1/evaluation/test/database-0.05-s1+k2/manifest.json", f"{D}/fractions/x/test/ids.npy"]
    made += [f"{D}/qa.csv", f"{D}/validate/tokens.json", "here.txt", "elsewhere/a.txt", "a/b", *rules, *TARGETS]
    Path("here.txt").touch()
    assert [target for target in made if no_target(workflow, target, rules)] == []


def test_the_targets_that_are_told_are_rules(rules):
    assert set(TARGETS) <= set(rules) and len(rules) > 40


def test_make_run_refuses_such_a_target_before_snakemake_begins(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    told = said(["retro", "run", "--config", "config/tiny.yaml", "tarin_all"], monkeypatch, capsys)
    assert suggests(told, list(TARGETS), "train_all") and told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tarin_all", "results/tiny/runs/retro/model.json"])
def test_so_does_a_bare_snakemake(target):
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", "config/tiny.yaml", "--cores", "1", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and re.search(
        r"\nno (target|run) '.*; did you mean (train_all|retro-s1)\?", done.stdout
    )


# The helper


def test_of_names_that_are_as_near_the_first_is_taken():
    assert nearest("retro", ["gpt-s1", "retro-s1", "retro-s2"]) == "retro-s1"
    assert nearest("RETRO-S2", ["gpt-s1", "retro-s1", "retro-s2"]) == "retro-s2"


def test_what_is_like_nothing_is_answered_with_the_list_alone():
    assert unknown("run", "xyz", ["gpt-s1", "retro-s1"], "results/d") == (
        "no run 'xyz': runs in results/d: gpt-s1, retro-s1."
    )
    assert unknown("run", "xyz", []) == "no run 'xyz': there is none."


def test_a_long_list_is_cut():
    assert listed(map(str, range(100))).endswith("18, 19 and 80 more")


def test_a_path_is_answered_where_it_leaves_what_there_is(tmp_path):
    for folder in ("runs/retro-s1/evaluation/test/on", "runs/retro-s1/evaluation/test/off", "tokens/a"):
        (tmp_path / "results/d" / folder).mkdir(parents=True)
    (tmp_path / "results/d/summary.csv").touch()
    d = tmp_path / "results/d"
    assert beside(d / "runs/retro/model.json") == f"No run 'retro': runs in {d}: retro-s1; did you mean retro-s1?"
    assert "conditions in" in beside(d / "runs/retro-s1/evaluation/test/onn/manifest.json")
    assert beside(d / "sumary.csv") == f"Did you mean {d}/summary.csv?"
    assert beside(d / "summary.csv") == beside(d / "nothing like it") == beside(Path("/")) == ""


def test_a_config_that_is_right_is_loaded_as_before():
    assert load(ROOT / "config/tiny.yaml").dataset.name == "tiny"
