"""A trained run's book grows and shrinks again: nothing is trained, only new text is embedded, all bytes come back."""

import json

import pytest

from retro.base.artifacts import sha256
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.dataset.named import book_of
from retro.generation.decoding import Sampler
from retro.generation.generate import Writer
from retro.tools import add_book
from tests.workflow.conftest import Project

NEW = "The lighthouse of Norvik was built in 1907 and is thirty-one metres tall."


def hashes(project: Project) -> dict[str, str]:
    """Of every file of the first dataset."""
    files = [path for path in project.results("").rglob("*") if path.is_file()]
    return {str(path): sha256(path) for path in files}


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    found = finished.clone(tmp_path_factory.mktemp("book") / "project")
    lines = [json.dumps({"id": f"note {number}", "text": f"{NEW} Note {number}."}) for number in range(100)]
    (found.folder / "data/notes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return found


def sources(writer: Writer) -> set[str]:
    """Of what is looked up for the new text."""
    events = [event for event in writer.write(NEW, 1, Sampler(0, 1, 0)) if event["type"] == "lookup"]
    return {neighbour["document"]["source"] for neighbour in events[0]["neighbours"]}


def command(project: Project, *words: str) -> str:
    done = project.run(project.python, "-m", "retro.tools.add_book", "--config", "tiny", *words)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def test_a_book_grows_while_it_is_read_and_shrinks_again(project):
    before, writer = hashes(project), Writer(project.results("runs/retro-s1"))
    assert sources(writer) == {"tiny"}
    told = command(project, "data/notes.jsonl", "--cores", "2")
    grown = project.folder / "results/tiny-notes"
    assert f"Its runs look things up in {grown.relative_to(project.folder)} from now on" in told
    after = hashes(project)
    assert {path: after.pop(path) for path in before} == before and list(after) == [str(project.results("books.json"))]

    one, two = Dataset.open(project.results("config.json")), Dataset.open(grown / "config.json")
    assert len(two.database) - len(one.database) >= 100 and two.sources == ["notes", "tiny"]
    embeddings = [dataset.folder / "embeddings/tiny/embeddings.npy" for dataset in (one, two)]
    assert embeddings[0].read_bytes() == embeddings[1].read_bytes()
    verified = project.run(project.python, "-m", "retro.tools.verify", str(grown))
    assert verified.returncode == 0, verified.stdout

    assert sources(writer) == {"notes"} and len(writer.book.database) == len(two.database)
    with pytest.raises(UserError, match="there is a book or source 'notes' already"):
        add_book.add(project.results(""), str(project.folder / "data/notes.jsonl"), None, None, "1")

    assert add_book.origin(grown / "config.json") == project.results("").parent / "tiny"
    command(project, "--undo")
    assert hashes(project) == before and not grown.exists()
    assert sources(writer) == {"tiny"} and writer.book is writer.dataset


def test_a_book_that_was_stopped_goes_on_or_is_undone(project):
    """With other books there or not: what was begun goes first, and leaves nothing."""
    before, place = hashes(project), project.results("").parent
    lock = project.folder / ".snakemake/locks/0.input.lock"  # of a Snakemake on another machine: nothing is made
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    for name in ("bad", "worse"):
        done = project.run(
            project.python, "-m", "retro.tools.add_book", "--config", "tiny", "data/notes.jsonl", "--name", name
        )
        assert done.returncode != 0 and "back: retro add-book --undo" in done.stdout
        assert add_book.books(place / "tiny") == [] and (place / f"tiny-{name}/book.yaml").is_file()
    lock.unlink()
    for name in ("worse", "bad"):
        assert f"tiny-{name}, which was not whole, is gone" in command(project, "--undo")
        assert not (place / f"tiny-{name}").exists()
    assert hashes(project) == before


def test_what_is_grown_is_made_as_from_scratch(project):
    """The config says no more than one that was written by hand: the same sources and settings, and the tokenizer."""
    book = Dataset.open(project.results("config.json"))
    raw = add_book.grown(book, "more", "notes", {"path": "data/notes.jsonl"})["dataset"]
    assert raw["sources"] == {**book.facts["sources"], "notes": {"path": "data/notes.jsonl", "train": False}}
    assert raw["tokenizer"]["path"].endswith("tiny/tokenizer/tokenizer.json")
    same = ("chunk_length", "encoder", "index", "neighbours", "retriever", "seed", "split")
    assert {key: raw[key] for key in same} == {key: book.facts[key] for key in same}


def test_what_cannot_be_undone_is_refused(project, tmp_path):
    with pytest.raises(UserError, match="no book was added to it"):
        add_book.undo(project.results("").parent / "tiny")
    for name, listed in {"first": ["more"], "more": None}.items():
        (tmp_path / name / "runs/r").mkdir(parents=True)
        if listed:
            (tmp_path / name / "books.json").write_text(json.dumps({"books": listed}))
    with pytest.raises(UserError, match=r"more/config\.json is missing"):
        book_of(tmp_path / "first/config.json")
    (tmp_path / "more/runs/r/model.json").write_text("{}")
    with pytest.raises(UserError, match="models were trained on it"):
        add_book.undo(tmp_path / "first")
    (tmp_path / "more/books.json").write_text("[]")
    with pytest.raises(UserError, match=r"books\.json: not a list of books"):
        book_of(tmp_path / "more/config.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "more"]
