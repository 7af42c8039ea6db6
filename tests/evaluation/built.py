"""A small preprocessed dataset, made in a second: what evaluation and report read, without the stages before.

The files are those of the contract, written with the project's own writers; neighbours are found by word counts.
"""

import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HuggingFace
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro.artifacts import sha256, write_array, write_json, write_manifest, write_text
from retro.corpus.mmididx import TokenWriter
from retro.corpus.tokenizers import Tokenizer
from retro.database.tables import CHUNK, DOCUMENT, SPLITS
from retro.recorded import Dataset

STAGE = "retro.record"
EOD = "<|endoftext|>"
Sources = dict[str, list[dict]]  # name → records with text, id, group, title and split


def hashed(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def build_dataset(folder: Path, sources: Sources, *, m=16, seq_length=64, vocab=400, saved=4, samples=8) -> Dataset:
    """Write a dataset of `sources` to `folder` and open it."""
    sources = dict(sorted(sources.items()))
    tokenizer = _tokenizer(folder / "tokenizer", sources, vocab)
    tables = {name: _source(folder, name, records, tokenizer, m) for name, records in sources.items()}
    split = np.concatenate([table["split"] for table in tables.values()])
    database = np.flatnonzero(np.isin(split, [SPLITS.index("train"), SPLITS.index("book")]))
    lists = {"database": database} | {s: np.flatnonzero(split == SPLITS.index(s)) for s in SPLITS[:3]}
    files = []
    for name, rows in lists.items():
        files.append(folder / "database" / f"{name}.npy")
        write_array(files[-1], rows.astype(np.int64))
    write_manifest(folder / "database/manifest.json", kind="database", stage=STAGE, files=files)
    texts = _chunk_texts(folder, tables, tokenizer)
    table = np.concatenate(list(tables.values()))
    for name in SPLITS[:3]:
        ids, scores = _neighbours(texts, table, lists[name], database, saved)
        target = folder / "neighbours" / name
        write_array(target / "ids.npy", ids)
        write_array(target / "scores.npy", scores)
        files = [target / "ids.npy", target / "scores.npy"]
        counts = {"holes": int((ids < 0).sum()), "recall": {"1": 1.0}}
        write_manifest(target / "manifest.json", kind="neighbours", stage=STAGE, files=files, counts=counts)
    return Dataset.open(_record(folder, sources, tokenizer, m, seq_length, saved, samples))


def _tokenizer(folder: Path, sources: Sources, vocab: int) -> Tokenizer:
    folder.mkdir(parents=True)
    engine = HuggingFace(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[EOD], initial_alphabet=sorted(alphabet), show_progress=False
    )
    engine.train_from_iterator((record["text"] for records in sources.values() for record in records), trainer)
    write_text(folder / "tokenizer.json", engine.to_str())
    settings = {"tokenizer": {"type": "bpe", "eod": EOD, "vocab_size": vocab}}
    counts = {"vocab_size": engine.get_vocab_size(), "eod_id": 0, "pad_id": 0}
    files = [folder / "tokenizer.json"]
    path = folder / "manifest.json"
    write_manifest(path, kind="tokenizer", stage=STAGE, files=files, settings=settings, counts=counts)
    return Tokenizer.load(path)


def _source(folder: Path, name: str, records: list[dict], tokenizer: Tokenizer, m: int) -> np.ndarray:
    documents = np.zeros(len(records), DOCUMENT)
    rows, lines, start = [], b"", 0
    encoded = tokenizer.encode_batch([record["text"] for record in records])
    with TokenWriter(folder / "tokens" / name / "tokens", np.uint16) as writer:
        for number, (record, ids) in enumerate(zip(records, encoded, strict=True)):
            ids = np.append(ids, tokenizer.eod_id)
            writer.add(ids)
            split = SPLITS.index(record["split"])
            group, size = hashed(record["group"].encode()), len(record["text"].encode())
            documents[number] = (group, size, split, len(lines))
            lines += json.dumps({key: record[key] for key in ("id", "group", "title")}).encode() + b"\n"
            for low in range(0, len(ids), m):
                part = ids[low : low + m]
                text = hashed(part.astype("<i8").tobytes())
                inside = int(tokenizer.token_bytes[part].sum())
                rows.append((start + low, number, len(part), split, group, text, inside))
            start += len(ids)
        writer.finish()
    target = folder / "tokens" / name
    write_array(target / "documents.npy", documents)
    (target / "documents.jsonl").write_bytes(lines)
    files = [target / file for file in ("tokens.bin", "tokens.idx", "documents.npy", "documents.jsonl")]
    counts = {"documents": len(records), "tokens": start, "bytes": int(documents["bytes"].sum())}
    counts |= {"empty": 0, "filtered": 0, "skipped": 0}
    counts["by_split"] = {s: {"documents": int((documents["split"] == i).sum())} for i, s in enumerate(SPLITS)}
    write_manifest(target / "manifest.json", kind="tokens", stage=STAGE, files=files, counts=counts)
    table = np.array(rows, CHUNK)
    path = folder / "chunks" / name / "chunks.npy"
    write_array(path, table)
    counts = {"chunks": len(table), "padding_share": 1 - float(table["length"].sum()) / (len(table) * m)}
    counts["by_split"] = {s: int((table["split"] == i).sum()) for i, s in enumerate(SPLITS)}
    write_manifest(path.with_name("manifest.json"), kind="chunks", stage=STAGE, files=[path], counts=counts)
    return table


def _chunk_texts(folder: Path, tables: dict[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
    texts = []
    for name, table in tables.items():
        tokens = np.fromfile(folder / "tokens" / name / "tokens.bin", "<u2")
        texts += [tokenizer.decode(tokens[row["start"] : row["start"] + row["length"]]) for row in table]
    return texts


def _neighbours(texts, table, rows, database, saved) -> tuple[np.ndarray, np.ndarray]:
    """Best matches by cosine of hashed word counts, other documents only, −1 where there are fewer."""
    width = 512
    vectors = np.zeros((len(texts), width), np.float32)
    for number, text in enumerate(texts):
        for word in text.lower().split():
            vectors[number, hashed(word.encode()) % width] += 1
    vectors /= np.log(2 + (vectors > 0).sum(0))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    offsets = np.cumsum(np.concatenate([[0], np.diff(table["start"]) < 0]))  # number of each chunk's source
    ids, scores = np.full((len(rows), saved), -1, np.int32), np.zeros((len(rows), saved), np.float16)
    for number, row in enumerate(rows):
        similar = vectors[database] @ vectors[row]
        same = (offsets[database] == offsets[row]) & (table["document"][database] == table["document"][row])
        similar[same] = -1
        order = np.argsort(-similar, kind="stable")[:saved]
        order = order[similar[order] > 0]
        ids[number, : len(order)], scores[number, : len(order)] = order, similar[order]
    return ids, scores


def _record(folder, sources, tokenizer, m, seq_length, saved, samples) -> Path:
    names = ["tokenizer", "database", *(f"neighbours/{s}" for s in SPLITS[:3])]
    names += [f"{kind}/{name}" for kind in ("tokens", "chunks") for name in sources]
    manifests = [f"{name}/manifest.json" for name in names]
    book = {name: all(record["split"] == "book" for record in records) for name, records in sources.items()}
    write_json(
        folder / "config.json",
        {
            "kind": "recorded config",
            "format": 1,
            "name": folder.name,
            "seed": 1234,
            "chunk_length": m,
            "sources": {name: {"path": f"{name}.jsonl", "train": not book[name], "database": True} for name in sources},
            "source_order": list(sources),
            "split": {"by": "group", "valid": 0.05, "test": 0.05},
            "tokenizer": {
                "type": "bpe",
                "vocab_size": tokenizer.vocab_size,
                "eod_id": tokenizer.eod_id,
                "pad_id": tokenizer.pad_id,
            },
            "encoder": {"type": "static", "width": 512},
            "index": {"factory": "Flat"},
            "neighbours": {"saved": saved, "exclude": ["document"]},
            "samples": {
                "seq_length": seq_length,
                "train_samples": samples,
                "global_batch_size": 2,
                "eval_interval": 2,
                "eval_iterations": 1,
            },
            "counts": {name: json.loads((folder / name).read_text())["counts"] for name in manifests},
            "manifests": {name: sha256(folder / name) for name in manifests},
        },
    )
    return folder / "config.json"
