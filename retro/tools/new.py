"""Write a config for your own text: what is there, how it is split, which preset suits it and this machine.

    python -m retro.tools.new notes/ --output mine.yaml

The path is a folder of .txt, a long text, JSON lines, .parquet, or a pair .bin and .idx of Megatron-LM. At most
`SAMPLE` bytes are read. Nothing is trained, and no file is written over without --force.
"""

import argparse
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml

from retro.base import command
from retro.base.artifacts import write_text
from retro.base.log import duration, say, warn
from retro.base.stage import UserError
from retro.config import schema
from retro.config.layers import PRESETS
from retro.config.schema import Config
from retro.corpus import files, megatron
from retro.corpus.documents import fraction
from retro.corpus.mmididx import TokenStore
from retro.corpus.readers import Reader, json_lines
from retro.corpus.readings import Reading
from retro.corpus.records import is_nothing, plain
from retro.corpus.settings import SourceSettings
from retro.evaluation.bits_per_byte import ENOUGH
from retro.planning import counts, estimates
from retro.report import story

SAMPLE = counts.SAMPLE  # bytes of text that are read
RECORDS = 2000  # whose fields are looked at
SEED = 1234  # the config's default
FIELDS = {  # names that a field is known by, the likeliest first
    "text": ("text", "content", "body", "article", "passage", "document", "raw_content", "markdown"),
    "id": ("id", "_id", "doc_id", "document_id", "uid", "url"),
    "group": ("group", "source", "country", "book", "repo", "repository", "author", "domain", "category", "year"),
    "title": ("title", "name", "headline", "heading", "subject"),
}
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|im_end|>")  # of documents, in tokenizers
LONG, PIECES = 8000, 200  # characters of a text from which it is cut where there are few, and pieces that are wanted
GROUPS = 5 * ENOUGH  # groups that make it worth holding out whole ones
FEW_GFLOPS = 20e9  # a second, that a core reaches: what retro.planning.plan assumes
WIDE = 56  # columns before a comment
LEAST = 0.25  # epochs that a training reads at least: below a fifth its log warns
START = 60.0  # seconds that jobs take to start


@dataclass
class Found:
    """What a path holds: documents and bytes read, how much of all that is, and what the config says of it."""

    path: str
    kind: str
    documents: int = 0
    bytes: int = 0
    share: float = 1.0  # of the corpus that was read
    places: list[float] = field(default_factory=list)  # of each document or group in [0, 1): `fraction`
    by: str = "document"
    source: dict[str, Any] = field(default_factory=dict)  # keys beside `path`
    why: dict[str, str] = field(default_factory=dict)  # of each key, in words
    tokenizer: dict[str, str] = field(default_factory=dict)

    @property
    def units(self) -> float:
        """Documents or groups of the whole corpus."""
        return len(self.places) / self.share

    @property
    def size(self) -> float:
        """Bytes of text of the whole corpus."""
        return self.bytes / self.share


def records(given: list[files.SourceFile]) -> Iterator[dict[str, Any]]:
    """Records of JSON lines and tables as they are, in which nobody has looked for a text yet."""
    import pyarrow
    import pyarrow.parquet

    for file in given:
        if file.kind == "parquet":
            try:
                with pyarrow.parquet.ParquetFile(file.path) as table:
                    for batch in table.iter_batches(batch_size=256):
                        yield from batch.to_pylist()
            except (pyarrow.ArrowException, ValueError) as error:
                raise UserError(f"{file.path}: broken .parquet data ({error}). Write it again.") from None
        elif file.kind == "jsonl":
            reading = Reading(file.path, digest=False)
            yield from (record for _, record in json_lines(file, reading) if isinstance(record, dict))


def fields_of(sample: list[dict[str, Any]], where: str) -> dict[str, str]:
    """Which field holds what. Raises `UserError` where none is text."""
    names = dict.fromkeys(name for record in sample for name in record)
    values = {name: [record[name] for record in sample if not is_nothing(record.get(name))] for name in names}
    texts = [name for name in names if values[name] and all(isinstance(value, str) for value in values[name])]
    if not texts:
        raise UserError(f"{where}: no field of its records is text, only {', '.join(names) or 'nothing'}. Convert it.")
    longest = max(texts, key=lambda name: sum(map(len, values[name])))
    found = {"text": next((name for name in FIELDS["text"] if name in texts), longest)}
    for what in ("id", "group", "title"):
        for name in FIELDS[what]:
            known = [plain(value) for value in values.get(name, [])]
            if name in found.values() or None in known or len(known) < len(sample):
                continue
            different = len(set(known))
            fits = {"id": different == len(known), "group": GROUPS <= different < 0.7 * len(known), "title": True}
            if fits[what]:
                found[what] = name
                break
    return found


def read_text(path: str, name: str) -> Found:
    """Look at a source of text. Raises `UserError` as its tokenizing would."""
    given = files.find(path, name)[0]
    kinds = sorted({file.kind for file in given})
    kind = {"txt": "text", "jsonl": "JSON lines", "parquet": "Parquet"}.get("".join(kinds), " and ".join(kinds))
    found = Found(path, f"{len(given)} file{'s' if len(given) > 1 else ''} of {kind}")
    sample = list(islice(records(given), RECORDS))
    if sample:
        known = fields_of(sample, path)
        if named := {what: field for what, field in known.items() if what in ("text", "group") or what != field}:
            found.source["fields"] = named
            found.why["fields"] = "which field holds what; of other fields it knows nothing"
        if "group" in known:
            found.by = "group"
    lengths, ids, groups = [], [], []
    reader = Reader(SourceSettings(path=path, **found.source), name)
    for document in reader:
        lengths.append(len(document.text))
        ids.append(document.id)
        groups.append(document.group)
        found.bytes += document.bytes
        if found.bytes >= SAMPLE:
            found.share = reader.done / max(1, reader.bytes)
            break
    if not found.bytes:
        raise UserError(f"{path}: holds no text. Name a file or folder that does: {files.KINDS}.")
    found.documents = len(ids)
    keys = set(groups if found.by == "group" else ids)
    if len(keys) < GROUPS and sum(lengths) > LONG * len(keys) and found.share == 1:
        most = max(1000, min(4000, sum(lengths) // PIECES // 100 * 100))
        whole = Reader(SourceSettings(path=path, **found.source, cut=most), name)
        keys, found.by = {document.id for document in whole}, "document"
        found.source["cut"] = most
        found.why["cut"] = f"{found.documents} long text{'s' if found.documents > 1 else ''}: parts can be held out"
    found.places = sorted(fraction(key, SEED) for key in keys)
    return found


def read_tokens(path: str, name: str, tokenizer: Path | None) -> Found:
    """Look at a corpus of tokens. Raises `UserError` where the tokenizer that made them is not found."""
    stores = megatron.find(path, name)
    found = Found(
        path, f"{len(stores)} pair{'s' if len(stores) > 1 else ''} of .bin and .idx", source={"type": "megatron"}
    )
    found.why["type"] = "tokens already"
    sizes = [TokenStore(prefix) for prefix in stores]
    found.documents = sum(len(store) for store in sizes)
    found.bytes = int(counts.TOKEN * sum(len(store.tokens) for store in sizes))
    ids = (
        f"{prefix.name}-{number}" for prefix, store in zip(stores, sizes, strict=True) for number in range(len(store))
    )
    found.places = sorted(fraction(key, SEED) for key in islice(ids, RECORDS * 10))
    found.share = len(found.places) / max(1, found.documents)
    found.bytes = int(found.bytes * found.share)
    beside = [tokenizer] if tokenizer else sorted(stores[0].parent.iterdir())
    for file in beside:
        if file.name == "tokenizer.json" or (file == tokenizer and file.suffix == ".json" and file.stem != "vocab"):
            added = json.loads(file.read_text(encoding="utf-8")).get("added_tokens", [])
            special = [token["content"] for token in added if token.get("special")]
            eod = next((end for end in ENDS if end in special), special[0] if special else ENDS[0])
            found.tokenizer = {"type": "tokenizer.json", "path": str(file), "eod": eod}
        elif file.name == "vocab.json" and file.with_name("merges.txt").is_file():
            merges = str(file.with_name("merges.txt"))
            found.tokenizer = {"type": "gpt2", "path": str(file), "merges": merges}
        elif file.suffix == ".model":
            found.tokenizer = {"type": "sentencepiece", "path": str(file), "eod": "</s>"}
    if not found.tokenizer:
        raise UserError(
            f"{path}: tokens, and nothing says which tokenizer made them. Name its tokenizer.json, its vocab.json "
            f"(with merges.txt beside it) or its .model: --tokenizer FILE."
        )
    return found


def shares(found: Found) -> dict[str, float]:
    """Shares of valid and test: twenty documents or groups for the test, of few a fifth, of much text 300 kB; half of
    that for validation; none is left empty.
    """
    number, ends = len(found.places), {}
    least = min(20, number // 5) or 1
    wanted = max(least / found.units, min(0.05, 300_000 / found.size))
    for name, places, count, share in (
        ("valid", [1 - place for place in reversed(found.places)], max(1, least // 2), wanted / 2),
        ("test", found.places, least, wanted),
    ):
        filled = math.floor(places[count - 1] * 1000 + 1) / 1000 if found.share == 1 else 0.0
        ends[name] = max(filled, round(share, 4) if found.share < 1 or share * number > least else 0.0)
    return ends


def written(value: Any) -> str:
    """A value as YAML on one line, quoted only where it must be."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)}: {written(each)}" for key, each in value.items()) + "}"
    text = str(value)
    if isinstance(value, str) and (not re.fullmatch(r"[\w./~-]+", text) or not isinstance(yaml.safe_load(text), str)):
        return json.dumps(text, ensure_ascii=False)
    return text


def config_of(found: Found, name: str, output: Path, epochs: float | None) -> str:
    """The config, each line with its reason."""
    gpu, tokens = torch.cuda.is_available(), found.size / counts.TOKEN
    preset = "small" if gpu and tokens > 2e6 else "tiny"
    machine = "a GPU is there" if gpu else "no GPU here"
    held = shares(found)
    test = sum(place < held["test"] for place in found.places)
    valid = sum(place >= 1 - held["valid"] for place in found.places)
    what = f"whole groups ({found.source['fields']['group']})" if found.by == "group" else f"{found.by}s"
    read = "" if found.share == 1 else " of those read"
    lines: list[tuple[str, str]] = [
        (
            f"preset: {preset}",
            f"{machine}, {'much' if preset == 'small' else 'little'} text: config/models/{preset}.yaml",
        ),
        ("dataset:", ""),
        (f"  name: {name}", f"everything made lies in results/{name}"),
        ("  sources:", ""),
        (f"    {name}:", ""),
        (f"      path: {written(found.path)}", found.kind),
        *((f"      {key}: {written(value)}", found.why[key]) for key, value in found.source.items()),
        (f"  split: {written({'by': found.by, **held})}", f"{what}: {valid} to validate on, {test} to test on{read}"),
    ]
    if found.tokenizer:
        lines.append((f"  tokenizer: {written(found.tokenizer)}", "made these tokens"))
    if found.by == "group":
        lines.append(("  neighbours: {exclude: [document, group]}", "never a neighbour of the chunk's own group"))
    if epochs:
        lines.append(
            (f"  samples: {{epochs: {epochs:g}}}", "more than the preset has: it would see too little of this text")
        )
    if found.by == "group":
        lines += [("evaluate:", ""), ("  bootstrap_unit: group", "documents of a group are not independent")]
    schema_path = Path(os.path.relpath(PRESETS.parent / "schema.json", output.parent.resolve())).as_posix()
    head = [
        f"# yaml-language-server: $schema={schema_path}",
        f"# Written by retro.tools.new for {found.path}. All keys: config/README.md.",
    ]
    return "\n".join([*head, *(with_reason(*line) for line in lines)]) + "\n"


def with_reason(line: str, why: str) -> str:
    """A line of the config with its comment beside it, or above where it is long."""
    if len(line) < WIDE or not why:
        return f"{line:<{WIDE}}# {why}" if why else line
    return f"{' ' * (len(line) - len(line.lstrip()))}# {why}\n{line}"


def planned(config: Config, found: counts.Counts, cores: int) -> float:
    """Seconds that the run takes on the CPU, roughly."""
    return START + sum(estimates.make(config, found).flops.values()) / (cores * FEW_GFLOPS)


def advised(config: Config, found: Found, number: counts.Counts) -> tuple[str, str] | None:
    """What the report would say in place of a figure."""
    fixed = config.dataset.samples.resolved(number.splits["train"], config.dataset.chunk_length)
    filled = config.dataset.chunk_length * (1 - number.padding(config.dataset.chunk_length))
    read = min(number.splits["train"] * filled, fixed.train_samples * fixed.seq_length)
    test = sum(place < config.dataset.split.test for place in found.places) / found.share
    return story.advice(story.Reach("test", round(test), found.by, read, number.text / number.tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="your text: folder of .txt, a .txt, .jsonl (.gz, .zst), .parquet, .bin and .idx")
    parser.add_argument("--output", type=Path, default=Path("mine.yaml"), help="config to write (default: mine.yaml)")
    parser.add_argument("--name", help="name of the dataset (default: that of the path)")
    parser.add_argument("--tokenizer", type=Path, help="of tokens: the tokenizer that made them")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    options = parser.parse_args()
    if options.output.exists() and not options.force:
        raise UserError(f"{options.output}: is there already. Give another --output, or --force to write over it.")
    path = options.path if options.path == "/" else options.path.rstrip("/")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.split(".")[0] or "text").strip("-._")
    name = options.name or stem or "text"
    tokens = path.endswith((".bin", ".idx")) or Path(f"{path}.idx").exists()
    tokens = tokens or (os.path.isdir(path) and any(each.endswith(".idx") for each in os.listdir(path)))
    found = read_tokens(path, name, options.tokenizer) if tokens else read_text(path, name)
    if len(found.places) < 3:
        raise UserError(
            f"{path}: {len(found.places)} {found.by} of {found.size / 1000:,.1f} kB is too little to train, validate "
            f"and test on. Add text, or make it the book of a model: train: false, as in config/config.yaml."
        )
    settled, number, text = None, None, ""
    for epochs in (None, LEAST):
        text = config_of(found, name, options.output, epochs)
        settled = schema.parse(yaml.safe_load(text), str(options.output))
        number = number or counts.sampled(settled)
        fixed = settled.dataset.samples.resolved(number.splits["train"], settled.dataset.chunk_length)
        if fixed.train_samples * fixed.seq_length >= LEAST * settled.dataset.chunk_length * number.splits["train"]:
            break
    assert settled is not None and number is not None
    write_text(options.output, text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    say(text)
    say(f"{path}: {number.documents:,.0f} documents, {number.text / 1e6:,.2f} MB, about {number.tokens:,.0f} tokens")
    without = " without its GPU" if torch.cuda.is_available() else ""
    took = duration(planned(settled, number, cores))
    say(f"Next: make run CONFIG={options.output}")
    say(f"It takes about {took} on the {cores} cores here{without}: planned, not measured.")
    if advice := advised(settled, found, number):
        warn(" ".join(advice))


if __name__ == "__main__":
    command.run(main)
