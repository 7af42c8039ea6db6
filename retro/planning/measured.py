"""What a finished run used: sizes of its files, and the memory that Snakemake's benchmarks saw."""

import json
from pathlib import Path

from retro.errors import UserError
from retro.planning.estimates import Plan

FILES = {
    "tokenizer": "tokenizer/*",
    "tokens": "tokens/*/*",
    "chunks": "chunks/*/chunks.npy",
    "embeddings": "embeddings/*/embeddings.npy",
    "database": "database/*.npy",
    "index": "index/index.faiss",
    "neighbours": "neighbours/*/*.npy",
    "models": "runs/*/model.safetensors",
    "checkpoints": "runs/*/checkpoints/*/step-*.safetensors",
}
LEAST = 2.0  # CPU seconds: of shorter jobs Snakemake's benchmark may have seen the start only
JOBS = {"embed": "embed/*.jsonl", "neighbours": "neighbours/*.jsonl"}  # below benchmarks/


def largest(paths: list[Path]) -> float:
    """The highest resident memory, bytes, that these benchmarks saw; 0 where none worked long enough to be seen."""
    found = 0.0
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            facts = json.loads(line)
            numbers = all(isinstance(facts[key], int | float) for key in ("cpu_time", "max_rss"))  # else NA
            if numbers and facts["cpu_time"] >= LEAST:
                found = max(found, facts["max_rss"] * 2**20)
    return found


def compare(plan: Plan, folder: Path) -> list[dict]:
    """Rows of what, estimated, found (bytes) and ratio, for everything that is there."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no finished run to check against. Run snakemake first.")
    pairs = []
    for name, pattern in FILES.items():
        paths = [path for path in folder.glob(pattern) if path.name != "manifest.json"]
        pairs.append((f"disk: {name}", plan.disk[name], float(sum(path.stat().st_size for path in paths))))
    pairs = [pair for pair in pairs if pair[2]]
    pairs.append(("disk: sum of these", sum(pair[1] for pair in pairs), sum(pair[2] for pair in pairs)))
    marks = folder / "benchmarks"
    for name, pattern in JOBS.items():
        pairs.append((f"memory: {name}", plan.memory[name], largest(list(marks.glob(pattern)))))
    for model in plan.models:
        pairs.append((f"memory: train {model.name}", model.memory, largest([*marks.glob(f"train/{model.name}.jsonl")])))
    return [
        {"what": what, "estimated": estimated, "found": found, "ratio": estimated / found}
        for what, estimated, found in pairs
        if found
    ]
