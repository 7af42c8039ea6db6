"""Stage: the documents of one source as a token store, with a table of the documents beside it."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from retro.base import artifacts, log, provenance, stage
from retro.base.shards import shard_name
from retro.base.stage import Settings, UserError, given, read_section, whole
from retro.corpus.documents import Ledger, Spelling, Table, join, split_of
from retro.corpus.files import is_pattern, twins
from retro.corpus.megatron import MegatronReader, encode, open_reader, unended
from retro.corpus.mmididx import TokenWriter, token_dtype
from retro.corpus.readers import Document, Reader
from retro.corpus.settings import SourceSettings, SplitSettings
from retro.corpus.tokenizers import Tokenizer, use_threads

STAGE = "retro.corpus.tokenize"
FILES = ("tokens.bin", "tokens.idx", "documents.npy", "documents.jsonl", "skipped.jsonl")
BATCH_BYTES = 4_000_000


class TokenizeSettings(Settings):
    """What this stage reads of the config."""

    source: SourceSettings
    name: str
    split: SplitSettings
    seed: int
    on_error: Literal["stop", "skip"] = "stop"


class Documents(Protocol):
    """What is tokenized: a reader, or some of its documents. `block` is that of the last document given."""

    @property
    def bytes(self) -> int: ...
    @property
    def done(self) -> int: ...
    @property
    def block(self) -> int: ...
    def __iter__(self) -> Iterator[Document]: ...


class Sink(Protocol):
    """What takes the ids of each document: a token store's writer, or a list."""

    def add(self, ids: np.ndarray) -> None: ...


def batches(reader: Documents) -> Iterator[tuple[int, list[Document]]]:
    """Documents of one block of records in lists of limited size, and the block's number."""
    batch: list[Document] = []
    size = block = 0
    for document in reader:
        if batch and (reader.block != block or size >= BATCH_BYTES):
            yield block, batch
            batch, size = [], 0
        batch.append(document)
        size, block = size + document.bytes, reader.block
    if batch:
        yield block, batch


def tokenize(
    settings: TokenizeSettings,
    tokenizer: Tokenizer,
    reader: Documents,
    writer: Sink,
    table: Table,
    spelling: Spelling | None = None,
) -> Iterator[tuple[int, int]]:
    """Store what the reader reads; yields, after each batch, its block and how many documents were empty."""
    spelling = spelling or Spelling(tokenizer, settings.seed)
    with log.bar(reader.bytes, f"tokenizing {settings.name}", "B") as bar:
        for block, batch in batches(reader):
            full, encoded = encode(batch, tokenizer)
            for document, ids in zip(full, encoded, strict=True):
                document = spelling.check(document, ids)
                split = split_of(document.group, document.id, settings.source.train, settings.split, settings.seed)
                writer.add(np.append(ids, tokenizer.eod_id))
                table.add(document, split, len(ids) + 1)
            bar.update(reader.done - bar.n)
            yield block, len(batch) - len(full)
        bar.update(reader.bytes - bar.n)


def write(
    settings: TokenizeSettings,
    tokenizer: Tokenizer,
    folder: Path,
    notes: Sequence[Path] = (),
    shard: tuple[int, int] | None = None,
) -> tuple[Reader | MegatronReader, dict]:
    """Write the store and its tables into `folder`: of the source, of a shard of it, or of the shards with these
    notes, joined. Returns the reader and the counts.
    """
    with (
        artifacts.replacing(folder / "skipped.jsonl") as skipped,
        open(skipped, "wb") as remarks,
        artifacts.replacing(folder / "documents.jsonl") as listed,
        open(listed, "wb") as lines,
        TokenWriter(folder / "tokens", token_dtype(tokenizer.vocab_size)) as writer,
    ):
        table, ledger = Table(lines, settings.source.fields.date is not None), Ledger()
        counts: dict[str, Any]

        def remark(facts: dict) -> None:
            line = (json.dumps(facts, ensure_ascii=False) + "\n").encode()
            remarks.write(line)
            ledger.add(reader.block, remarks=len(line))

        reader = open_reader(settings.source, settings.name, settings.on_error, remark, tokenizer, shard)
        if notes:
            counts = join(list(notes), writer, table, remarks)
            for note in map(artifacts.read_json, notes):
                reader.fields.add(note["fields"])
                reader.readings.add(note["files"])
        else:
            empty = documents = offset = 0
            spelling = Spelling(tokenizer, settings.seed)
            for block, without_text in tokenize(settings, tokenizer, reader, writer, table, spelling):
                ledger.add(block, documents=len(table.ids) - documents, lines=table.offset - offset)
                documents, offset, empty = len(table.ids), table.offset, empty + without_text
            counts = {
                "empty": empty,
                "filtered": reader.filtered,
                "skipped": reader.skipped,
                **unended(reader),
            }
            counts |= spelling.counts()
        if not shard:
            reader.fields.check()
        if not table.ids and not shard:
            remarks.flush()
            raise UserError(nothing(settings, reader, counts, skipped))
        writer.finish()
        artifacts.write_array(folder / "documents.npy", table.array())
        if shard:
            artifacts.write_array(folder / "ids.npy", np.array(table.ids, np.uint64))
            artifacts.write_array(folder / "ledger.npy", ledger.array())
            return reader, counts
    counts |= {"files": len(reader.files), "ignored_files": len(reader.ignored), **reader.fields.counts()}
    return reader, {**table.counts(), **counts}


def nothing(settings: TokenizeSettings, reader: Reader | MegatronReader, counts: dict, skipped: Path) -> str:
    """Why no document is left; `skipped`: the list of malformed records."""
    with open(skipped, encoding="utf-8") as file:
        first = file.readline()
    why = "{file}, line {line}: {reason}".format(**json.loads(first)) if first else ""
    why = f" The first: {why}." if why else ""
    records = sum(counts[name] for name in ("empty", "filtered", "skipped"))
    return (
        f"source {settings.name}: no documents left of {records} records in {len(reader.files)} "
        f"files: {counts['empty']} empty, {counts['filtered']} left out by keep, {counts['skipped']} malformed.{why} "
        f"Correct dataset.sources.{settings.name} in the config."
    )


def remarks_on(reader: Reader | MegatronReader) -> Iterator[str]:
    """What the log says of the source's files and fields besides counts."""
    given = [reader.source.path] if isinstance(reader.source.path, str) else reader.source.path
    if patterns := [path for path in given if is_pattern(path)]:
        first, last = (reader.files[number].path for number in (0, -1))
        yield f"{', '.join(patterns)}: {len(reader.files)} files, in the order of their names: {first} … {last}"
    if reader.again:
        names = ", ".join(map(str, reader.again[:5]))
        yield f"{len(reader.again)} files are named more than once and were read once: {names} …"
    for one, other in twins([file.path for file in reader.files])[:5]:
        yield f"{one} and {other} were both read; if they are the same documents, remove one"
    yield from reader.fields.remarks()


def lossy(counts: dict) -> list[str]:
    """What the log says of texts that the tokenizer changed, as `tokenizer.lossy` allows."""
    if not counts.get("changed"):
        return []
    return [
        f"warning: the tokenizer changed {counts['changed']} of {counts['documents']} documents, {counts['unknown']} "
        f"tokens are unknown; bits per byte are of the text as it is given back"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=given, help="JSON: source, name, split, seed, on_error")
    parser.add_argument("--tokenizer", required=True, type=Path, help="the tokenizer's manifest")
    parser.add_argument("--output", required=True, type=Path, help="the manifest to write")
    parser.add_argument("--shard", type=shard_name, help="do this part only, --output is its note")
    parser.add_argument("--shards", nargs="*", default=[], type=Path, help="notes of all shards: join them")
    parser.add_argument("--threads", type=whole, default=1, help="the same files for any number")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    settings = read_section(TokenizeSettings, arguments.settings)
    arguments.output.unlink(missing_ok=True)
    tokenizer = Tokenizer.load(arguments.tokenizer)
    folder = arguments.output.with_suffix("") if arguments.shard else arguments.output.parent
    for left in folder.glob(".*.tmp"):  # by a run that was killed
        left.unlink()
    reader, counts = write(settings, tokenizer, folder, arguments.shards, arguments.shard)
    if arguments.shard:
        made_from = {"settings": settings.facts(), "tokenizer": artifacts.sha256(arguments.tokenizer)}
        made_from |= {"code": provenance.digest(STAGE), "versions": provenance.versions()}
        facts = {"fields": reader.fields.facts(), "files": reader.readings.facts()}
        facts |= {"shard": arguments.shard, "made_from": made_from, "counts": counts}
        artifacts.write_json(arguments.output, facts)
        return
    hashes = reader.readings.hashes()
    # Threads and shards are not recorded: they change no byte, and so should make nothing that follows stale.
    artifacts.write_manifest(
        arguments.output,
        kind="tokens",
        stage=STAGE,
        files=[folder / name for name in FILES],
        inputs=[arguments.tokenizer, *hashes],
        hashes=hashes,
        settings=settings.facts(),
        counts=counts,
        seed=settings.seed,
    )
    for note in arguments.shards:
        shutil.rmtree(note.with_suffix(""))
    if reader.ignored:
        names = ", ".join(file.name for file in reader.ignored[:5])
        print(f"tokens of {settings.name}: {len(reader.ignored)} files not read: {names} …", file=sys.stderr)
    for line in [*remarks_on(reader), *lossy(counts)]:
        print(f"tokens of {settings.name}: {line}", file=sys.stderr)
    print(
        f"tokens of {settings.name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
        f"{counts['bytes']:,} bytes; {counts['empty']} empty, {counts['filtered']} filtered, "
        f"{counts['skipped']} skipped, {counts['duplicate_ids']} duplicate ids",
        file=sys.stderr,
    )


if __name__ == "__main__":
    stage.run(main)
