"""A small preprocessed dataset, made by the real stages in this process; and models without training."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from retro.base.artifacts import write_manifest, write_text
from retro.config.schema import parse
from retro.dataset.dataset import Dataset
from retro.model.build import build_model
from retro.model.settings import ModelSettings
from retro.training.weights import weights, write_tensors
from tests.base.watched import watched
from tests.evaluation.words import corpus

M, LENGTH, SAVED = 16, 64, 4
MODEL = {"layers": 2, "width": 32, "heads": 2, "cca_layers": [1, 2], "encoder_layers": 1, "encoder_width": 16}
SPLITS = ("train", "valid", "test")


def stage(module: str, *arguments: object) -> None:
    """Run a stage's main with a command line; what runs must be what its digest covers."""
    before = sys.argv
    sys.argv = [module, *map(str, arguments)]
    try:
        main = importlib.import_module(module).main
        with watched(module):
            main()
    finally:
        sys.argv = before


def configure(folder: Path, given: dict[str, list[dict]] | None = None):
    """The config of a dataset of `corpus()`, or of other records by source, whose files are written to `folder`."""
    sources = {}
    for name, records in (given or corpus()).items():
        path = folder / f"{name}.jsonl"
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))
        sources[name] = {"path": str(path), "train": name not in ("atlas-old", "planted")}
    return parse(
        {
            "dataset": {
                "name": "words",
                "sources": sources,
                "split": {"by": "group", "valid": 0.15, "test": 0.5},
                "tokenizer": {"vocab_size": 400},
                "chunk_length": M,
                "encoder": {"type": "static", "width": 128},
                "neighbours": {"saved": SAVED},
                "samples": {"seq_length": LENGTH, "train_samples": 8},
            },
            "model": {"flavour": "copy-ready", **MODEL},
        }
    )


def build_dataset(folder: Path, given: dict[str, list[dict]] | None = None) -> Dataset:
    """Preprocess `corpus()`, or other records by source, into `folder`."""
    config = configure(folder / "corpus", given).dataset
    facts, sources = config.facts(), sorted(config.sources)

    def manifest(*parts: str) -> Path:
        return folder.joinpath(*parts, "manifest.json")

    def settings(*keys: str, **more: object) -> tuple[str, str]:
        return "--settings", json.dumps({**{key: facts[key] for key in keys}, **more})

    def each(kind: str) -> list[Path]:
        return [manifest(kind, name) for name in sources]

    tokenizer, output = ("--tokenizer", manifest("tokenizer")), "--output"
    trained = {name: source for name, source in facts["sources"].items() if source["train"]}
    shared = settings("tokenizer", "split", "seed", "on_error", sources=trained)
    stage("retro.corpus.train_tokenizer", *shared, output, manifest("tokenizer"))
    for name in sources:
        tokens, chunks = ("--tokens", manifest("tokens", name)), ("--chunks", manifest("chunks", name))
        mine = settings("split", "seed", "on_error", name=name, source=facts["sources"][name])
        stage("retro.corpus.tokenize", *mine, *tokenizer, output, tokens[1], "--threads", 1)
        length = settings("chunk_length")
        stage("retro.database.chunk", *length, *tokens, *tokenizer, output, chunks[1])
        made = ("--blocks", folder / "blocks" / name, output, manifest("embeddings", name), "--threads", 1)
        encoder = settings("encoder", "chunk_length")
        stage("retro.database.embed", *encoder, *tokenizer, *tokens, *chunks, *made)
    used = {name: {k: facts["sources"][name][k] for k in ("train", "database")} for name in sources}
    chunks, embeddings = ("--chunks", *each("chunks")), ("--embeddings", *each("embeddings"))
    database, index = ("--database", manifest("database")), ("--index", manifest("index"))
    stage("retro.database.assemble", *settings(sources=used), *chunks, output, database[1])
    stage("retro.retrieval.index", *settings("index", "seed"), *database, *embeddings, output, index[1])
    for split in SPLITS:
        search = (*database, *chunks, *embeddings, *index, output, manifest("neighbours", split))
        asked = settings("retriever", "neighbours", "index", "seed")
        stage("retro.retrieval.neighbours", *asked, "--split", split, *search)
    names = [manifest("tokenizer"), database[1], index[1], *each("tokens"), *each("chunks"), *each("embeddings")]
    names += [manifest("neighbours", split) for split in SPLITS]
    recorded = folder / "config.json"
    stage("retro.dataset.dataset", "--settings", json.dumps(facts), "--manifests", *names, output, recorded)
    return Dataset.open(recorded)


def make_model(dataset: Dataset, architecture: str, scale: float = 3.0) -> torch.nn.Module:
    """An untrained model, its weights enlarged: far from a near-uniform beginning, so that all inputs count."""
    made = build_model(
        ModelSettings(flavour="copy-ready", **MODEL),
        architecture=architecture,
        vocab_size=dataset.vocab_size,
        seq_length=LENGTH,
        chunk_length=M,
        retrieved_length=2 * M,
        seed=1,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
    return made.eval()


def write_run(dataset: Dataset, name: str, model: torch.nn.Module | None = None) -> Path:
    """model.json, model.safetensors and metrics.jsonl of a run `gpt-s1` or `retro-s1`; no model: an untrained one."""
    run = configure(dataset.folder / "runs" / "corpus").models()[name]
    folder = dataset.folder / "runs" / name
    model = model or make_model(dataset, run.architecture)
    write_tensors(folder / "model.safetensors", weights(model))
    recorded = {
        "seq_length": LENGTH,
        "chunk_length": M,
        "retrieved_length": 2 * M,
        "vocab_size": dataset.vocab_size,
    }
    modes = ["on", "off"] if run.retro else ["none"]
    lines = []
    for step in range(1, 9):
        speed = {"seconds": 2.0 * step, "tokens_per_s": 128.0, "mfu": 0.3, "lr": 1e-3, "grad_norm": 1.0}
        lines.append({"step": step, "samples": step, "tokens": 256 * step, "loss": 6 - 0.3 * step, **speed})
        if step % 4 == 0:
            valid = {"step": step, "split": "valid", "loss": 6 - 0.2 * step, "bits_per_byte": 2.5}
            lines += [{**valid, "retrieval": mode} for mode in modes]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "model.json"
    write_manifest(
        path,
        kind="model",
        stage="retro.training.train",
        files=[folder / "model.safetensors"],
        inputs=[dataset.path],
        settings={**run.facts(), "recorded": recorded},
        counts={
            "flops_per_token": 1e5,
            "documents": 40,
            "documents_read": 30,
            "epochs": 0.75,
            "losses": {f"valid/{mode}": 4.4 for mode in modes},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "samples": 8,
            "steps": 8,
            "tokens": 8 * LENGTH,
        },
        seed=run.seed,
        threads=1,
    )
    return path


def measure(dataset: Dataset, split: str = "test") -> dict[str, Path]:
    """Run the losses stage for both untrained runs in every mode: mode → manifest."""
    found = {}
    for name, modes in {"gpt-s1": ["none"], "retro-s1": ["on", "off", "random"]}.items():
        model = dataset.folder / "runs" / name / "model.json"
        for mode in modes:
            found[mode] = model.parent / "evaluation" / split / mode / "manifest.json"
            given = ("--config", dataset.path, "--model", model, "--settings", "{}", "--split", split)
            stage("retro.evaluation.losses", *given, "--mode", mode, "--output", found[mode])
    return found


def summarise(dataset: Dataset, losses: dict[str, Path], settings: dict | None = None) -> list[Path]:
    """Run the summarise stage: summary.csv, comparison.csv, sections.csv."""
    runs = {"gpt-s1": {"twin": None, "seed": 1}, "retro-s1": {"twin": "gpt-s1", "seed": 1}}
    files = [dataset.folder / f"{name}.csv" for name in ("summary", "comparison", "sections")]
    evaluate = json.dumps({"bootstrap": 200, **(settings or {})})
    given = ("--config", dataset.path, "--runs", json.dumps(runs), "--settings", evaluate)
    tables = [part for path in files for part in (f"--{path.stem}", path)]
    stage("retro.evaluation.summarise", *given, "--losses", *losses.values(), *tables)
    return files


def texts_of(dataset: Dataset, split: str = "test") -> list[str]:
    """The texts of a split's documents, in its order, decoded whole."""
    rows = dataset.rows(split)
    tokens, real = dataset.store.tokens(rows)
    records, source = dataset.store.chunks(rows), dataset.store.source(rows)
    keys = np.stack([source, records["document"]], axis=1)
    texts = []
    for key in dict.fromkeys(map(tuple, keys.tolist())):
        mine = (keys == key).all(1)
        texts.append(dataset.tokenizer.decode(tokens[mine][real[mine]]))
    return texts
