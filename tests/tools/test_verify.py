"""What `python -m retro.tools.verify` compares, what it says that it cannot, and which way out it names."""

import os
import sys
from pathlib import Path

import pytest

from retro.base.artifacts import sha256, write_json, write_manifest, write_text
from retro.base.stage import UserError
from retro.database.folders import identity_at
from retro.tools import verify


class Results:
    """A dataset's folder: tokens of source `a`, runs `gpt-s1` and `old-s1`, of which the last tables know the first."""

    def __init__(self, place: Path):
        self.place, self.folder = place, place / "results/d"
        self.corpus = place / "a.jsonl"
        write_text(self.corpus, '{"text": "a"}\n')
        self.tokens = self.made("tokens/a/manifest.json", "tokens", [self.corpus])
        self.record()
        for run in ("gpt-s1", "old-s1"):
            self.made(f"runs/{run}/model.json", "model", [self.folder / "config.json"])
        write_text(self.folder / "summary.csv", "run,retrieval,split\ngpt-s1,none,test\n")

    def made(self, name: str, kind: str, inputs: list[Path], **settings: object) -> Path:
        """An artifact of one file."""
        path = self.folder / name
        write_text(path.parent / "made.bin", kind)
        write_manifest(path, kind=kind, stage="x", files=[path.parent / "made.bin"], inputs=inputs, settings=settings)
        return path

    def record(self, *sources: str, seed: int = 1) -> None:
        facts = {"kind": "recorded config", "source_order": ["a", *sources], "seed": seed}
        write_json(self.folder / "config.json", facts | {"manifests": {"tokens/a/manifest.json": sha256(self.tokens)}})

    def measured(self, run: str, split: str, mode: str) -> Path:
        """Losses, made from the recorded config."""
        return self.made(f"runs/{run}/evaluation/{split}/{mode}/manifest.json", "losses", [self.folder / "config.json"])


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path)


@pytest.fixture
def verified(results, monkeypatch, capsys):
    """Run verify: what it printed, and what it ended with."""

    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["verify", str(results.folder), *words])
        try:
            verify.main()
        except UserError as error:
            return capsys.readouterr().out, str(error)
        return capsys.readouterr().out, ""

    return run


def test_all_holds(verified):
    said, error = verified()
    assert not error and "3 artifacts hold." in said and "note" not in said


def older(path: Path) -> None:
    path.write_text('{"text": "b"}\n', encoding="utf-8")
    os.utime(path, (1e9, 1e9))


def test_a_corpus_that_was_replaced_is_named_whatever_its_time(results, verified):
    older(results.corpus)
    said, error = verified()
    assert f"was made from another {results.corpus}; it is stale" in said
    assert "1 artifact(s) do not hold. Run snakemake" in error


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "corpus.parquet", "questions.jsonl.gz", "no-ending"])
def test_every_input_is_compared_whatever_its_ending(results, verified, name):
    source = results.place / name
    write_text(source, "1")
    results.made("runs/gpt-s1/model.json", "model", [source])
    assert not verified()[1]
    older(source)
    assert f"was made from another {source}" in verified()[0]


def test_quick_says_what_it_does_not_compare(results, verified):
    older(results.corpus)
    said, error = verified("--quick")
    assert not error and "note: --quick: files that are no manifests, such as corpora, are not compared" in said


def test_an_input_that_cannot_be_read_is_named(results, verified):
    results.corpus.unlink()
    results.corpus.mkdir()
    said, error = verified()
    assert not error and f"note: {results.corpus}: could not be compared with what was read (Is a directory)" in said


ENCODER = {"model.safetensors": "w", "config.json": "{}", "vocab.txt": "[PAD]\n", "tokenizer_config.json": "{}"}


@pytest.mark.parametrize("name", [None, *ENCODER, "README.md"])
def test_the_folder_of_an_encoder_is_compared_by_all_that_decides_vectors(results, verified, name):
    folder = results.place / "bert"
    for file, content in ENCODER.items():
        write_text(folder / file, content)
    settings = {"path": str(folder), "identity": identity_at(str(folder))}
    results.made("embeddings/a/manifest.json", "embeddings", [], encoder=settings)
    if name:
        write_text(folder / name, "another")
    said, error = verified()
    assert ("was made by another encoder than" in said) == bool(error) == (name in ENCODER)


def test_vectors_that_are_given_are_compared_with_those_of_their_source(results, verified):
    folder = results.place / "vectors"
    write_text(folder / "a.npy", "1")
    settings = {"type": "given", "path": str(folder), "identity": "0", "vectors": sha256(folder / "a.npy")}
    results.made("embeddings/a/manifest.json", "embeddings", [], encoder=settings)
    write_text(folder / "b.npy", "2")
    assert not verified()[1]
    write_text(folder / "a.npy", "3")
    assert "was made by another encoder than" in verified()[0]


def test_an_encoder_that_is_gone_is_said_not_to_be_compared(results, verified):
    settings = {"path": str(results.place / "bert"), "identity": "0"}
    results.made("embeddings/a/manifest.json", "embeddings", [], encoder=settings)
    said, error = verified()
    assert "note: the encoder could not be compared" in said and "no such folder" in said and not error


def test_answers_are_said_not_to_be_compared(results, verified):
    write_text(results.folder / "qa/gpt-s1.none.jsonl", "{}\n")
    assert "note: qa: answers have no manifest" in verified()[0]


# Folders that nothing makes again


def test_a_run_that_the_config_no_longer_names_is_to_be_deleted(results, verified):
    results.record(seed=2)
    results.made("runs/gpt-s1/model.json", "model", [results.folder / "config.json"])
    said, error = verified()
    assert f"The config no longer asks for it: delete {results.folder}/runs/old-s1." in said
    assert error.endswith(f"Delete: {results.folder}/runs/old-s1") and "Run snakemake" not in error


def test_a_run_fine_tuned_of_one_that_is_gone_goes_with_it_and_others_stay(results, verified):
    for run in ("old-s1-qa", "gpt-s1-qa"):
        results.made(f"runs/{run}/model.json", "model", [results.folder / "config.json"])
    results.record(seed=2)
    error = verified()[1]
    assert error.endswith(f"Delete: {results.folder}/runs/old-s1 {results.folder}/runs/old-s1-qa")
    assert "2 artifact(s) do not hold. Run snakemake" in error, "gpt-s1 and gpt-s1-qa"


def test_a_split_that_is_no_longer_evaluated_is_to_be_deleted(results, verified):
    for split in ("valid", "test"):
        results.measured("gpt-s1", split, "none")
    results.made("overlap/valid/manifest.json", "overlap", [results.folder / "config.json"])
    results.record(seed=2)
    for name in ("runs/gpt-s1/model.json", "runs/old-s1/model.json", "runs/gpt-s1/evaluation/test/none/manifest.json"):
        results.made(name, "model", [results.folder / "config.json"])
    error = verified()[1]
    assert error.endswith(f"{results.folder}/overlap/valid {results.folder}/runs/gpt-s1/evaluation/valid/none")


def test_a_condition_that_an_experiment_measured_is_made_again(results, verified):
    results.measured("gpt-s1", "test", "on+k5")
    write_text(results.folder / "experiments/neighbours/summary.csv", "run,retrieval,split\ngpt-s1,on+k5,test\n")
    results.record(seed=2)
    assert "2 artifact(s) do not hold. Run snakemake to make them again, with the target" in verified()[1]


def test_a_source_that_the_config_no_longer_names_is_to_be_deleted(results, verified):
    results.made("tokens/gone/manifest.json", "tokens", [results.place / "a.jsonl", results.tokens])
    os.remove(results.folder / "tokens/gone/made.bin")
    assert verified()[1].endswith(f"Delete: {results.folder}/tokens/gone")


def with_retrievals(results, *names: str) -> Path:
    """Retrievals `words` and `fast`, made from another config than is recorded now; a config that names some."""
    for name in ("words", "fast"):
        results.made(f"retrievals/{name}/neighbours/test/manifest.json", "x", [results.folder / "config.json"])
        results.made(f"retrievals/{name}/index/manifest.json", "x", [results.folder / "config.json"])
    for run in ("gpt-s1", "old-s1"):
        os.remove(results.folder / f"runs/{run}/model.json")
    results.record(seed=2)
    named = "".join(f"  {name}: {{retriever: bm25}}\n" for name in names)
    dataset = f"dataset: {{name: d, sources: {{a: {{path: {results.corpus}}}}}}}\n"
    text = f"preset: tiny\nresults: {results.place}/results\n{dataset}"
    write_text(results.place / "c.yaml", text + (f"retrievals:\n{named}" if named else ""))
    return results.place / "c.yaml"


@pytest.mark.parametrize("kept", [[], ["fast"]])
def test_a_retrieval_that_the_config_no_longer_names_is_to_be_deleted(results, verified, kept):
    said, error = verified("--config", str(with_retrievals(results, *kept)))
    gone = [f"{results.folder}/retrievals/{name}" for name in ("fast", "words") if name not in kept]
    assert error.endswith(f"Delete: {' '.join(gone)}")
    assert ("2 artifact(s) do not hold. Run snakemake" in error) == bool(kept)
    assert said.count("The config no longer asks for it") == 2 * len(gone)


def test_without_the_config_stale_retrievals_are_named_with_both_ways_out(results, verified):
    with_retrievals(results)
    error = verified()[1]
    assert "4 artifact(s) do not hold. Run snakemake" in error
    folders = f"{results.folder}/retrievals/fast {results.folder}/retrievals/words"
    assert error.endswith(f"If the config no longer names these retrievals, delete them (--config tells): {folders}")


def test_the_config_of_another_dataset_is_refused(results, verified):
    config = with_retrievals(results)
    write_text(config, config.read_text().replace("name: d", "name: e"))
    assert (
        f"is the config of {results.place}/results/e, not of {results.folder}" in verified("--config", str(config))[1]
    )


def test_before_anything_was_measured_no_run_is_called_left_over(results, verified):
    (results.folder / "summary.csv").unlink()
    results.record(seed=2)
    assert "2 artifact(s) do not hold. Run snakemake" in verified()[1]


@pytest.mark.parametrize("cut", ["-gpt", "-retro"])
def test_what_a_training_reads_is_compared_with_what_was_recorded_for_it(results, verified, cut):
    facts = {"kind": "recorded config", "source_order": ["a"], "manifests": {"tokens/a/manifest.json": "0" * 64}}
    write_json(results.folder / f"config{cut}.json", facts)
    said, _ = verified()
    assert f"tokens/a/manifest.json: is not the manifest that config{cut}.json recorded." in said
    write_json(
        results.folder / f"config{cut}.json", facts | {"manifests": {"tokens/a/manifest.json": sha256(results.tokens)}}
    )
    assert "recorded" not in verified()[0]
