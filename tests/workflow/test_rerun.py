"""Edit X, and exactly these rules run again."""

import os
import shutil

import pytest

COMPARED = {"summarise", "filtered", "leakage", "copying", "figures", "page"}
TRAINED = {"train", "losses", "mixed", "sample", "explorer"} | COMPARED
RECORDED = {"record", "overlap"} | TRAINED
SEARCHED = {"neighbours"} | RECORDED
INDEXED = {"index"} | SEARCHED
EMBEDDED = {"embed"} | INDEXED
CHUNKED = {"chunk", "assemble"} | EMBEDDED
TOKENIZED = {"train_tokenizer", "tokenize"} | CHUNKED
REPORTED = {"figures", "explorer", "page"}

CONFIG = "config/tiny.yaml"


def config(old: str, new: str):
    return lambda project: project.edit(CONFIG, old, new)


def code(path: str, old: str, new: str):
    return lambda project: project.edit(path, old, new)


def append(path: str, text: str):
    def change(project):
        with open(project.folder / path, "a", encoding="utf-8") as file:
            file.write(text)

    return change


def replace_by_older(path: str, text: str):
    """As cp -p, rsync -a and tar do it: other content, with a time before that of anything made here."""

    def change(project):
        append(path, text)(project)
        os.utime(project.folder / path, (1e9, 1e9))

    return change


def touch(path: str):
    return lambda project: os.utime(project.folder / path)


def delete(path: str):
    return lambda project: (project.folder / path).unlink()


def reorder(project):
    """The same sections, last first."""
    import yaml

    path = project.folder / CONFIG
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(dict(reversed(list(settings.items()))), sort_keys=False), encoding="utf-8")


TABLE = {
    "a comment": (append("retro/model/cca.py", "\n# a remark\n"), set()),
    "a docstring": (code("retro/model/build.py", '"""', '"""Rewritten. '), set()),
    "a message": (code("retro/base/artifacts.py", "no such file. Run", "there is no such file. Run"), set()),
    "a definition that nothing uses": (append("retro/base/artifacts.py", "\nCONSTANT = 1\n"), set()),
    "the model's code": (append("retro/model/cca.py", "\nChunkedCrossAttention.EXTRA = 1\n"), TRAINED),
    "the chunk stage's code": (
        code("retro/database/chunk.py", "def main() -> None:\n", "def main() -> None:\n    0\n"),
        CHUNKED,
    ),
    "the report's code": (
        code("retro/report/report_page.py", "def main() -> None:\n", "def main() -> None:\n    0\n"),
        {"page"},
    ),
    "the learning rate": (config("train: {warmup_samples: 8", "train: {lr: 0.001, warmup_samples: 8"), TRAINED),
    "one run's model": (
        config("retro: {architecture: retro, twin: gpt}", "retro: {architecture: retro, twin: gpt, model: {heads: 4}}"),
        TRAINED,
    ),
    "chunk length": (config("chunk_length: 32", "chunk_length: 64"), CHUNKED),
    "sequence length": (config("seq_length: 128", "seq_length: 64"), RECORDED),
    "vocabulary size": (config("vocab_size: 1024", "vocab_size: 1000"), TOKENIZED),
    "neighbours saved (K)": (config("chunk_length: 32", "chunk_length: 32\n  neighbours: {saved: 10}"), SEARCHED),
    "the encoder": (config("width: 256", "width: 128"), EMBEDDED),
    "the index": (config("chunk_length: 32", "chunk_length: 32\n  index: {factory: Flat}"), INDEXED),
    "nodes, processes and GPUs": (append(CONFIG, "resources: {nodes: 2, processes: 4, gpus: 4}\n"), set()),
    "bootstrap resamplings": (
        config("bootstrap: 1000", "bootstrap: 900"),
        COMPARED,
    ),
    "a corpus file's content": (
        append("data/tiny.jsonl", '{"id": "new", "text": "One more document.", "source": "x", "group": "y"}\n'),
        TOKENIZED,
    ),
    "a corpus file replaced by an older one": (
        replace_by_older(
            "data/tiny.jsonl", '{"id": "old", "text": "One document less.", "source": "x", "group": "y"}\n'
        ),
        TOKENIZED,
    ),
    "a template replaced by an older one": (
        replace_by_older("retro/report/templates/neighbours.css", "p {margin: 0}"),
        {"explorer", "page"},
    ),
    "touching a corpus file": (touch("data/tiny.jsonl"), set()),
    "touching the code": (touch("retro/model/cca.py"), set()),
    "the order of YAML keys": (reorder, set()),
    "a deleted artifact": (delete("results/tiny/index/index.faiss"), INDEXED),  # Snakemake trusts no bytes in one run
    "a deleted GPT": (delete("results/tiny/runs/gpt-s1/model.safetensors"), TRAINED - {"sample"}),
}


@pytest.mark.parametrize("what", TABLE)
def test_editing(finished, what):
    change, wanted = TABLE[what]
    kept = {}
    for path in [
        *finished.folder.glob("retro/**/*.py"),
        *finished.folder.glob("retro/report/templates/*"),
        finished.folder / CONFIG,
        finished.folder / "data/tiny.jsonl",
    ]:
        kept[path] = (path.read_bytes(), path.stat())
    removed = [finished.results("index/index.faiss"), finished.results("runs/gpt-s1/model.safetensors")]
    for path in removed:
        shutil.copy2(path, path.with_suffix(".kept"))
    try:
        change(finished)
        assert finished.planned() == wanted
    finally:
        for path, (content, status) in kept.items():
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        for path in removed:
            os.replace(path.with_suffix(".kept"), path)


ALTERNATIVES = "retrievals: {words: {retriever: bm25}, drawn: {retriever: random}, others: {retriever: shuffled}}"


def test_retrievals_are_made_beside_the_dataset_and_retrain_nothing(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    with open(project.folder / CONFIG, "a", encoding="utf-8") as file:
        file.write(f"\n{ALTERNATIVES}\n")
    assert project.planned("retrievals") == {"bm25_index", "neighbours", "retrievals"}
    done = project.snakemake("retrievals")
    assert done.returncode == 0, done.stdout[-4000:]
    for name in ("words", "drawn", "others"):
        assert (project.results(f"retrievals/{name}/neighbours/test/manifest.json")).is_file()
    assert not {"train", "embed", "index", "neighbours"} & project.planned()


def test_without_snakemakes_own_records_nothing_runs_again(finished):
    """They say what changed; where they are gone, files that are there and in order of time are taken as they are."""
    records = finished.folder / ".snakemake"
    records.rename(finished.folder / "records.kept")
    try:
        assert finished.planned() == set()
    finally:
        shutil.rmtree(records)
        (finished.folder / "records.kept").rename(records)


def test_touching_a_corpus_too_large_for_snakemakes_checksums_runs_nothing(finished):
    file = finished.folder / "data/tiny.jsonl"
    status = file.stat()
    os.utime(file)
    try:
        assert finished.planned("--max-checksum-file-size", "1") == set()
    finally:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_without_snakemakes_own_records_a_corpus_that_changed_later_is_noticed(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    shutil.rmtree(project.folder / ".snakemake")
    append("data/tiny.jsonl", '{"id": "new", "text": "One more.", "source": "x", "group": "y"}\n')(project)
    assert project.planned() == TOKENIZED
