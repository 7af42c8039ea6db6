"""A small dataset on disk, written by hand, with every artifact that training reads."""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from retro.base.artifacts import sha256, write_array, write_json, write_manifest
from retro.base.names import CHUNK, DOCUMENT, SPLITS
from retro.corpus.mmididx import TokenWriter

M = 8  # chunk length
SEQ = 32
VOCAB = 257
EOD = 256
SOURCES = ("almanac", "letters")
STAGE = "retro.dataset.dataset"


def make_dataset(folder: Path, *, documents: int = 40, saved: int = 4, **samples) -> Path:
    """Write a dataset of two sources and return its config.json."""
    generator = np.random.Generator(np.random.Philox(7))
    write_tokenizer(folder / "tokenizer")
    tables = [write_source(folder, name, documents, generator) for name in SOURCES]
    rows = np.arange(sum(map(len, tables)))
    split = np.concatenate([table["split"] for table in tables])
    splits = {name: rows[split == SPLITS.index(name)] for name in ("train", "valid", "test")}
    database = splits["train"]
    for name, array in {"database": database, **splits}.items():
        write_array(folder / f"database/{name}.npy", array)
    write_manifest(
        folder / "database/manifest.json",
        kind="database",
        stage=STAGE,
        files=sorted((folder / "database").glob("*.npy")),
    )
    for name, found in splits.items():
        ids = generator.integers(0, len(database), (len(found), saved)).astype(np.int32)
        missing = generator.integers(0, saved + 4, len(found))  # some have fewer neighbours, a few none
        ids[np.arange(saved) >= np.where(missing < saved, missing, saved)[:, None]] = -1
        write_array(folder / f"neighbours/{name}/ids.npy", ids)
        write_array(folder / f"neighbours/{name}/scores.npy", np.zeros(ids.shape, np.float16))
        write_manifest(
            folder / f"neighbours/{name}/manifest.json",
            kind="neighbours",
            stage=STAGE,
            files=sorted((folder / f"neighbours/{name}").glob("*.npy")),
        )
    return record(folder, **samples)


def record(folder: Path, **samples) -> Path:
    """Write config.json of the artifacts in `folder`."""
    manifests = sorted(str(path.relative_to(folder)) for path in folder.rglob("manifest.json"))
    facts = {
        "kind": "recorded config",
        "format": 1,
        "seed": 1234,
        "chunk_length": M,
        "source_order": list(SOURCES),
        "tokenizer": {"vocab_size": VOCAB, "eod_id": EOD, "pad_id": EOD},
        "samples": {
            "seq_length": SEQ,
            "train_samples": 40,
            "global_batch_size": 4,
            "eval_interval": 4,
            "eval_iterations": 2,
            **samples,
        },
        "manifests": {name: sha256(folder / name) for name in manifests},
    }
    write_json(folder / "config.json", facts)
    return folder / "config.json"


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 256 bytes and an end of document."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(
        folder / "manifest.json",
        kind="tokenizer",
        stage=STAGE,
        files=[folder / "tokenizer.json"],
        settings={"tokenizer": {"type": "bpe", "eod": "<|endoftext|>"}},
        counts={"vocab_size": VOCAB, "eod_id": EOD, "pad_id": EOD},
    )


def write_source(folder: Path, name: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Token store and chunk table of one source; returns the table."""
    home, chunks = folder / "tokens" / name, folder / "chunks" / name
    documents, table, lines, position = np.zeros(count, DOCUMENT), [], [], 0
    with TokenWriter(home / "tokens", "<u2") as writer:
        for number in range(count):
            length = int(generator.integers(1, 60))
            phrase = generator.integers(0, 256, int(generator.integers(2, 9)))
            ids = np.append(np.resize(phrase, length - 1), EOD)
            writer.add(ids)
            split = SPLITS.index("valid" if number % 8 == 6 else "test" if number % 8 == 7 else "train")
            documents[number]["split"], documents[number]["bytes"] = split, length - 1
            documents[number]["offset"] = sum(map(len, lines))
            lines.append(json.dumps({"id": f"{name}-{number}", "group": str(number), "title": name}) + "\n")
            for start in range(0, length, M):
                record = np.zeros((), CHUNK)
                record["start"], record["document"], record["split"] = position + start, number, split
                record["length"] = min(M, length - start)
                table.append(record)
            position += length
        writer.finish()
    write_array(home / "documents.npy", documents)
    (home / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
    write_manifest(
        home / "manifest.json",
        kind="tokens",
        stage=STAGE,
        files=[home / each for each in ("tokens.bin", "tokens.idx", "documents.npy", "documents.jsonl")],
        settings={
            "source": {"path": f"{name}.jsonl", "train": True, "database": True},
            "split": {"by": "document", "valid": 0.125, "test": 0.125},
        },
        counts={"documents": count, "tokens": position, "by_split": {}},
    )
    table = np.array(table, CHUNK)
    write_array(chunks / "chunks.npy", table)
    write_manifest(chunks / "manifest.json", kind="chunks", stage=STAGE, files=[chunks / "chunks.npy"])
    return table


def run_json(architecture: str = "retro", *, seed: int = 1, model: dict | None = None, **train) -> str:
    """A run of a tiny model, as the train stage is given it."""
    shape = {"layers": 2, "width": 16, "heads": 2, "encoder_layers": 1, "encoder_width": 16, **(model or {})}
    return json.dumps(
        {
            "name": f"{architecture}-s{seed}",
            "architecture": architecture,
            "twin": f"gpt-s{seed}" if architecture == "retro" else None,
            "seed": seed,
            "model": shape,
            "train": {"warmup_samples": 8, "log_interval": 1, "checkpoint_interval": 3, **train},
        }
    )
