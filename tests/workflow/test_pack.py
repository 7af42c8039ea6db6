"""A packed dataset is enough: opened elsewhere, without its sources, it gives the same weights and is not made anew."""

import shutil

import pytest

from tests.workflow.conftest import Project

MADE = {"train_tokenizer", "tokenize", "duplicates", "chunk", "embed", "assemble", "index", "neighbours", "record"}
CONFIG = "results/tiny/opened.yaml"


def told(project: Project, *words: str) -> str:
    """What a command of the project says, which must end well."""
    done = project.run(project.python, "-m", *words)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def packs(finished, tmp_path_factory):
    """Packs of the finished dataset, with and without embeddings."""
    folder, project = tmp_path_factory.mktemp("packs"), finished.clone(tmp_path_factory.mktemp("first") / "project")
    for name, more in {"whole.tar.zst": [], "less.tar": ["--without", "embeddings"]}.items():
        told(project, "retro.tools.pack", "pack", "--config", "config/tiny.yaml", "--output", f"{folder}/{name}", *more)
    shutil.rmtree(project.folder)  # nothing of the first machine is left to lean on
    return folder


def opened(folder, pack) -> Project:
    """A copy of the project without any text, in which a pack was opened."""
    project = Project.create(folder)
    shutil.rmtree(project.folder / "data")
    told(project, "retro.tools.pack", "open", str(pack))
    return project


def test_models_are_trained_to_the_same_bytes_and_nothing_is_preprocessed(finished, packs, tmp_path):
    project = opened(tmp_path / "another/place", packs / "whole.tar.zst")
    assert project.planned("-F", config=CONFIG) & MADE == set()
    made = project.make_run("train_all", config=CONFIG)
    assert made.returncode == 0 and "2 stages in" in made.stdout, made.stdout[-3000:]
    for run in ("gpt-s1", "retro-s1"):
        weights = f"runs/{run}/model.safetensors"
        assert project.results(weights).read_bytes() == finished.results(weights).read_bytes()
    assert project.planned("train_all", "preprocess") == set()  # with the config file of the first machine
    said = told(project, "retro.tools.verify", "results/tiny")
    assert "11 artifacts hold" in said and "what lay outside the pack, such as corpora, is not compared" in said
    project.edit(
        "config/tiny.yaml", "runs:", "retrievals: {words: {retriever: bm25}, exact: {index: {factory: Flat}}}\nruns:"
    )
    assert project.planned("retrievals") == {"retrievals", "bm25_index", "index", "neighbours"}


def test_without_embeddings_models_are_trained_and_what_needs_them_is_refused(packs, tmp_path):
    project = opened(tmp_path / "project", packs / "less.tar")
    assert not list(project.results("").rglob("embeddings.npy"))
    assert project.planned("preprocess", "train_all", config=CONFIG) == {"train", "train_all"}
    refused = project.snakemake("--dry-run")
    assert refused.returncode == 1 and "packed without embeddings, which this needs" in refused.stdout
    assert "were not packed, so that only their manifests are here" in told(
        project, "retro.tools.verify", "results/tiny"
    )
