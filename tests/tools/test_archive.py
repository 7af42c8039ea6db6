"""What an archive takes along: every file that a config names, under any key, and a config that finds them there."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from retro.base.artifacts import sha256
from retro.base.stage import Names, Overrides, UserError, settings_in
from retro.config import schema
from retro.config.checks import named
from retro.tools.archive import expected, gather
from tests.model.families import LLAMA

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))
# Text that names no file. A new key that takes text is marked with `Names` in its settings, or stands here.
NO_PATH = {
    "EncoderSettings.passage_template",
    "FieldNames.date",
    "EncoderSettings.query_template",
    "DatasetSettings.name",
    "FieldNames.text",
    "FieldNames.id",
    "FieldNames.group",
    "FieldNames.title",
    "SourceSettings.keep",
    "TokenizerSettings.eod",
    "IndexSettings.factory",
    "RunSettings.twin",
    "ExperimentSettings.of",
}
OTHERS_RUN = "results/open-book/tokenizer/tokenizer.json"  # what config/swap-book.yaml takes from another run

HUB = ("models/SmolLM2-135M", "models/pythia-160m")  # what config/retrofit-*.yaml begin with


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working folder with the project's config and data."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("config", "data"):
        (folder / name).symlink_to(ROOT / name)
    write(folder / OTHERS_RUN, "{}")
    for name in HUB:
        write(folder / name / "config.json", json.dumps(LLAMA | {"max_position_embeddings": 512}))
        write(folder / name / "tokenizer.json", "{}")
        write(folder / name / "model.safetensors", "weights")
    monkeypatch.chdir(folder)
    return folder


def write(path, text="x\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def gathered(path, folder, monkeypatch, corpora=True):
    """The config before, and the config of the archive `folder`, read there, where nothing else can be found."""
    before = schema.load(path)
    facts, sources = gather(Path(path), folder, corpora)
    write(folder / "config/archived.yaml", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    monkeypatch.chdir(folder)
    return before, schema.load("config/archived.yaml"), sources


def given(monkeypatch, work, **sections):
    """The archived config of a config with a small source and `sections`, and what it was before."""
    write(work / "a.jsonl", '{"text": "a"}\n')
    raw = {"dataset": {"name": "d", "sources": {"a": {"path": "a.jsonl"}}}}
    raw["dataset"] |= sections.pop("dataset", {})
    write(work / "c.yaml", yaml.safe_dump({**raw, **sections}))
    before, after, _ = gathered("c.yaml", work.parent / "archive", monkeypatch)
    return before, after


def without_paths(settings: schema.Config) -> list[Any]:
    """What a config says, its paths left out."""

    def plain(value, key=()):
        if isinstance(value, dict):
            return {name: plain(inside, (*key, name)) for name, inside in value.items() if (*key, name) not in paths}
        return value

    paths = {("preset",)} | {path.key[:-1] if path.key[-1].isdigit() else path.key for path in named(settings)}
    runs = {
        name: {key: value for key, value in run.facts().items() if key != "from"}
        for name, run in settings.models().items()
    }
    return [plain(settings.model_dump(mode="json", by_alias=True)), runs]


def read_by_stages(settings: schema.Config) -> list[str]:
    found = [file for name, source in settings.dataset.sources.items() for file in schema.files_of(name, source)]
    for path in named(settings):
        if path.what in ("file", "folder") or (path.what == "model" and path.value not in settings.runs):
            beside = (f"{path.value}/{name}" for name in ("config.json", "tokenizer.json"))  # of a model's folder
            found += [name for name in beside if Path(path.value).is_dir()] or [path.value]
    return found


def fields(section=schema.Config):
    """Every field of the config by its section and name, with the section inside it."""
    for name, field in section.model_fields.items():
        inside = settings_in(field.annotation)
        yield f"{section.__name__}.{name}", field, inside
        if inside:
            yield from fields(inside)


def takes_text(annotation: Any) -> bool:
    """Whether a value of any wording is taken, or holds such."""
    return annotation in (str, Path, Any) or any(map(takes_text, get_args(annotation)))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_is_complete_in_its_archive(path, work, monkeypatch):
    archive = work.parent / "archive"
    contents = [sha256(file) for file in read_by_stages(schema.load(f"config/{path.name}"))]
    before, after, _ = gathered(f"config/{path.name}", archive, monkeypatch)
    assert without_paths(after) == without_paths(before)
    files = read_by_stages(after)
    assert [sha256(file) for file in files] == contents
    for file in files:
        assert not os.path.isabs(file) and Path(file).exists(), file
        assert archive in Path(file).resolve().parents, file


def test_every_key_that_takes_text_is_known_to_name_files_or_not():
    known = set()
    for key, field, inside in fields():
        if any(isinstance(mark, Names | Overrides) for mark in field.metadata):
            known.add(key)
        elif takes_text(field.annotation) and inside is None:
            assert key in NO_PATH, key
    assert known.isdisjoint(NO_PATH) and {key for key, *_ in fields()} >= NO_PATH
    assert {"SourceSettings.path", "QuestionSettings.instructions", "RetrievalSettings.encoder"} <= known


def test_what_is_read_besides_corpora_comes_along_whichever_key_names_it(work, monkeypatch):
    files = {name: str(write(work / f"else where/{name}", name)) for name in ("vocab.json", "merges.txt", "q.jsonl")}
    write(work / "bert/config.json", "own")
    write(work / "bert/1_Pooling/config.json", "pooling")
    write(work / "other/bert/config.json", "other")
    more = write(work / "more/q.jsonl", "more")
    before, after = given(
        monkeypatch,
        work,
        dataset={
            "tokenizer": {"type": "gpt2", "path": files["vocab.json"], "merges": files["merges.txt"]},
            "encoder": {"type": "transformers", "path": "bert/"},
        },
        retrievals={"r": {"encoder": {"path": "other/bert", "batch_size": 8}}},
        qa={"questions": files["q.jsonl"], "instructions": [files["q.jsonl"], str(more)]},
    )
    shutil.rmtree(work)
    assert without_paths(after) == without_paths(before)
    tokenizer, encoder, questions = after.dataset.tokenizer, after.dataset.encoder, after.qa
    assert [Path(path).read_text() for path in (tokenizer.path, tokenizer.merges)] == ["vocab.json", "merges.txt"]
    assert Path(encoder.path, "1_Pooling/config.json").read_text() == "pooling"
    assert Path(after.retrievals["r"].encoder["path"], "config.json").read_text() == "other"
    assert [Path(path).read_text() for path in (questions.questions, *questions.instructions)] == ["q.jsonl"] * 2 + [
        "more"
    ]


def test_a_named_file_that_is_gone_is_refused(work, monkeypatch):
    with pytest.raises(UserError, match=r"qa\.questions: no such file or folder: gone\.jsonl"):
        given(monkeypatch, work, qa={"questions": "gone.jsonl"})


def model(folder: Path) -> Path:
    """What an archive copies of a trained model: its manifest, its files, the tokenizer's manifest beside the runs."""
    weights = write(folder / "runs/base/model.safetensors", "weights")
    write(folder / "runs/base/checkpoints/step", "large")
    write(folder / "tokenizer/manifest.json", "{}")
    facts = {"format": 1, "kind": "model", "files": {weights.name: {"bytes": 7, "sha256": "0"}}}
    facts |= {"inputs": {}, "settings": {}, "counts": {}}
    return write(folder / "runs/base/model.json", json.dumps(facts))


@pytest.mark.parametrize("say", [str, lambda path: str(path.parent), lambda path: f"{path.parent}/"])
def test_a_model_that_a_run_begins_with_comes_along_with_its_weights(say, work, monkeypatch):
    path = model(work / "elsewhere")
    _, after = given(monkeypatch, work, runs={"gpt": {"architecture": "gpt", "from": say(path)}})
    shutil.rmtree(work)
    start = Path(after.models()["gpt-s1"].start)
    assert start.with_name("model.safetensors").read_text() == "weights"
    assert (start.parent / "../../tokenizer/manifest.json").read_text() == "{}"
    assert not list(work.parent.rglob("checkpoints"))


def test_a_model_that_the_archive_makes_itself_is_not_copied(work, monkeypatch):
    path = model(work / "made/d")
    runs = {"base": {"architecture": "gpt"}, "gpt": {"architecture": "gpt", "from": "made/d/runs/base-s1/model.json"}}
    runs |= {"old": {"architecture": "gpt", "from": str(path)}, "next": {"architecture": "gpt", "from": "base"}}
    _, after = given(monkeypatch, work, results="made", runs=runs)
    starts = {name: run.start for name, run in after.models().items()}
    assert starts["gpt-s1"] == starts["next-s1"] == "results/d/runs/base-s1/model.json"
    assert Path(starts["old-s1"]).exists()  # lies in this dataset's folder too, but no run of this config makes it


def test_a_folder_of_hugging_face_s_comes_along_once_with_its_weights(work, monkeypatch):
    folder = work / HUB[0]
    write(folder / "README.md", "a card")
    tokenizer = {"type": "huggingface", "path": HUB[0]}
    runs = {"gpt": {"architecture": "gpt", "from": f"{HUB[0]}/"}}
    _, after = given(monkeypatch, work, dataset={"tokenizer": tokenizer}, runs=runs)
    shutil.rmtree(work)
    assert after.models()["gpt-s1"].model.layers == LLAMA["num_hidden_layers"]
    start, beside = Path(after.models()["gpt-s1"].start), Path(after.dataset.tokenizer.path)
    assert {path.name for path in start.parent.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in beside.iterdir()} == {"config.json", "tokenizer.json"}


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
    "paths",
    [
        ["corpus"],
        ["corpus/"],
        ["corpus/one/x.jsonl", "corpus/two/x.jsonl"],
        ["corpus/one", "corpus/two"],
        ["corpus", "corpus/two/x.jsonl", "top.jsonl"],
        ["corpus/one/../two", "top.jsonl", "corpus/.hidden/x.jsonl"],
        ["odd [1] *.jsonl", "corpus/one"],
        ["corpus/**/*.jsonl", "top.*"],
    ],
    ids=" ".join,
)
def test_files_of_equal_names_stay_apart_and_in_their_order(paths, absolute, work, monkeypatch):
    for name in ("corpus/one/x.jsonl", "corpus/two/x.jsonl", "corpus/.hidden/x.jsonl", "top.jsonl", "odd [1] *.jsonl"):
        write(work / name, f"{name}\n")
    write(work / "corpus/one/notes.md")
    paths = [str(work / path) for path in paths] if absolute else paths
    source = {"path": paths if len(paths) > 1 else paths[0]}
    before = [Path(file).read_text() for file in schema.files_of("s", schema.SourceSettings(**source))]
    _, after = given(monkeypatch, work, dataset={"sources": {"s": source}})
    shutil.rmtree(work)
    assert [Path(file).read_text() for file in schema.files_of("s", after.dataset.sources["s"])] == before


@pytest.mark.parametrize("path", ["one/part", "one/part.bin", "one", "*/part*", ["one", "two"], ["two/p*", "one/part"]])
def test_pairs_of_tokens_stay_pairs_and_patterns_stay_patterns(path, work, monkeypatch):
    for folder in ("one", "two"):
        for end in (".idx", ".bin"):
            write(work / folder / f"part{end}", f"{folder}{end}")
    write(work / "t.json")
    source = {"type": "megatron", "path": path}
    before = [Path(file).read_text() for file in schema.files_of("s", schema.SourceSettings(**source))]
    tokenizer = {"type": "tokenizer.json", "path": "t.json"}
    _, after = given(monkeypatch, work, dataset={"sources": {"s": source}, "tokenizer": tokenizer})
    shutil.rmtree(work)
    assert [Path(file).read_text() for file in schema.files_of("s", after.dataset.sources["s"])] == before


def test_two_files_that_would_be_one_are_refused(work, monkeypatch):
    write(work / "far/x.jsonl", "1")
    write(work / "x.jsonl", "2")
    write(work / "far/below/y")
    (work / "link").symlink_to(work / "far/below")
    with pytest.raises(UserError, match=r"would both be corpora/s/x\.jsonl"):
        given(monkeypatch, work, dataset={"sources": {"s": {"path": ["x.jsonl", "link/../x.jsonl"]}}})


def test_without_corpora_their_places_are_named(work, monkeypatch):
    for folder in ("one", "two"):
        write(work / folder / "x.jsonl", folder)
    write(work / "c.yaml", yaml.safe_dump({"dataset": {"sources": {"s": {"path": ["one", "two"]}}}}))
    facts, sources = gather(Path("c.yaml"), work.parent / "archive", corpora=False)
    assert not (work.parent / "archive").exists()
    assert facts["dataset"]["sources"]["s"]["path"] == ["corpora/s/one", "corpora/s/two"]
    assert {place: each["was"] for place, each in sources["s"].items()} == {
        "corpora/s/one/x.jsonl": "one/x.jsonl",
        "corpora/s/two/x.jsonl": "two/x.jsonl",
    }


def test_a_config_on_the_users_own_presets_is_whole_without_them(work, monkeypatch):
    write(work / "mine.yaml", "preset: tiny\nmodel: {width: 64}\nqa: {questions: q.jsonl}\n")
    write(work / "q.jsonl", "q")
    before, after = given(
        monkeypatch, work, preset="mine.yaml", runs={"r": {"architecture": "retro", "model": {"flavour": "paper"}}}
    )
    assert after.preset is None and after.model.width == 64 and Path(after.qa.questions).read_text() == "q"
    assert after.models() == before.models()


def test_where_a_malformed_record_lay_is_not_expected_to_be_the_same(tmp_path):
    """skipped.jsonl names files as the config does, and in the archive that names others."""
    files = {name: {"bytes": 1, "sha256": name} for name in ("tokens.bin", "skipped.jsonl")}
    facts = {"format": 1, "kind": "tokens", "files": files, "versions": {}}
    facts |= {"inputs": {}, "settings": {}, "counts": {}}
    write(tmp_path / "tokens/a/manifest.json", json.dumps(facts))
    assert expected(tmp_path, {})["artifacts"]["tokens/a/manifest.json"]["files"] == {"tokens.bin": "tokens.bin"}
