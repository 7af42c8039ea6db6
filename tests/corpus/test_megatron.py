"""Corpora that are tokens already, as Megatron-LM and NeMo leave them."""

import json
import shutil

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.config.schema import files_of, parse
from retro.corpus.megatron import find, open_reader
from retro.corpus.mmididx import DTYPES, TokenStore, TokenWriter
from retro.corpus.settings import SourceSettings
from retro.planning.counts import sampled
from tests.database.stages import stage

COMMON = {"split": {"by": "document", "valid": 0.2, "test": 0.2}, "seed": 1, "on_error": "stop"}
TEXTS = ["The first document.", "A second one, a little longer than the first.", "Grüße aus Köln"]


@pytest.fixture
def given(bpe_folder, tmp_path):
    """The manifest of a given tokenizer."""
    path = tmp_path / "D/tokenizer/manifest.json"
    tokenizer = {"type": "tokenizer.json", "path": str(bpe_folder / "tokenizer.json")}
    stage("retro.corpus.train_tokenizer", settings={"tokenizer": tokenizer, "sources": {}, **COMMON}, output=path)
    return path


def write(prefix, documents, dtype="<u2"):
    with TokenWriter(prefix, np.dtype(dtype)) as writer:
        for ids in documents:
            writer.add(np.asarray(ids))
        writer.finish()


def ended(bpe, texts=TEXTS):
    return [np.append(ids, bpe.eod_id) for ids in bpe.encode_batch(texts)]


def tokenize(given, path, **more):
    output = given.parents[1] / "tokens/corpus/manifest.json"
    source = {"type": "megatron", "path": path if isinstance(path, list) else str(path)}
    stage(
        "retro.corpus.tokenize",
        settings={"source": source, "name": "corpus", **COMMON, **more},
        tokenizer=given,
        output=output,
    )
    return read_manifest(output, "tokens")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.itemsize > 1], ids=str)
def test_tokens_of_every_dtype_are_taken_as_they_are(given, bpe, tmp_path, dtype):
    documents = ended(bpe)
    write(tmp_path / "corpus", documents, dtype)
    manifest = tokenize(given, tmp_path / "corpus")
    store = TokenStore(manifest.file("tokens.bin").with_suffix(""))
    assert [each.tolist() for each in store] == [each.tolist() for each in documents]
    assert manifest.counts["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert (manifest.counts["without_eod"], manifest.counts["empty"]) == (0, 0)
    lines = [json.loads(line) for line in manifest.file("documents.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["corpus-0", "corpus-1", "corpus-2"]


@pytest.mark.parametrize("dtype", ["u1", "i1"])
def test_tokens_of_one_byte_are_taken(given, tmp_path, dtype):
    write(tmp_path / "corpus", [[5, 6, 7]], dtype)
    store = TokenStore(tokenize(given, tmp_path / "corpus").file("tokens.bin").with_suffix(""))
    assert store[0][:-1].tolist() == [5, 6, 7]


def test_several_files_of_a_pattern_a_folder_and_a_list(given, bpe, tmp_path):
    for number, document in enumerate(ended(bpe)):
        write(tmp_path / f"parts/part_{number}", [document])
    for path in (tmp_path / "parts/part_*", tmp_path / "parts", [str(tmp_path / f"parts/part_{n}") for n in range(3)]):
        assert tokenize(given, path).counts["documents"] == 3
    shutil.copytree(tmp_path / "parts", tmp_path / "more")
    manifest = tokenize(given, [str(tmp_path / "parts"), str(tmp_path / "more")])
    assert (manifest.counts["documents"], manifest.counts["duplicate_ids"]) == (6, 0)
    ids = [json.loads(line)["id"] for line in manifest.file("documents.jsonl").read_text().splitlines()]
    assert ids == [f"{folder}/part_{n}-0" for folder in ("parts", "more") for n in range(3)]


def test_a_corpus_that_is_moved_keeps_its_ids_and_so_its_splits(given, bpe, tmp_path):
    """Stores of equal names in two folders: told apart by these, not by where both lie."""
    made = []
    for place in ("here", "there/below"):
        for folder in ("a", "b"):
            write(tmp_path / place / folder / "part", ended(bpe))
        manifest = tokenize(given, [str(tmp_path / place / folder) for folder in ("a", "b")])
        made.append({name: facts["sha256"] for name, facts in manifest.facts["files"].items()})
    assert made[0] == made[1]


def test_a_document_without_eod_is_given_one_and_an_empty_one_is_left_out(given, bpe, tmp_path):
    first, second, _ = ended(bpe)
    write(tmp_path / "corpus", [first[:-1], [bpe.eod_id], [], second])
    manifest = tokenize(given, tmp_path / "corpus")
    store = TokenStore(manifest.file("tokens.bin").with_suffix(""))
    assert [each.tolist() for each in store] == [first.tolist(), second.tolist()]
    assert (manifest.counts["without_eod"], manifest.counts["empty"]) == (2, 2)


@pytest.mark.parametrize("bad", [-1, 60_000, 1.5])
def test_an_id_outside_the_vocabulary_names_file_and_document(given, bpe, tmp_path, bad):
    write(tmp_path / "corpus", [ended(bpe)[0], [3, bad]], "<f8")
    with pytest.raises(UserError, match=r"corpus\.idx, document 1: id .* vocabulary .* has 600 tokens"):
        tokenize(given, tmp_path / "corpus", on_error="skip")


def test_eod_inside_a_document_is_refused_or_skipped(given, bpe, tmp_path):
    first, second, _ = ended(bpe)
    write(tmp_path / "corpus", [first, np.append(first, second)])
    with pytest.raises(UserError, match=r"document 1: .* is EOD"):
        tokenize(given, tmp_path / "corpus")
    assert tokenize(given, tmp_path / "corpus", on_error="skip").counts["skipped"] == 1


def planned(path, bpe_folder):
    """What the planner counts of a corpus before anything is made of it."""
    dataset = {
        "sources": {"s": {"type": "megatron", "path": str(path)}},
        "tokenizer": {"type": "tokenizer.json", "path": str(bpe_folder / "tokenizer.json")},
    }
    return sampled(parse({"dataset": dataset}))


def test_the_planner_leaves_out_a_document_that_cannot_be_taken(bpe, bpe_folder, tmp_path):
    first, second, third = ended(bpe)
    write(tmp_path / "corpus", [first, np.append(first, second), third])
    found = planned(tmp_path / "corpus", bpe_folder)
    assert (found.documents, found.tokens) == (2, len(first) + len(third))


def test_the_planner_leaves_out_a_document_without_text(bpe, bpe_folder, tmp_path):
    first, _, third = ended(bpe)
    write(tmp_path / "corpus", [first, [bpe.eod_id], [], third])
    assert planned(tmp_path / "corpus", bpe_folder).documents == 2


def test_skipped_documents_are_counted_where_nobody_takes_note_of_them(bpe, tmp_path):
    first, second, _ = ended(bpe)
    write(tmp_path / "corpus", [np.append(first, second)])
    reader = open_reader(SourceSettings(type="megatron", path=str(tmp_path / "corpus")), "s", "skip", None, bpe)
    assert list(reader) == [] and reader.skipped == 1


def test_half_a_pair_is_refused(tmp_path):
    write(tmp_path / "corpus", [[1]])
    (tmp_path / "corpus.bin").unlink()
    with pytest.raises(UserError, match=r"source s: no such file: .*corpus\.bin"):
        find(str(tmp_path / "corpus"), "s")
    with pytest.raises(UserError, match=r"names no \.idx file"):
        find(str(tmp_path / "none_*"), "s")


def test_the_config_wants_the_tokenizer_that_made_the_tokens(tmp_path):
    write(tmp_path / "corpus", [[1]])
    source = {"type": "megatron", "path": str(tmp_path / "corpus.bin")}
    with pytest.raises(UserError, match="'s' is tokens already"):
        parse({"dataset": {"sources": {"s": source}}})
    parse({"dataset": {"sources": {"s": source}, "tokenizer": {"type": "tokenizer.json", "path": "t.json"}}})
    files = [str(tmp_path / "corpus") + end for end in (".idx", ".bin")]
    assert files_of("s", SourceSettings(**source)) == files
