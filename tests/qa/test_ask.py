"""`retro ask`: a question in, an answer out; and what is said where no model was fine-tuned to answer."""

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from retro.base.stage import UserError
from retro.config import schema
from retro.qa import ask, score
from retro.qa.questions import read
from retro.tools.cli import BY_NAME
from tests.evaluation.built import stage
from tests.qa.test_finetune import SETTINGS


@pytest.fixture(scope="module")
def project(dataset, questions, tmp_path_factory):
    """A folder with the dataset `words`, and its two runs fine-tuned, below `results`."""
    folder = tmp_path_factory.mktemp("project")
    words = shutil.copytree(dataset.folder, folder / "results/words")
    settings = json.dumps({**SETTINGS, "examples": 8, "instructions": [str(questions)]})
    for name in ("gpt-s1", "retro-s1"):
        where = words / "runs" / f"{name}-qa"
        given = ("--config", words / "config.json", "--model", words / "runs" / name / "model.json")
        given += ("--settings", settings, "--checkpoints", where / "checkpoints", "--output", where / "model.json")
        stage("retro.qa.finetune", *given)
    return folder


@pytest.fixture
def said(project, monkeypatch, capsys):
    """What it says, on stdout and on stderr, in that folder."""
    monkeypatch.chdir(project)

    def ask_it(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["retro ask", *words])
        ask.main()
        return tuple(capsys.readouterr())

    return ask_it


def test_the_answer_is_that_of_answering_a_file(said, project, dataset, questions, tmp_path):
    asked = next(each for each in read(questions, dataset) if each.split == "test")
    words = project / "results/words"
    settings = {key: value for key, value in SETTINGS.items() if key in ("answer_tokens", "candidates")}
    given = ("--config", words / "config.json", "--model", words / "runs/retro-s1-qa/model.json")
    given += ("--settings", json.dumps({**settings, "splits": ["test"]}), "--questions", questions)
    stage("retro.qa.answer", *given, "--retrieval", "on", "--output", tmp_path / "answers.jsonl")
    line = score.read(tmp_path / "answers.jsonl")[0]
    question = asked.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")
    answer, told = said(question, "--show")
    assert line["id"] == asked.id and answer == f"{line['prediction']}\n"
    for text in line["neighbours"]:
        assert " ".join(text.split())[:40] in " ".join(told.split())


def test_without_a_run_the_fine_tuned_retro_answers_and_that_is_said(said):
    assert "taken: results/words/runs/retro-s1-qa (--run names another)" in said("What is the area?")[1]


@pytest.mark.parametrize("words", [["--run", "gpt-s1-qa", "--show"], ["--no-retrieval", "--show"]])
def test_nothing_is_looked_up_by_a_gpt_or_where_it_is_not_wanted(said, words):
    told = said("What is the area?", *words)[1]
    assert not [line for line in told.splitlines() if line.startswith("  ")]


def test_a_run_that_was_not_fine_tuned_is_refused_with_those_that_were(said):
    with pytest.raises(UserError, match=r"was not fine-tuned to answer. Take one that was: .*retro-s1-qa, .*gpt-s1-qa"):
        said("What?", "--run", "retro-s1")


def test_where_none_was_one_sentence_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no model was fine-tuned to answer\. Run `retro qa`: it fine-tunes"):
        ask.chosen(None)


def test_a_question_without_text_is_refused(said):
    with pytest.raises(UserError, match="the question is empty"):
        said("  ")


ROOT = Path(__file__).resolve().parents[2]


def lines(path: str) -> list[dict]:
    with gzip.open(ROOT / path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_what_the_examples_ask_stands_in_the_book_of_the_default_run():
    """In a section that its config keeps, of the edition that is the open book."""
    book = schema.load(ROOT / "config/config.yaml").dataset.sources["factbook-2015"]
    pages = {(each["group"], each["section"]): each["text"] for each in lines(f"data/{Path(book.path).name}")}
    known = {each["question"]: each for each in lines("data/qa_factbook.jsonl.gz")}
    told = [*BY_NAME["ask"].examples, (ROOT / "docs/qa.md").read_text(encoding="utf-8"), str(ask.__doc__)]
    asked = [question for text in told for question in re.findall(r'ask (?:--show )?"(.+?)"', text)]
    assert len(asked) >= 4
    for question in asked:
        group, section = known[question]["group"], known[question]["doc_id"].split("-", 2)[2]
        assert section in book.keep["section"], question
        assert any(answer in pages[group, section] for answer in known[question]["answers"]), question
