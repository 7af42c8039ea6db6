"""Names and texts that would like to be executed."""

import json
import shutil

import pytest
import yaml

from tests.faults.conftest import go_on
from tests.told import tell
from tests.workflow.conftest import Project

HOSTILE = [
    "with space.jsonl",
    "quote's.jsonl",
    'double".jsonl',
    "semi;touch pwned;.jsonl",
    "$(touch pwned).jsonl",
    "`touch pwned`.jsonl",
    "&& touch pwned #.jsonl",
    "line\nbreak.jsonl",
    "{wildcards.source}.jsonl",
    "-rf.jsonl",
    "ünï–код.jsonl",
]


def with_source(project: Project, path: str, **dataset) -> None:
    settings = {"preset": "config/tiny.yaml", "dataset": {"sources": {"tiny": {"path": path}}, **dataset}}
    (project.folder / "config/hostile.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_names_are_only_names(tmp_path, name):
    project = Project.create(tmp_path / "project")
    (project.folder / "data/here").mkdir()
    shutil.copy(project.folder / "data/tiny.jsonl", project.folder / "data/here" / name)
    with_source(project, f"data/here/{name}")
    done = project.snakemake("results/tiny/chunks/tiny/manifest.json", config="config/hostile.yaml")
    assert not list(project.folder.rglob("pwned"))
    assert "Traceback" not in done.stdout
    if done.returncode:
        assert name.splitlines()[0][:4] in done.stdout, done.stdout[-2000:]  # refused, the file named
    tell(f"corpus file {name!r}: {'taken as a name' if done.returncode == 0 else 'refused'}")


@pytest.mark.parametrize("key", ["source", "dataset", "run", "retrieval"])
@pytest.mark.parametrize("name", ["../up", "a b", "x;touch pwned", "$(touch pwned)", "a\nb", "", "'", "..", "/abs"])
def test_hostile_names_in_the_config_are_refused(tmp_path, key, name):
    project = Project.create(tmp_path / "project")
    settings = {"preset": "config/tiny.yaml"}
    if key == "source":
        settings["dataset"] = {"sources": {name: {"path": "data/tiny.jsonl"}}}
    elif key == "retrieval":
        settings["retrievals"] = {name: {"retriever": "bm25"}}
    elif key == "dataset":
        settings["dataset"] = {"name": name}
    else:
        settings["runs"] = {name: {"architecture": "gpt"}}
    (project.folder / "config/hostile.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = project.snakemake("--dry-run", "all", config="config/hostile.yaml")
    assert done.returncode != 0 and "Traceback" not in done.stdout, done.stdout[-2000:]
    assert not list(project.folder.rglob("pwned"))
    tell(f"{key} named {name!r}: refused")


EVIL = "$(touch pwned); touch pwned; `touch pwned` ' \" && touch pwned #"


def test_hostile_values_are_only_values(tmp_path):
    """Every free text of the config that a stage is given on its command line."""
    project = Project.create(tmp_path / "project")
    corpus = project.folder / "data/tiny.jsonl"
    lines = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    fields = {name: f"{name} {EVIL}" for name in ("text", "id", "group", "title")}
    records = [{field: line["text" if name == "text" else "id"] for name, field in fields.items()} for line in lines]
    records = [record | {EVIL: EVIL} for record in records]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    source = {"path": "data/tiny.jsonl", "fields": fields, "keep": {EVIL: [EVIL]}}
    dataset = {"sources": {"tiny": source}, "tokenizer": {"eod": f"<|{EVIL}|>"}, "index": {"factory": EVIL}}
    settings = {"preset": "config/tiny.yaml", "dataset": dataset}
    (project.folder / "config/hostile.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = project.snakemake("results/tiny/index/manifest.json", config="config/hostile.yaml")
    assert "faiss does not take it" in done.stdout and "Traceback" not in done.stdout, done.stdout[-2000:]
    assert project.results(
        "embeddings/tiny/embeddings.npy"
    ).exists()  # all before the index took the values as they are
    assert not list(project.folder.rglob("pwned"))
    tell("7 config values of shell commands, from field names to the index's factory: nothing executed")


def test_hostile_paths_of_given_files_are_only_paths(finished, tmp_path):
    project = Project.create(tmp_path / "project")
    given = f"data/{EVIL}.json"
    shutil.copy(finished.results("tokenizer/tokenizer.json"), project.folder / given)
    settings = {"preset": "config/tiny.yaml", "dataset": {"tokenizer": {"type": "tokenizer.json", "path": given}}}
    (project.folder / "config/hostile.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = project.snakemake("results/tiny/tokenizer/manifest.json", config="config/hostile.yaml")
    assert done.returncode == 0, done.stdout[-2000:]
    assert not list(project.folder.rglob("pwned"))
    tell("a tokenizer file with a command for its name: taken as a name")


def test_a_results_folder_with_a_space_and_a_quote(finished, tmp_path):
    project = Project.create(tmp_path / "project")
    (project.folder / "config/where.yaml").write_text(
        yaml.safe_dump({"preset": "config/tiny.yaml", "results": "my results'; touch pwned #"}), encoding="utf-8"
    )
    done = project.snakemake("all", config="config/where.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    made = project.folder / "my results'; touch pwned #/tiny/runs/retro-s1/model.safetensors"
    assert made.read_bytes() == finished.results("runs/retro-s1/model.safetensors").read_bytes()
    assert not list(project.folder.rglob("pwned"))
    tell("a results folder with space, quote and semicolon: the same weights, nothing executed")


def test_markup_in_a_corpus_stays_text(tmp_path):
    project = Project.create(tmp_path / "project")
    corpus = project.folder / "data/tiny.jsonl"
    lines = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    evil = "<script>alert('pwned')</script><img src=x onerror=alert(1)> "
    for record in lines:
        record["text"] = evil + record["text"].replace(". ", f". {evil}")
        record["id"] = f"{evil}{record['id']}"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in lines), encoding="utf-8")
    done = go_on(project)
    assert done.returncode == 0, done.stdout[-3000:]
    for page in project.results("").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text and "<img src=x" not in text, page.name
        assert "alert(" in text or page.name == "report.html"
    tell("a corpus of script tags: every page shows them as text")
