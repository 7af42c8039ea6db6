"""What does not read a thing is not made again for it: a GPT reads no retrieval, a training no neighbours of test."""

import re
import shutil
from pathlib import Path

import pytest

from retro.base.artifacts import sha256
from tests.workflow.conftest import Project

CONFIG = "config/tiny.yaml"
GPT = {"runs/gpt-s1/model.json", "runs/gpt-s1/evaluation/test/none/manifest.json"}
RETRO = {"runs/retro-s1/model.json", "runs/retro-s1/evaluation/test/on/manifest.json"}
VERIFY = ("python", "-m", "retro.tools.verify", "results/tiny")


def made(project: Project, *words: str) -> set[str]:
    """The files below the dataset's folder that a dry run would make."""
    done = project.snakemake("--dry-run", *words)
    assert done.returncode == 0, done.stdout[-4000:]
    lines = re.findall(r"^    output: (.*)$", done.stdout, re.MULTILINE)
    return {path.removeprefix("results/tiny/") for line in lines for path in line.split(", ")}


def add_a_book(project: Project) -> None:
    """Another source in the database, whose chunks are numbered before those that were there."""
    lines = (project.folder / "data/tiny.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (project.folder / "data/book.jsonl").write_text("".join(lines[:9]), encoding="utf-8")
    project.edit(CONFIG, "    tiny: {", "    a-book: {path: data/book.jsonl, train: false}\n    tiny: {")


def config(old: str, new: str):
    return lambda project: project.edit(CONFIG, old, new)


CHANGES = {
    "another book": (add_a_book, RETRO),
    "another index": (config("chunk_length: 32", "chunk_length: 32\n  index: {factory: Flat}"), RETRO),
    "more neighbours stored": (config("chunk_length: 32", "chunk_length: 32\n  neighbours: {saved: 10}"), RETRO),
    "another encoder": (config("width: 256", "width: 128"), RETRO),
    "another retriever": (config("chunk_length: 32", "chunk_length: 32\n  retriever: bm25"), RETRO),
    "how many are shown in evaluation": (
        config("bootstrap: 1000", "bootstrap: 1000, neighbours_used: 1"),
        RETRO - {"runs/retro-s1/model.json"},
    ),
    "tokens that are another": (lambda project: project.results("tokens/tiny/tokens.bin").unlink(), GPT | RETRO),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_gpt_is_trained_and_evaluated_again_for_what_it_reads_only(finished, tmp_path, what):
    project = finished.clone(tmp_path / "project")
    change, wanted = CHANGES[what]
    change(project)
    assert made(project) & (GPT | RETRO) == wanted


@pytest.mark.parametrize(("split", "wanted"), [("test", set()), ("valid", {"runs/retro-s1/model.json"})])
def test_a_retro_is_trained_again_for_neighbours_of_the_splits_that_it_reads(finished, tmp_path, split, wanted):
    project = finished.clone(tmp_path / "project")
    project.results(f"neighbours/{split}/ids.npy").unlink()
    found = made(project)
    assert f"neighbours/{split}/ids.npy" in found and "runs/retro-s1/evaluation/test/on/manifest.json" in found
    assert {path for path in found if path.endswith("model.json")} == wanted


@pytest.fixture(scope="module")
def with_book(finished, tmp_path_factory) -> Project:
    """The finished project after a book was added and everything made again that depends on it."""
    project = finished.clone(tmp_path_factory.mktemp("reuse") / "project")
    add_a_book(project)
    done = project.snakemake("all")
    assert done.returncode == 0, done.stdout[-4000:]
    return project


def test_a_book_changes_no_byte_of_a_gpt_and_everything_holds(finished, with_book):
    for name in [*GPT, "runs/gpt-s1/model.safetensors", "config-gpt.json"]:
        path = finished.results(name)
        now = with_book.folder / path.relative_to(finished.folder)
        assert now.stat().st_mtime_ns == path.stat().st_mtime_ns, path
        assert sha256(now) == sha256(path)
    ids = [project.results("neighbours/train/ids.npy").read_bytes() for project in (finished, with_book)]
    assert ids[0] != ids[1]
    done = with_book.run(*VERIFY)
    assert done.returncode == 0, done.stdout
    assert with_book.planned() == set()


def train_again(project: Project, folder: Path) -> tuple[str, str]:
    """A GPT without its model, trained: where it began, and the sha256 of what it came to."""
    project = project.clone(folder)
    for name in ("model.json", "model.safetensors"):
        project.results(f"runs/gpt-s1/{name}").unlink()
    done = project.snakemake("results/tiny/runs/gpt-s1/model.json")
    assert done.returncode == 0, done.stdout[-4000:]
    (begun,) = re.findall(r"^start +(.*)$", project.results("logs/train/gpt-s1.log").read_text(), re.MULTILINE)
    return begun, sha256(project.results("runs/gpt-s1/model.json"))


def test_a_checkpoint_from_before_the_book_is_gone_on_with(finished, with_book, tmp_path):
    begun, digest = train_again(with_book, tmp_path / "project")
    assert begun.startswith("step 12 of ")
    assert digest == sha256(finished.results("runs/gpt-s1/model.json"))


def test_from_nothing_a_gpt_becomes_the_same_beside_a_book(finished, with_book, tmp_path):
    project = with_book.clone(tmp_path / "without")
    shutil.rmtree(project.results("runs/gpt-s1/checkpoints"))
    begun, digest = train_again(project, tmp_path / "project")
    assert begun == "afresh"
    assert digest == sha256(finished.results("runs/gpt-s1/model.json"))


@pytest.mark.parametrize("name", ["chunks/tiny/chunks.npy", "tokens/tiny/tokens.bin"])
def test_training_a_gpt_refuses_a_flipped_byte_of_what_it_reads(finished, tmp_path, name):
    project = finished.clone(tmp_path / "project")
    content = bytearray(project.results(name).read_bytes())
    content[-3] ^= 1
    project.results(name).write_bytes(content)
    project.results("runs/gpt-s1/model.json").unlink()
    done = project.snakemake("--rerun-triggers", "mtime", "--", "results/tiny/runs/gpt-s1/model.json")
    assert done.returncode != 0
    assert f"{name}: content changed" in done.stdout
