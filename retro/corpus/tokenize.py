"""Stage: the documents of one source as a token store, with a table of the documents beside it."""

import argparse
import json
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from retro import artifacts, errors, progress
from retro.corpus.megatron import encode, open_reader, unended
from retro.corpus.mmididx import TokenWriter, token_dtype
from retro.corpus.readers import Document, Reader
from retro.corpus.settings import SourceSettings, SplitSettings
from retro.corpus.split import key_hash, split_of
from retro.corpus.tokenizers import Tokenizer, use_threads
from retro.database.tables import DOCUMENT, SPLITS
from retro.errors import UserError
from retro.settings import Settings

STAGE = "retro.corpus.tokenize"
FILES = ("tokens.bin", "tokens.idx", "documents.npy", "documents.jsonl", "skipped.jsonl")
BATCH_DOCUMENTS = 1024
BATCH_BYTES = 4_000_000


class TokenizeSettings(Settings):
    """What this stage reads of the config."""

    source: SourceSettings
    name: str
    split: SplitSettings
    seed: int
    on_error: Literal["stop", "skip"] = "stop"


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of limited size, at least one in each."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.bytes
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Table:
    """Collects documents.npy and documents.jsonl; holds some forty bytes a document in memory."""

    def __init__(self, lines):
        self.lines, self.offset = lines, 0
        self.columns = {"group": array("Q"), "bytes": array("q"), "split": array("B"), "offset": array("q")}
        self.ids, self.lengths = array("Q"), array("q")

    def add(self, document: Document, split: int, tokens: int) -> None:
        facts = {"id": document.id, "group": document.group, "title": document.title}
        line = (json.dumps(facts, ensure_ascii=False) + "\n").encode()
        row = {
            "group": key_hash(document.group),
            "bytes": document.bytes,
            "split": split,
            "offset": self.offset,
        }
        for name, value in row.items():
            self.columns[name].append(value)
        self.ids.append(key_hash(document.id))
        self.lengths.append(tokens)
        self.lines.write(line)
        self.offset += len(line)

    def array(self) -> np.ndarray:
        """The table, dtype DOCUMENT, one row a document."""
        table = np.empty(len(self.ids), DOCUMENT)
        for name, values in self.columns.items():
            table[name] = values
        return table

    def counts(self) -> dict:
        """documents, tokens, bytes and duplicate ids, in all and by split."""
        table, lengths = self.array(), np.array(self.lengths, np.int64)

        def of(rows: np.ndarray) -> dict:
            return {
                "documents": int(rows.sum()),
                "tokens": int(lengths[rows].sum()),
                "bytes": int(table["bytes"][rows].sum()),
            }

        return {
            **of(np.ones(len(table), bool)),
            "duplicate_ids": len(table) - len(np.unique(np.array(self.ids, np.uint64))),
            "by_split": {name: of(table["split"] == number) for number, name in enumerate(SPLITS)},
        }


def tokenize(settings: TokenizeSettings, tokenizer: Tokenizer, folder: Path) -> tuple[Reader, dict]:
    """Write the store and its tables into `folder`; returns the reader, run dry, and the counts."""
    empty = 0
    with (
        artifacts.replacing(folder / "skipped.jsonl") as skipped,
        open(skipped, "w", encoding="utf-8") as notes,
        artifacts.replacing(folder / "documents.jsonl") as listed,
        open(listed, "wb") as lines,
        TokenWriter(folder / "tokens", token_dtype(tokenizer.vocab_size)) as writer,
    ):
        reader = open_reader(
            settings.source,
            settings.name,
            settings.on_error,
            lambda facts: notes.write(json.dumps(facts, ensure_ascii=False) + "\n"),
            tokenizer,
        )
        table = Table(lines)
        with progress.bar(reader.bytes, f"tokenizing {settings.name}", "B") as bar:
            for batch in batches(iter(reader)):
                full, encoded = encode(batch, tokenizer)
                empty += len(batch) - len(full)
                for document, ids in zip(full, encoded, strict=True):
                    split = split_of(document.group, document.id, settings.source.train, settings.split, settings.seed)
                    writer.add(np.append(ids, tokenizer.eod_id))
                    table.add(document, split, len(ids) + 1)
                bar.update(reader.done - bar.n)
            bar.update(reader.bytes - bar.n)
        counts = {
            **table.counts(),
            "empty": empty,
            "filtered": reader.filtered,
            "skipped": reader.skipped,
            "files": len(reader.files),
            "ignored_files": len(reader.ignored),
            **unended(reader),
        }
        if not counts["documents"]:
            raise UserError(nothing(settings, reader, empty))
        writer.finish()
        artifacts.write_array(folder / "documents.npy", table.array())
    return reader, counts


def nothing(settings: TokenizeSettings, reader: Reader, empty: int) -> str:
    """Why no document is left."""
    return (
        f"source {settings.name}: no documents left of {reader.records} records in {len(reader.files)} "
        f"files: {empty} empty, {reader.filtered} left out by keep, {reader.skipped} malformed. "
        f"Correct dataset.sources.{settings.name} in the config."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="JSON: source, name, split, seed, on_error")
    parser.add_argument("--tokenizer", required=True, type=Path, help="the tokenizer's manifest")
    parser.add_argument("--output", required=True, type=Path, help="the manifest to write")
    parser.add_argument("--threads", type=int, default=1, help="the same files for any number")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    try:
        settings = TokenizeSettings(**json.loads(arguments.settings))
    except (ValidationError, ValueError, TypeError) as error:
        raise UserError(f"--settings: wanted this stage's part of the config, as JSON: {error}") from None
    arguments.output.unlink(missing_ok=True)
    tokenizer, folder = Tokenizer.load(arguments.tokenizer), arguments.output.parent
    for left in folder.glob(".*.tmp"):  # by a run that was killed
        left.unlink()
    reader, counts = tokenize(settings, tokenizer, folder)
    # Threads are not recorded: they change no byte, and so should make nothing that follows stale.
    artifacts.write_manifest(
        arguments.output,
        kind="tokens",
        stage=STAGE,
        files=[folder / name for name in FILES],
        inputs=[arguments.tokenizer, *(file.path for file in reader.files)],
        settings=settings.facts(),
        counts=counts,
        seed=settings.seed,
    )
    if reader.ignored:
        names = ", ".join(file.name for file in reader.ignored[:5])
        print(f"tokens of {settings.name}: {len(reader.ignored)} files not read: {names} …", file=sys.stderr)
    print(
        f"tokens of {settings.name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
        f"{counts['bytes']:,} bytes; {counts['empty']} empty, {counts['filtered']} filtered, "
        f"{counts['skipped']} skipped, {counts['duplicate_ids']} duplicate ids",
        file=sys.stderr,
    )


if __name__ == "__main__":
    errors.run(main)
