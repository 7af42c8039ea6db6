"""A config with something of everything, all keys of the schema, and another valid value for each."""

import copy
import shutil
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from retro.base.stage import settings_in
from retro.config.layers import merged
from retro.config.schema import Config, parse
from tests.workflow.conftest import ROOT

TARGETS = {"all", "experiments", "qa"}
# The tiny config with something of everything: an open book, other retrievals, duplicates, questions, a third run.
BASE = merged(
    yaml.safe_load((ROOT / "config/tiny.yaml").read_text(encoding="utf-8")),
    {
        "dataset": {
            "sources": {"book": {"path": "data/book.jsonl", "train": False}},
            "duplicates": {"action": "exclude"},
        },
        "retrievals": {"words": {"retriever": "bm25"}, "fast": {"index": {"factory": "IVF8,Flat"}}},
        "runs": {"alone": {"architecture": "gpt"}},
        "qa": {"questions": "data/questions.jsonl", "instructions": ["data/questions.jsonl"]},
    },
)


def prepare(folder) -> None:
    """Files that configs here name; only their names count."""
    shutil.copy(folder / "data/tiny.jsonl", folder / "data/book.jsonl")
    for name in ["more.jsonl", "questions.jsonl", "others.jsonl", "given.idx", "given.bin", "vocab.json", "merges.txt"]:
        (folder / "data" / name).write_text("{}\n", encoding="utf-8")


def keys(model=Config, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """Every key of the schema, `*` for a name that the config chooses, and its field."""
    for attribute, field in model.model_fields.items():
        path, inside = (*prefix, field.alias or attribute), settings_in(field.annotation)
        if inside is None:
            yield ".".join(path), field
        else:
            yield from keys(inside, (*path, "*") if "dict" in str(field.annotation) else path)


NAMES = {"dataset.sources": "tiny", "retrievals": "fast", "runs": "retro"}  # which of the names is changed
FOREIGN = {"tokenizer": {"type": "tokenizer.json", "path": "data/vocab.json"}}
VALUES: dict[str, Any] = {  # where another value cannot be made up from the type; a mapping lies on the whole config
    "preset": "config/models/tiny.yaml",
    "results": "elsewhere",
    "dataset.name": "other",
    "dataset.sources.*.type": {"dataset": {"sources": {"book": {"type": "megatron", "path": "data/given"}}, **FOREIGN}},
    "dataset.sources.*.path": "data/more.jsonl",
    **{f"dataset.sources.*.fields.{name}": f"{name}2" for name in ["text", "id", "group", "title", "date"]},
    "dataset.sources.*.keep": {"source": ["x"]},
    "dataset.sources.*.train": {"dataset": {"sources": {"book": {"train": True}}}},
    "dataset.sources.*.cut": 4000,
    "dataset.sources.*.weight": 2.0,
    "dataset.tokenizer.type": {"dataset": FOREIGN},
    "dataset.tokenizer.path": {"dataset": FOREIGN},
    "dataset.tokenizer.merges": {
        "dataset": {"tokenizer": {"type": "gpt2", "path": "data/vocab.json", "merges": "data/merges.txt"}}
    },
    "dataset.tokenizer.lossy": "allow",
    "dataset.duplicates.action": "drop",
    "dataset.duplicates.drop_from": ["train"],
    "dataset.chunk_length": 64,
    "dataset.encoder.path": {"dataset": {"encoder": {"type": "transformers", "path": "data"}}},
    "dataset.encoder.query_path": {
        "dataset": {"encoder": {"type": "transformers", "path": "data", "query_path": "data"}}
    },
    "dataset.encoder.passage_template": {"dataset": {"encoder": {"type": "minilm", "passage_template": "a {text}"}}},
    "dataset.encoder.query_template": {"dataset": {"encoder": {"type": "minilm", "query_template": "a {text}"}}},
    "dataset.encoder.pooling": {"dataset": {"encoder": {"type": "transformers", "path": "data", "pooling": "cls"}}},
    "dataset.encoder.dimensions": {"dataset": {"encoder": {"type": "minilm", "dimensions": 8}}},
    "dataset.index.factory": "Flat",
    "dataset.index.candidates": 50,
    "dataset.neighbours.exclude": ["document", "text"],
    "dataset.neighbours.filter.run": 13,
    "dataset.neighbours.filter.jaccard": 0.8,
    **{
        f"dataset.neighbours.filter.{name}": {"dataset": {"neighbours": {"filter": {"run": 13, name: value}}}}
        for name, value in {"against": ["chunk"], "chunks": 3, "splits": ["test"]}.items()
    },
    "dataset.samples.seq_length": 64,
    "dataset.samples.epochs": {"dataset": {"samples": {"epochs": 2.0, "train_samples": None}}},
    "retrievals.*.retriever": "random",
    "retrievals.*.encoder": {"retrievals": {"fast": {"encoder": {"width": 128}}}},
    "retrievals.*.index": {"retrievals": {"fast": {"index": {"factory": "IVF4,Flat"}}}},
    "retrievals.*.neighbours": {"retrievals": {"fast": {"neighbours": {"saved": 10}}}},
    "model.layers": 4,
    "model.width": 64,
    "model.heads": 4,
    "model.kv_heads": 1,
    "model.head_dim": 8,
    "model.ffn": 64,
    "model.rope_scaling.type": {"model": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
    **{
        f"model.rope_scaling.{key}": {"model": {"rope_scaling": {"type": "yarn", "factor": 2.0, key: value}}}
        for key, value in {
            "factor": 4.0,
            "length": 64,
            "low": 0.5,
            "high": 2.0,
            "whole_pairs": False,
            "amplitude": 1.1,
        }.items()
    },
    "model.norm_position": "after",
    "model.parallel_residual": True,
    "model.qk_norm": "head",
    "model.qkv_bias": True,
    "model.init_std": 0.02,
    "model.cca_layers": [2],
    "model.cca_heads": 1,
    "model.cca_kv_heads": {"model": {"cca": "standard", "cca_kv_heads": 1}},
    "model.copy_context": {"model": {"cca": "copy-ready", "copy_context": 4}},
    "model.encoder_positions": "none",
    "model.encoder_width": 32,
    "model.encoder_heads": 1,
    "model.encoder_ffn": 32,
    "model.encoder_cross_attention": [],
    "train.min_lr": 1.0e-3,
    "train.curriculum.fixed_until": {"train": {"curriculum": {"fixed_until": 0.1}}},
    "train.curriculum.anywhere_by": {"train": {"curriculum": {"anywhere_by": 0.5}}},
    "train.curriculum.always_until": {"train": {"curriculum": {"always_until": 0.5}}},
    "train.curriculum.gone_by": {"train": {"curriculum": {"gone_by": 0.8}}},
    "train.micro_batch_size": 2,
    "train.trackers": [],
    "train.exit_minutes": 60,
    "runs.*.architecture": {
        "runs": {"retro": {"architecture": "gpt", "twin": None}, "alone": {"architecture": "retro", "twin": "gpt"}}
    },
    "runs.*.twin": "alone",
    "runs.*.model": {"runs": {"retro": {"model": {"layers": 4}}}},
    "runs.*.train": {"runs": {"retro": {"train": {"lr": 0.001}}}},
    "runs.*.from": "gpt",
    "runs.*.freeze": {"runs": {"retro": {"from": "gpt", "freeze": "base"}}},
    "seeds": [2],
    "evaluate.splits": ["valid"],
    "evaluate.stride": 32,
    "evaluate.neighbours_used": 1,
    "evaluate.retrieved_chunks": 1,
    "evaluate.in_context": 0.75,
    "experiments.names": ["cost"],
    "experiments.baselines": ["in-context"],
    "experiments.of": "retro",
    "experiments.k": [0, 1],
    "experiments.fractions": [0.5],
    "experiments.fraction_seeds": [1],
    "experiments.candidates": 900,
    "qa.questions": "data/others.jsonl",
    "qa.instructions": ["data/others.jsonl"],
    "qa.splits": ["valid"],
}


def other(field: FieldInfo, value: Any) -> Any:
    """Another value of a field's type."""
    if get_origin(field.annotation) is Literal:
        return next(each for each in get_args(field.annotation) if each != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.1
    if isinstance(value, str):
        return f"{value}2"
    raise KeyError("give it in VALUES")


def changed(key: str, field: FieldInfo) -> dict[str, Any]:
    """The base config with one key changed; what the schema does not take is refused by `parse`."""
    value = VALUES.get(key)
    if isinstance(value, dict) and key != "dataset.sources.*.keep":
        return merged(copy.deepcopy(BASE), value)
    section, _, rest = key.partition(".*")
    path = [*section.split("."), *([NAMES[section], *rest.strip(".").split(".")] if rest else [])]
    if value is None:
        found: Any = parse(BASE).model_dump(mode="json", by_alias=True)
        for name in path:
            found = found[name]
        value = other(field, found)
    for name in reversed(path):
        value = {name: value}
    return merged(BASE, value)
