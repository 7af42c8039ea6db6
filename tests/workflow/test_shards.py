"""Snakemake divides preprocessing among jobs, and embeds no source twice."""

import re
import shutil

import yaml

from tests.workflow.conftest import Project

CONFIG = "config/tiny.yaml"
WIDE = "retrievals/wide/neighbours/test/manifest.json"


def change(project: Project, dataset: dict, **sections) -> None:
    """Lay values over the config's dataset section; set other sections."""
    path = project.folder / CONFIG
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    sources = settings["dataset"]["sources"] | dataset.pop("sources", {})
    settings["dataset"] |= {**dataset, "sources": sources}
    path.write_text(yaml.safe_dump(settings | sections), encoding="utf-8")


def jobs(project: Project, *words: str) -> dict[str, int]:
    """How often a dry run would execute each rule."""
    done = project.snakemake("--dry-run", *words)
    assert done.returncode == 0, done.stdout
    table = done.stdout.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^([a-z0-9_]+)\s+(\d+)\s*$", table, re.MULTILINE)}


def test_shards_of_the_dataset_and_of_a_retrieval_make_the_same_bytes(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    overrides = {"encoder": {"type": "static", "width": 64}, "index": {"factory": "IVF4,SQ8"}}
    change(project, {}, retrievals={"wide": overrides})
    done = project.snakemake(f"results/tiny/{WIDE}")
    assert done.returncode == 0, done.stdout[-4000:]
    made = [project.results(kind) for kind in ("tokens", "chunks", "retrievals/wide")]
    kept = {path: path.read_bytes() for folder in made for path in folder.rglob("*.*") if path.name != "manifest.json"}
    assert {path.name for path in kept} >= {"tokens.bin", "chunks.npy", "embeddings.npy", "index.faiss", "ids.npy"}

    change(project, {"shards": 2})
    wanted = {"tokenize_shard": 2, "embed_shard": 2, "index_train": 1, "index_shard": 2, "neighbours_shard": 2}
    found = jobs(project, f"results/tiny/{WIDE}")
    assert {rule: found.get(rule) for rule in wanted} == wanted
    done = project.snakemake(f"results/tiny/{WIDE}")
    assert done.returncode == 0, done.stdout[-4000:]
    assert {path: path.read_bytes() for path in kept} == kept
    assert not [path for folder in made for path in folder.rglob("shards/*")]


def test_a_source_added_is_the_only_one_embedded_and_one_removed_embeds_nothing(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    made = project.results("embeddings/tiny/embeddings.npy").stat().st_mtime_ns
    before = (project.folder / CONFIG).read_text(encoding="utf-8")
    shutil.copy(project.folder / "data/tiny.jsonl", project.folder / "data/book.jsonl")
    change(project, {"sources": {"book": {"path": "data/book.jsonl", "train": False}}})
    per_source, others = ("tokenize", "chunk", "embed"), {"assemble": 1, "index": 1, "neighbours": 3, "record": 2}
    assert jobs(project, "preprocess") == dict.fromkeys(per_source, 1) | others | {"preprocess": 1}
    done = project.snakemake("preprocess")
    assert done.returncode == 0, done.stdout[-4000:]
    assert project.results("embeddings/book/embeddings.npy").is_file()
    assert project.results("embeddings/tiny/embeddings.npy").stat().st_mtime_ns == made
    (project.folder / CONFIG).write_text(before, encoding="utf-8")
    assert jobs(project, "preprocess") == others | {"preprocess": 1}
