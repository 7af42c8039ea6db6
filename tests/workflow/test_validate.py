"""`snakemake validate`: all stages at once, a table, exit status 1 and the first difference; nothing made again."""

import json
import re

import numpy as np

from retro.base.artifacts import sha256, write_json

ARTIFACTS = ["tokens/tiny", "chunks/tiny", "database", "embeddings/tiny", "index", "neighbours/train"]


def stored(project) -> dict[str, str]:
    """Digests of everything below the results folder but validation's own files."""
    root = project.results("")
    files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    own = {"validate", "logs", "started.jsonl"}
    return {str(name): sha256(path) for name, path in files.items() if name.parts[0] not in own}


def test_validation_finds_all_equal_and_then_what_was_stored_wrongly(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    before = stored(project)
    done = project.snakemake("validate")
    assert done.returncode == 0, done.stdout[-4000:]
    for name in ARTIFACTS:
        assert re.search(rf"^results/tiny/{name} +equal +.* s$", done.stdout, re.MULTILINE), (name, done.stdout)
    assert "bit by bit" in done.stdout
    assert stored(project) == before

    path = project.results("database/train.npy")
    rows = np.load(path)
    rows[4] += 1
    np.save(path, rows)
    manifest = project.results("database/manifest.json")
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    facts["files"]["train.npy"]["sha256"] = sha256(path)
    write_json(manifest, facts)
    project.edit("retro/database/chunk.py", "BLOCK = 1 << 16", "BLOCK = 1 << 15")  # for `snakemake` all is stale
    before = stored(project)
    done = project.snakemake("validate")
    assert done.returncode == 1
    assert f"train.npy, row 4: stored {rows[4]}, recomputed {rows[4] - 1}" in done.stdout, done.stdout[-4000:]
    assert "artifacts are not what is recomputed" in done.stdout and "Traceback" not in done.stdout
    assert stored(project) == before
