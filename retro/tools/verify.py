"""Check a dataset: every file against its manifest, every manifest against what was recorded.

    python -m retro.tools.verify results/open-book

Prints a line for each artifact; exit status 1 if one does not hold. Changes nothing.
"""

import argparse
import os
from pathlib import Path

from retro.base import provenance, stage
from retro.base.artifacts import Manifest, read_json, read_manifest, sha256
from retro.base.stage import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results/<dataset>")
    parser.add_argument("--quick", action="store_true", help="sizes and manifests only, not every file's sha256")
    options = parser.parse_args()
    folder: Path = options.folder
    bad: list[str] = []
    notes: set[str] = set()
    facts = read_json(folder / "config.json")
    if not isinstance(facts, dict) or facts.get("kind") != "recorded config":
        raise UserError(f"{folder}/config.json: not a recorded config. Give results/<dataset>.")
    recorded = facts["manifests"]
    found = {*folder.rglob("manifest.json"), *folder.glob("runs/*/model.json")}
    paths = sorted(found | {folder / name for name in recorded})
    for path in paths:
        name = os.path.relpath(path, folder)
        problems = _problems(path, recorded.get(name), options.quick, notes)
        bad += problems
        for line in problems or ["ok"]:
            print(f"{name:48s} {line}")
    for note in sorted(notes):
        print(f"note: {note}")
    if bad:
        raise UserError(f"{folder}: {len(bad)} artifact(s) do not hold. Run snakemake to make them again.")
    print(f"{folder}: {len(paths)} artifacts hold.")


def _problems(path: Path, wanted: str | None, quick: bool, notes: set[str]) -> list[str]:
    """What is wrong with one artifact, a line each; versions and code that differ become notes."""
    try:
        manifest = read_manifest(path)
        for name in manifest.facts["files"]:
            manifest.file(name)
        if not quick:
            manifest.check()
    except UserError as error:
        return [str(error)]
    _compare_with_here(manifest, notes)
    problems = []
    if wanted is not None and sha256(path) != wanted:
        problems.append(f"{path}: is not the manifest that config.json recorded.")
    for name, digest in manifest.facts["inputs"].items():
        source = manifest.folder / name
        if not source.exists():
            problems.append(f"{path}: was made from {source}, which is missing.")
        elif source.suffix == ".json" and sha256(source) != digest:
            problems.append(f"{path}: was made from another {source}; it is stale.")
    return problems


def _compare_with_here(manifest: Manifest, notes: set[str]) -> None:
    facts = manifest.facts
    if provenance.source_path(facts["stage"]) and provenance.digest(facts["stage"]) != facts["fingerprint"]:
        notes.add(f"{facts['kind']}: made by other code of {facts['stage']} than is here now")
    for package, version in facts["versions"].items():
        here = provenance.version(package)
        if here is not None and here.split(".")[0] != version.split(".")[0]:
            notes.add(f"{facts['kind']}: made with {package} {version}, here is {here}")


if __name__ == "__main__":
    stage.run(main)
