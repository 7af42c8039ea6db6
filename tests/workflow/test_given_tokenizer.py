"""With a given tokenizer, a source that is added leaves the others' tokens alone."""

import shutil

import yaml


def test_a_source_that_is_added_retokenizes_nothing(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    shutil.copy(project.results("tokenizer/tokenizer.json"), project.folder / "given.json")
    settings = yaml.safe_load((project.folder / "config/tiny.yaml").read_text(encoding="utf-8"))
    settings["dataset"] |= {"name": "given", "tokenizer": {"type": "tokenizer.json", "path": "given.json"}}
    path = project.folder / "config/given.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    target = "results/given/tokens/tiny/manifest.json"
    done = project.snakemake(target, config="config/given.yaml")
    assert done.returncode == 0, done.stdout[-4000:]

    shutil.copy(project.folder / "data/tiny.jsonl", project.folder / "data/more.jsonl")
    settings["dataset"]["sources"]["more"] = {"path": "data/more.jsonl"}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert project.planned(target, config="config/given.yaml") == set()
    assert project.planned("results/given/tokens/more/manifest.json", config="config/given.yaml") == {"tokenize"}
