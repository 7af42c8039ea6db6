"""Your own text: `retro.tools.new` writes a config that Snakemake takes, and says in advance what it is good for."""

import gzip
import json
import random
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from jsonschema import Draft202012Validator

from retro.base.stage import UserError
from retro.config import schema
from retro.corpus.mmididx import TokenWriter
from retro.corpus.readers import Reader
from retro.corpus.settings import SourceSettings, SplitSettings, TokenizerSettings
from retro.corpus.tokenizers import Tokenizer
from retro.corpus.train_tokenizer import TrainTokenizerSettings, train
from retro.tools import new
from tests.workflow.conftest import ROOT, Project

TINY = ROOT / "data/tiny.jsonl"
TEXTS = [json.loads(line)["text"] for line in TINY.read_text(encoding="utf-8").splitlines()]


def documents(count: int, size: int = 1500) -> list[str]:
    """Texts of made-up order: sentences of the tiny corpus."""
    rng, sentences = random.Random(1), [each for text in TEXTS for each in text.split(". ")]
    return [". ".join(rng.choices(sentences, k=len(sentences)))[:size] for _ in range(count)]


def notes(folder: Path) -> str:
    (folder / "notes").mkdir()
    for number, text in enumerate(documents(30)):
        (folder / f"notes/{number}.txt").write_text(text, encoding="utf-8")
    return "notes"


def book(folder: Path) -> str:
    (folder / "a book.txt").write_text("\n\n".join(documents(200)), encoding="utf-8")
    return "a book.txt"


def articles(folder: Path) -> str:
    with gzip.open(folder / "articles.jsonl.gz", "wt", encoding="utf-8") as file:
        for number, text in enumerate(documents(300)):
            facts = {
                "_id": number,
                "body": text,
                "country": f"c{number % 60}",
                "headline": f"N. {number}",
                "lang": "en",
            }
            file.write(json.dumps(facts) + "\n")
    return "articles.jsonl.gz"


def pages(folder: Path) -> str:
    texts = documents(200)
    table = pyarrow.table({"n": list(range(200)), "content": texts, "uid": [f"u{number}" for number in range(200)]})
    pyarrow.parquet.write_table(table, folder / "pages.parquet")
    return "pages.parquet"


def tokens(folder: Path) -> str:
    (folder / "store").mkdir()
    source = SourceSettings(path=str(TINY))
    settings = TrainTokenizerSettings(
        tokenizer=TokenizerSettings(vocab_size=600), sources={"tiny": source}, split=SplitSettings(), seed=1
    )
    text, _ = train(settings, [Reader(source, "tiny")])
    (folder / "store/tokenizer.json").write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.open(folder / "store", "tokenizer.json", "<|endoftext|>")
    with TokenWriter(folder / "store/pile", "<u2") as writer:
        for ids in tokenizer.encode_batch(documents(200)):
            writer.add([*ids, tokenizer.eod_id])
        writer.finish()
    return "store"


CORPORA = {"30 texts": notes, "a book": book, "JSON lines": articles, "Parquet": pages, "Megatron": tokens}


def written(path: str, folder: Path, monkeypatch, *more: str) -> dict:
    """The config that is written for a path, in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["retro.tools.new", path, "--output", "config/mine.yaml", *more])
    new.main()
    return yaml.safe_load(Path("config/mine.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("corpus", CORPORA)
def test_a_config_for_your_text_is_one_that_runs(corpus, tmp_path, monkeypatch, capsys):
    project = Project.create(tmp_path / "project")
    found = written(CORPORA[corpus](project.folder), project.folder, monkeypatch)
    said = capsys.readouterr().err
    config = schema.load("config/mine.yaml")
    checker = Draft202012Validator(json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8")))
    assert not list(checker.iter_errors(found))
    first = Path("config/mine.yaml").read_text(encoding="utf-8").splitlines()[0].partition("=")[2]
    assert Path("config", first).resolve() == ROOT / "config/schema.json"
    assert "make run CONFIG=config/mine.yaml" in said and "planned, not measured" in said
    assert ("warning: This is too little text" in said) == (corpus == "30 texts")
    assert config.dataset.split.test > 0 and config.dataset.split.valid > 0
    assert {"tokenize", "train", "summarise"} <= project.planned(config="config/mine.yaml")


def test_it_finds_what_the_fields_of_records_hold(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    dataset = written(articles(tmp_path), tmp_path, monkeypatch)["dataset"]
    fields = {"text": "body", "id": "_id", "group": "country", "title": "headline"}
    assert dataset["sources"] == {"articles": {"path": "articles.jsonl.gz", "fields": fields}}
    assert dataset["split"]["by"] == "group" and dataset["neighbours"]["exclude"] == ["document", "group"]


def test_it_cuts_one_long_text_so_that_parts_can_be_held_out(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    dataset = written(book(tmp_path), tmp_path, monkeypatch)["dataset"]
    assert dataset["name"] == "a-book" and 1000 <= dataset["sources"]["a-book"]["cut"] <= 4000
    assert dataset["split"]["by"] == "document"


@pytest.mark.parametrize("count", [3, 8, 30, 200])
def test_its_shares_leave_no_split_empty(count):
    for seed in range(20):
        places = sorted(new.fraction(f"{seed}-{number}", new.SEED) for number in range(count))
        held = new.shares(new.Found("x", "text", documents=count, bytes=2000 * count, places=places))
        test = sum(place < held["test"] for place in places)
        valid = sum(place >= 1 - held["valid"] for place in places)
        assert test and valid and test + valid < count
        assert count < 50 or test >= 10


def test_nothing_is_written_over(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    path = notes(tmp_path)
    written(path, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"mine.yaml: is there already. Give another --output, or --force"):
        written(path, tmp_path, monkeypatch)
    assert written(path, tmp_path, monkeypatch, "--force", "--name", "other")["dataset"]["name"] == "other"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("numbers.jsonl", '{"a": 1}\n', "no field of its records is text, only a"),
        ("short.txt", "Hello.", "1 document of 0.0 kB is too little"),
        ("broken.parquet", "PAR1", "broken .parquet data"),
        ("pile.idx", "", "no such file: pile.bin"),
    ],
)
def test_what_cannot_be_used_is_told(name, content, told, tmp_path, monkeypatch):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=told):
        written(name, tmp_path, monkeypatch)


def test_tokens_without_their_tokenizer_ask_for_it(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    path = tokens(tmp_path)
    (tmp_path / "store/tokenizer.json").rename(tmp_path / "theirs.json")
    with pytest.raises(UserError, match=r"nothing says which tokenizer made them. .* --tokenizer FILE"):
        written(path, tmp_path, monkeypatch)
    found = written(path, tmp_path, monkeypatch, "--tokenizer", "theirs.json")
    assert found["dataset"]["tokenizer"] == {"type": "tokenizer.json", "path": "theirs.json", "eod": "<|endoftext|>"}


@pytest.mark.slow
def test_thirty_small_texts_end_with_advice_not_with_a_figure(tmp_path, monkeypatch):
    project = Project.create(tmp_path / "project")
    written(notes(project.folder), project.folder, monkeypatch)
    done = project.snakemake("all", "--config", "dataset={encoder: {type: static}}", config="config/mine.yaml")
    assert done.returncode == 0, done.stdout[-4000:]
    report = (project.folder / "results/notes/report.html").read_text(encoding="utf-8")
    headline = report.partition("<h1>")[2].partition("</h1>")[0]
    assert headline == "This is too little text to tell what retrieval buys."
    assert "95 % interval −" not in report and "learnt by heart" not in report
    assert "too few documents for an interval" in report
    recorded = json.loads((project.folder / "results/notes/config.json").read_text(encoding="utf-8"))
    assert recorded["samples"]["epochs"] == 4.0 and recorded["samples"]["train_samples"] < 700
