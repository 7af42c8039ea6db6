"""Whatever a corpus holds: every document is stored, or counted with a reason, as a naive model says.

    python -m tests.database.test_every_document --cases 200

prints the table of docs/faults.md.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.corpus import readers, tokenize, train_tokenizer
from retro.corpus.mmididx import TokenStore
from retro.database import assemble, chunk
from retro.retrieval.exclusion import Exclusion, rules_of
from tests.corpus.test_odd_files import unprivileged
from tests.database import naive
from tests.database.corpora import KINDS, Corpus, File, Folder, corpora, write

TINY = Path(__file__).parents[2] / "data" / "tiny.jsonl"
LENGTH = 16  # tokens a chunk
EOD = "<|endoftext|>"
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where syncing a file takes no time


def call(stage: Any, **options: Any) -> None:
    """Run a stage's main in this process."""
    line = [stage.STAGE]
    for name, value in options.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        line += [f"--{name}", *map(str, values)]
    with patch.object(sys, "argv", line), contextlib.redirect_stderr(io.StringIO()):
        stage.main()


@contextlib.contextmanager
def tokenizer_folder() -> Iterator[Path]:
    """The manifest of a tokenizer, where every user may read it."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    folder.chmod(0o755)
    sources = {"tiny": {"path": str(TINY)}}
    facts = {"tokenizer": {"vocab_size": 400}, "sources": sources, "split": {}, "seed": 1}
    call(train_tokenizer, settings=facts, output=folder / "manifest.json")
    yield folder / "manifest.json"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Path]:
    with tokenizer_folder() as manifest:
        yield manifest


def preprocess(corpus: Corpus, paths: dict[str, list[str]], folder: Path, tokenizer: Path) -> dict[str, Any]:
    """What the stages make of a corpus: each source's documents and counts, or the refusal; then what all sources
    come to.
    """
    found: dict[str, Any] = {"sources": {}, "refused": ""}
    for source in corpus.sources:
        facts = {"path": paths[source.name], "fields": source.fields, "keep": source.keep}
        facts |= {"train": source.train, "database": source.database}
        facts = {"source": facts, "name": source.name, "split": corpus.split, "seed": corpus.seed}
        facts["on_error"] = corpus.on_error
        output = folder / "tokens" / source.name / "manifest.json"
        notes = [output.parent / "shards" / f"{number}-of-{corpus.shards}.json" for number in range(corpus.shards)]
        try:
            if corpus.shards > 1:
                with patch.object(readers, "RECORDS", 2):
                    for note in notes:
                        call(tokenize, settings=facts, tokenizer=tokenizer, output=note, shard=note.stem)
                    call(tokenize, settings=facts, tokenizer=tokenizer, output=output, shards=notes)
            else:
                call(tokenize, settings=facts, tokenizer=tokenizer, output=output)
            found["sources"][source.name] = stored(output)
        except UserError as error:
            found["sources"][source.name] = str(error)
    if any(isinstance(each, str) for each in found["sources"].values()):
        return found
    tables = []
    for source in corpus.sources:
        tables.append(folder / "chunks" / source.name / "manifest.json")
        tokens = folder / "tokens" / source.name / "manifest.json"
        call(chunk, settings={"chunk_length": LENGTH}, tokens=tokens, tokenizer=tokenizer, output=tables[-1])
    uses = {source.name: {"train": source.train, "database": source.database} for source in corpus.sources}
    try:
        call(assemble, settings={"sources": uses}, chunks=tables, output=folder / "database" / "manifest.json")
    except UserError as error:
        return found | {"refused": str(error)}
    database = read_manifest(folder / "database" / "manifest.json")
    found["lists"] = {name: database.array(f"{name}.npy").tolist() for name in assemble.LISTS}
    found["counts"] = database.counts
    chunks = [read_manifest(path).array("chunks.npy") for path in tables]
    found["chunks"] = [(number, *row) for number, table in enumerate(chunks) for row in table[FACTS].tolist()]
    rows = np.arange(sum(map(len, chunks)))
    barred = Exclusion(rules_of(corpus.exclude), tables, np.array(found["lists"]["database"])).of(rows)
    size = len(found["lists"]["database"])
    found["barred"] = barred.among(np.broadcast_to(np.arange(size), (len(rows), size))).tolist()
    found["pairs"] = {(int(row), int(place)) for row, place in zip(*barred.within(0, size), strict=True)}
    return found


FACTS = ["document", "length", "bytes"]


def stored(output: Path) -> dict[str, Any]:
    """What the store of a source holds."""
    manifest = read_manifest(output)
    manifest.check()
    table, store = manifest.array("documents.npy"), TokenStore(output.parent / "tokens")
    lines = [json.loads(line) for line in manifest.file("documents.jsonl").read_text(encoding="utf-8").splitlines()]
    skipped = [json.loads(line) for line in manifest.file("skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "documents": [(line["id"], line["group"], line["title"]) for line in lines],
        "groups": table["group"].tolist(),
        "splits": [assemble.SPLITS[number] for number in table["split"]],
        "bytes": table["bytes"].tolist(),
        "tokens": [store[number].tolist() for number in range(len(store))],
        "skipped": [(line["file"], bool(line["reason"])) for line in skipped],
        "counts": manifest.counts,
    }


def locks(node: Any) -> bool:
    """Whether anything in a tree may not be read."""
    inside = node.children.values() if isinstance(node, Folder) else ()
    return (isinstance(node, Folder | File) and node.locked) or any(map(locks, inside))


def unlock(folder: Path) -> None:
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not os.path.islink(Path(path) / name):
                (Path(path) / name).chmod(0o755)


def compare(corpus: Corpus, tokenizer: Path) -> str:
    """Run the stages on a corpus and compare with the model; what came of it: refused, counted or stored."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        folder.chmod(0o777)
        places = {source.name: write(source, folder / source.name) for source in corpus.sources}
        paths = {source.name: [str(places[source.name][node]) for node in source.listed] for source in corpus.sources}
        wanted = {source.name: naive.outcome(corpus, source, places[source.name]) for source in corpus.sources}
        (folder / "made").mkdir(mode=0o777)
        (folder / "made").chmod(0o777)

        def work() -> dict[str, Any]:
            return preprocess(corpus, paths, folder / "made", tokenizer)

        found = unprivileged(work) if any(locks(source.tree) for source in corpus.sources) else work()
    finally:
        unlock(folder)
        shutil.rmtree(folder)
    for name, outcome in wanted.items():
        check_source(outcome, found["sources"][name])
    if any(outcome.refused for outcome in wanted.values()):
        return "refused"
    given = tokenizers.Tokenizer.from_file(str(tokenizer.parent / "tokenizer.json"))
    eod = given.token_to_id(EOD)
    documents = [document for outcome in wanted.values() for document in outcome.documents]
    chunks = naive.chunks(documents, lambda text: [*given.encode(text).ids, eod], LENGTH)
    uses = {source.name: source for source in corpus.sources}
    lists = {name: [row for row, (each, _) in enumerate(chunks) if each.split == name] for name in assemble.LISTED}
    lists["database"] = [row for row, (each, _) in enumerate(chunks) if naive.in_database(uses[each.source], each)]
    if not lists["train"] or not lists["database"]:
        assert ("train split has no chunk" if not lists["train"] else "database is empty") in found["refused"]
        return "refused"
    unfilled = [name for name in assemble.HELD_OUT if corpus.split[name] and not lists[name]]
    if unfilled:
        assert all(f"dataset.split.{name}" in found["refused"] for name in unfilled), found["refused"]
        return "refused"
    check_dataset(corpus, found, documents, chunks, lists)
    left_out = sum(outcome.empty + outcome.filtered + len(outcome.bad) for outcome in wanted.values())
    return "counted" if left_out else "stored"


def check_source(wanted: naive.Outcome, found: dict[str, Any] | str) -> None:
    """Every document is stored, or counted with a reason; or all is refused, naming what is wrong."""
    if wanted.refused:
        assert isinstance(found, str), wanted.refused
        assert any(words in found for words in wanted.refused), (wanted.refused, found)
        return
    assert not isinstance(found, str), found
    documents = wanted.documents
    assert found["documents"] == [(each.id, each.group, each.title) for each in documents]
    assert found["splits"] == [each.split for each in documents]
    assert found["bytes"] == [len(each.text.encode()) for each in documents]
    groups = {each.group for each in documents}
    assert (
        len(set(found["groups"]))
        == len(groups)
        == len({*zip(found["groups"], [each.group for each in documents], strict=True)})
    )
    assert found["skipped"] == [(str(path), True) for path in wanted.bad]
    counts = found["counts"]
    assert [counts[name] for name in ("documents", "empty", "filtered", "skipped")] == [
        len(documents), wanted.empty, wanted.filtered, len(wanted.bad)
    ]  # fmt: skip
    assert counts.get("absent", {}) == wanted.absent
    assert counts["duplicate_ids"] == len(documents) - len({each.id for each in documents})
    assert {name: of["documents"] for name, of in counts["by_split"].items()} == {
        name: sum(each.split == name for each in documents) for name in ("train", "valid", "test", "book")
    }


def check_dataset(corpus: Corpus, found: dict, documents: list, chunks: list, lists: dict[str, list[int]]) -> None:
    """The lists of chunks, what is excluded, and what is evaluated and in the database as well."""
    assert [tokens for _, tokens in chunks] == [
        tuple(tokens[at : at + LENGTH])
        for source in found["sources"].values()
        for tokens in source["tokens"]
        for at in range(0, len(tokens), LENGTH)
    ]
    assert found["lists"] == lists
    names = [source.name for source in corpus.sources]
    assert [row[:3] for row in found["chunks"]] == [
        (names.index(document.source), document.number, len(tokens)) for document, tokens in chunks
    ]
    sizes: Counter = Counter()
    for source, document, _, size in found["chunks"]:
        sizes[names[source], document] += size
    assert sizes == {(each.source, each.number): len(each.text.encode()) for each in documents}
    barred = [[naive.excluded(one, chunks[row], corpus.exclude) for row in lists["database"]] for one in chunks]
    assert found["barred"] == barred
    assert found["pairs"] == {
        (row, place) for row, of in enumerate(barred) for place, is_barred in enumerate(of) if is_barred
    }
    held = [each for each in documents if each.split in ("valid", "test")]
    shared: dict[str, dict[str, int]] = {"ids": {}, "texts": {}}
    for source in corpus.sources:
        served = [each for each in documents if each.source == source.name and naive.in_database(source, each)]
        for what, of in (("ids", lambda each: each.id), ("texts", lambda each: each.text)):
            number = sum(of(each) in set(map(of, served)) for each in held)
            if number:
                shared[what][source.name] = number
    assert found["counts"]["evaluated_in_database"] == shared


CHECKS = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("kind", KINDS)
@settings(CHECKS, max_examples=10)
@given(data=st.data())
def test_every_document_is_stored_or_counted_with_a_reason(tokenizer, kind, data):
    compare(data.draw(corpora(kind)), tokenizer)


def tried(kind: str, cases: int, tokenizer: Path) -> Counter:
    """What came of so many corpora of a kind, always the same ones. Raises AssertionError for a silent fault."""
    came: Counter = Counter()

    @settings(CHECKS, max_examples=cases, derandomize=True, database=None)
    @given(corpora(kind))
    def run(corpus: Corpus) -> None:
        came[compare(corpus, tokenizer)] += 1

    run()
    return came


def table(cases: int) -> Iterator[str]:
    """The lines of a table: what came of so many corpora of each kind."""
    yield "| kind of input | tried | refused by name | all stored | something left out, and counted | silent |"
    yield "|---|---|---|---|---|---|"
    total: Counter = Counter()
    with tokenizer_folder() as manifest:
        for kind in KINDS:
            came = tried(kind, cases, manifest)
            total += came
            yield row(kind, came)
    yield row("**together**", total)


def row(kind: str, came: Counter) -> str:
    cells = [came.total(), came["refused"], came["stored"], came["counted"], 0]
    return f"| {kind} | " + " | ".join(f"{cell:,}" for cell in cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="corpora of each kind")
    for line in table(parser.parse_args().cases):
        print(line, flush=True)
