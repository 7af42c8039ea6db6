"""The report: one self-contained page that tells what was made, how, and what retrieval bought.

Sections that stages of other rooms write are HTML fragments, D/parts/<name>.html. The page shows every one it is
given, in the order of `PARTS`. A fragment is trusted HTML: who writes one escapes what comes from a corpus
(`markupsafe.Markup.format`, or a template of `retro.report.style`).
"""

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from retro.base import stage
from retro.base.artifacts import Manifest, read_json, read_manifest, read_text, sha256, write_text
from retro.base.log import duration
from retro.base.names import ALL
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.evaluation.bits_per_byte import group_documents
from retro.evaluation.conditions import LABELS, ON, usual
from retro.report import started, story
from retro.report.gains import by_split
from retro.report.marks import marked
from retro.report.read import Row, Run, Stage, read_benchmarks, read_csv, read_runs, where
from retro.report.style import figure_html, interval, percent, render


@dataclass(frozen=True)
class Part:
    """A section: its title, the built-in section it stands before, and the command that makes it.

    `html` is empty where it was not made: the page then says how to make it. `wants`: a section that the config then
    needs, and the file that has one, made for the default run.
    """

    name: str
    title: str
    before: str
    target: str
    wants: tuple[str, str] = ("", "")
    html: Markup | str = ""


PARTS = {
    part.name: part
    for part in (
        Part("indexes", "Indexes", "training", "snakemake indexes", ("retrievals", "config/indexes.yaml")),
        Part("copying", "Beyond copying", "generation", "snakemake copying"),
        Part("leakage", "Leakage", "generation", "snakemake leakage"),
        Part("experiments", "Experiments", "generation", "snakemake experiments"),
        Part("qa", "Question answering", "cost", "snakemake qa", ("qa", "config/qa.yaml")),
        Part("instruct", "Instructions", "cost", "snakemake qa", ("qa", "config/instruct.yaml")),
    )
}


def read_parts(paths: list[Path]) -> list[Part]:
    """All parts in order, those of `paths` with their HTML. Raises `UserError` for a name that is no part's."""
    given = {path.stem: Markup(read_text(path)) for path in paths}
    unknown = sorted(given.keys() - PARTS.keys())
    if unknown:
        raise UserError(f"parts {', '.join(unknown)}: the report has only {', '.join(PARTS)}. Leave the others out.")
    return [replace(part, html=given.get(name, "")) for name, part in PARTS.items()]


STAGE = "retro.report.report_page"


def corpus(dataset: Dataset) -> list[dict[str, Any]]:
    """A row for each source: what it is for, and how much of it there is."""
    counts, rows = dataset.facts["counts"], []
    for name in dataset.sources:
        tokens, chunks = counts[f"tokens/{name}/manifest.json"], counts[f"chunks/{name}/manifest.json"]
        source = dataset.facts["sources"][name]
        roles = [role for role, on in (("trained on", source["train"]), ("in the database", source["database"])) if on]
        rows.append(
            {
                "name": name,
                "role": ", ".join(roles) if source["train"] else "open book: in the database only",
                "book": not source["train"],
                "chunks": chunks["chunks"],
                "padding": chunks["padding_share"],
                "by_split": chunks["by_split"],
                **{key: tokens[key] for key in ("documents", "tokens", "bytes", "empty", "filtered", "skipped")},
            }
        )
    return rows


def held_out(dataset: Dataset, split: str) -> tuple[int, int]:
    """Documents and groups of a split."""
    rows = dataset.rows(split)
    records = dataset.store.chunks(rows)
    documents = group_documents(rows, dataset.store.source(rows), records)
    return len(documents), len(set(records["group"].tolist()))


def reach(dataset: Dataset, split: str, runs: list[Run], comparison: list[Row]) -> story.Reach:
    """How much was read and evaluated by the run that the headline is about."""
    on = story.main_rows(comparison)[ON]
    counts = next(run.counts for run in runs if run.base == on["run"])
    tokens = [facts for name, facts in dataset.facts["counts"].items() if name.startswith("tokens/")]
    size, number = (sum(each[key] for each in tokens) for key in ("bytes", "tokens"))
    read = counts["tokens"] / max(1.0, counts["epochs"])
    return story.Reach(split, int(on["units"]), on["unit"], read, size / number, counts["tokens"] / counts["epochs"])


def retrieval(dataset: Dataset, split: str) -> dict[str, Any]:
    """What was searched, how, and how well."""
    manifest = dataset.manifest(f"neighbours/{split}/manifest.json", "neighbours")
    name = "index/manifest.json"
    index = dataset.manifest(name).settings if name in dataset.facts["manifests"] else {}
    return {
        "database": len(dataset.database),
        "encoder": dataset.facts["encoder"],
        "why": index.get("why"),
        "factory": index.get("factory", dataset.facts["index"]["factory"]),
        "neighbours": dataset.facts["neighbours"],
        "excluded": story.excluded(dataset.facts["neighbours"]["exclude"]),
        "holes": manifest.counts["holes"],
        "recall": dict(sorted(manifest.counts.get("recall", {}).items(), key=lambda item: int(item[0]))),
        "recall_of": manifest.counts.get("recall_of"),
        "scores": manifest.counts.get("first_score_quantiles", {}),
        "shares": by_split(dataset) if len(dataset.sources) > 1 else {},
    }


def training(runs: list[Run]) -> list[dict[str, Any]]:
    """A row for each run, in their order."""
    rows = []
    for run in runs:
        facts, counts = run.settings.facts(), run.counts
        losses = counts.get("losses", {})
        rows.append(
            {
                **{key: facts[key] for key in ("name", "architecture")},
                "parameters": counts["parameters"],
                "tokens": counts["tokens"],
                "steps": counts["steps"],
                **{key: counts[key] for key in ("documents", "documents_read", "epochs")},
                "flops_per_token": counts["flops_per_token"],
                "validation": {key: losses[key] for key in ("valid/none", "valid/on", "valid/off") if key in losses},
            }
        )
    return rows


RETRIEVING = (  # settings of what a GPT does not have begin so
    "cca", "encoder_", "copy_", "shared_embeddings", "chunk_alignment", "mask_padding", "flavour", "neighbour",
    "retrieved_chunks", "head_loss", "curriculum",
)  # fmt: skip


def differing(runs: list[Run], section: str) -> dict[str, str]:
    """Settings of all runs that have them, seeds together: the value they share, or each one's own.

    What a GPT does not have is not said of it, and what is not set of nobody.
    """
    values: dict[str, dict[str, str]] = {}
    having: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.settings.facts()[section].items():
            if run.architecture == "gpt" and key.startswith(RETRIEVING):
                continue
            having.setdefault(key, set()).add(run.base)
            if value is not None:
                values.setdefault(key, {})[run.base] = told(value)
    found = {}
    for key, each in values.items():
        same = len(set(each.values())) == 1 and each.keys() == having[key]
        own = [f"{name}: {value}" for name, value in each.items()]
        found[key] = next(iter(each.values())) if same else "; ".join(own)
    return found


def told(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {told(each)}" for key, each in value.items() if each is not None)
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def provenance(
    dataset: Dataset, models: list[Manifest], stages: list[Stage], begun: list[dict[str, str]]
) -> dict[str, Any]:
    """What made this: when, from what code, on what machine, versions, seeds, and every artifact's sha256."""
    return {
        "begun": begun,
        "seconds": duration(sum(each.seconds for each in stages)) if stages else "",
        "jobs": sum(each.jobs for each in stages),
        "config": sha256(dataset.path),
        "seed": dataset.facts["seed"],
        "seeds": sorted({manifest.settings["seed"] for manifest in models}),
        "versions": models[0].facts["versions"],
        "code": models[0].facts["fingerprint"],
        "manifests": dataset.facts["manifests"],
        "models": {
            manifest.settings["name"]: manifest.facts["files"]["model.safetensors"]["sha256"] for manifest in models
        },
    }


def compared(comparison: list[Row]) -> list[Row]:
    """The rows over all seeds; those over all sources left out where there is one source only."""
    rows = where(comparison, seed=ALL)
    several = len({row["source"] for row in rows}) > 2
    return [row for row in rows if several or row["source"] != ALL]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--models", required=True, nargs="+", type=Path, help="model.json of every run")
    parser.add_argument("--summary", required=True, type=Path, help="summary.csv")
    parser.add_argument("--comparison", required=True, type=Path, help="comparison.csv")
    parser.add_argument("--sections", required=True, type=Path, help="sections.csv")
    parser.add_argument("--copying", nargs="?", type=Path, help="copying.csv")
    parser.add_argument("--figures", nargs="*", default=[], type=Path, help="figures, .svg")
    parser.add_argument("--samples", nargs="*", default=[], type=Path, help="sample.json of RETRO runs")
    parser.add_argument("--parts", nargs="*", default=[], type=Path, help="sections that other stages wrote, .html")
    parser.add_argument("--benchmarks", nargs="*", default=[], type=Path, help="benchmark .jsonl files, or folders")
    parser.add_argument("--started", type=Path, help="started.jsonl, what Snakemake was started for and where")
    parser.add_argument("--explorer", type=Path, help="neighbours.html, to link to")
    parser.add_argument("--output", required=True, type=Path, help="report.html to write")
    options = parser.parse_args()
    dataset = Dataset.open(options.config)
    models = [read_manifest(path, "model") for path in options.models]
    runs = read_runs(options.models)
    summary, comparison = read_csv(options.summary), read_csv(options.comparison)
    split = summary[0]["split"] if summary else "test"
    copier = story.copier(where(read_csv(options.copying), split=split) if options.copying else [])
    first, second = story.headline(comparison, *held_out(dataset, split), copier)
    advice = story.advice(reach(dataset, split, runs, comparison)) if story.main_rows(comparison) else None
    if advice:
        first, second = advice[0], f"{advice[1]} What was measured stands in the tables below, and proves nothing."
    rows = training(runs)
    begun = started.read(options.started) if options.started else []
    explorer = options.explorer and Path(os.path.relpath(options.explorer, options.output.parent)).as_posix()
    page = render(
        "report.html.j2",
        name=dataset.facts["name"],
        facts=dataset.facts,
        split=split,
        headline=first,
        controls=second,
        seeds="" if advice else story.seeds_sentence(comparison),
        main={} if advice else story.main_rows(comparison),
        copier=copier,
        labels=LABELS,
        modes=usual("retro", controls=True),
        book=story.book(dataset.facts["sources"]),
        warnings=[*story.warnings(dataset.facts), *story.doubts(runs)],
        flavour=story.flavour(runs, [] if advice else comparison),
        corpus=corpus(dataset),
        retrieval=retrieval(dataset, split),
        training=rows,
        why=story.why(runs, dataset.facts["samples"]),
        train_settings=differing(runs, "train"),
        model_settings=differing(runs, "model"),
        summary=summary,
        comparison=compared(comparison),
        drawn=story.drawn(compared(comparison)),
        sections=[row for row in read_csv(options.sections) if row["seed"] == ALL and row["units"] is not None],
        figures={path.stem: path for path in options.figures},
        figure_html=figure_html,
        marked=marked,
        samples=[sample for path in options.samples for sample in read_json(path)["samples"]],
        parts=read_parts(options.parts),
        configs=started.configs(begun),
        explorer=explorer,
        provenance=provenance(dataset, models, read_benchmarks(options.benchmarks), begun),
        percent=percent,
        interval=interval,
    )
    write_text(options.output, page)
    print(f"{len(page.encode()) / 1e6:.1f} MB → {options.output}\n{first}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
