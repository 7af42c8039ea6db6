"""The model card of an exported folder: what the manifests and tables beside a run say of it, and nothing else.

What is not recorded is called so: no licence, language or figure is made up. A figure is shown only if it was measured
of these weights.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from retro.base.artifacts import Manifest, read_json, sha256
from retro.training.settings import ImportedModel, TrainedRun

TEMPLATE = Path(__file__).parent / "templates/card.md"


def card(manifest: Manifest, model: TrainedRun | ImportedModel, tokenizer: Manifest, kind: str | None) -> str:
    """README.md for the model of `manifest`, with the front matter of Hugging Face's hub.

    kind: the stock architecture that it became, or None.
    """
    counts, config = manifest.counts, recorded_config(manifest)
    texts = stores(config)
    tags = [model.architecture, *["retrieval-augmented"] * model.retro, *["custom_code"] * (kind is None)]
    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=tags)
    facts: dict[str, Any] = {
        "name": model.name,
        "retro": model.retro,
        "lengths": model.recorded.lengths,
        "model": model.model.model_dump(mode="json"),
        "parameters": f"{counts['parameters']:,}" if "parameters" in counts else "An unrecorded number of",
        "remote": kind is None,
        "sources": sources(texts, model.retro),
        "split": next((facts["settings"]["split"] for facts in texts.values()), None),
        "documents": documents(texts),
        "tokenizer": tokenizer.settings["tokenizer"]["type"],
        "training": training(model, counts) if isinstance(model, TrainedRun) else {},
        "settings": json.dumps({key: model.facts().get(key) for key in ("model", "train")}, indent=1),
        "tokens": f"{counts['tokens']:,}" if "tokens" in counts else "",
        "figures": figures(manifest, model.name),
        "twin": model.twin if isinstance(model, TrainedRun) else None,
        "stage": manifest.facts["stage"],
        "fingerprint": manifest.facts["fingerprint"],
        "weights": manifest.facts["files"]["model.safetensors"]["sha256"],
        "config": sha256(config) if config else "",
        "versions": ", ".join(f"{name} {version}" for name, version in manifest.facts["versions"].items()),
    }
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **facts)) + "\n"


def recorded_config(manifest: Manifest) -> Path | None:
    """The recorded config that the model was trained with, if it still lies there unchanged."""
    for name, digest in manifest.facts["inputs"].items():
        path = manifest.folder / name
        if path.match("config*.json") and path.exists() and sha256(path) == digest:
            return path
    return None


def stores(config: Path | None) -> dict[str, dict[str, Any]]:
    """The manifests of the token stores that a recorded config names, by source, where they lie there unchanged."""
    found: dict[str, dict[str, Any]] = {}
    for name, digest in read_json(config)["manifests"].items() if config else ():
        path = config.parent / name if config else Path()
        if name.startswith("tokens/") and path.exists() and sha256(path) == digest:
            found[path.parent.name] = read_json(path)
    return found


def sources(found: dict[str, dict[str, Any]], retro: bool) -> list[dict[str, Any]]:
    """A row for each source: its name, the name of its file, what was read of it and what for."""
    rows = []
    for name, facts in found.items():
        source, counts = facts["settings"]["source"], facts["counts"]
        uses = {"training": source["train"], "looked up": retro and source["database"]}
        size = {"documents": f"{counts['documents']:,}", "tokens": f"{counts['tokens']:,}"}
        use = ", ".join(use for use, is_so in uses.items() if is_so) or "nothing"
        rows.append({"name": name, "file": Path(source["path"]).name, **size, "use": use})
    return rows


def documents(found: dict[str, dict[str, Any]]) -> str:
    """How many documents each split has."""
    total: dict[str, int] = {}
    for facts in found.values():
        for split, each in facts["counts"]["by_split"].items():
            total[split] = total.get(split, 0) + each["documents"]
    return ", ".join(f"{count:,} in {split}" for split, count in total.items() if count)


def training(run: TrainedRun, counts: dict[str, Any]) -> dict[str, Any]:
    """What is asked of a training first."""
    train = run.train
    facts: dict[str, Any] = {
        "seed": run.seed,
        **{key: f"{counts[key]:,}" for key in ("samples", "tokens", "steps", "epochs") if key in counts},
        "batch": run.recorded.global_batch_size,
        "optimizer": f"{train.optimizer}, learning rate {train.lr:g} to {train.min_lr:g}, {train.schedule}",
        "precision": train.precision,
        "neighbours of a chunk": train.neighbours_used if run.retro else None,
        "began with": Path(run.start).parent.name if run.start else None,
        "frozen": run.freeze,
        "fine-tuned": "on answers" if run.qa else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def figures(manifest: Manifest, run: str) -> list[dict[str, str]]:
    """Rows of the dataset's summary.csv about all of a split, of losses that were measured of these weights."""
    dataset, found = manifest.folder / "../..", []
    compared = {(row["split"], row["retrieval"]): row for row in whole(dataset / "comparison.csv", run)}
    for row in whole(dataset / "summary.csv", run):
        losses = manifest.folder / "evaluation" / row["split"] / row["retrieval"] / "manifest.json"
        if not losses.exists() or sha256(manifest.path) not in read_json(losses)["inputs"].values():
            continue
        other = compared.get((row["split"], row["retrieval"]))
        rounded = {key: f"{float(row[key]):.3f}" for key in ("bits_per_byte", "perplexity")}
        found.append({**row, **rounded, "difference": difference(other) if other else ""})
    return found


def difference(row: dict[str, str]) -> str:
    """−8.8 (−10.1 … −7.2); of too few documents there is no interval."""
    told, low, high = (
        re.sub(r"[+-]0\.0$", "±0.0", f"{float(row[key] or 'nan'):+.1f}").replace("-", "−")
        for key in ("difference_percent", "low", "high")
    )
    return f"{told} ({low} … {high})" if row["low"] else f"{told} (too few documents for an interval)"


def whole(path: Path, run: str) -> list[dict[str, str]]:
    """A table's rows of a run over all sources; of a table that is not there none."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["run"] == run and row["source"] == "all"]
