"""Check a dataset: every file against its manifest, every manifest and every input against what was recorded.

    python -m retro.tools.verify results/open-book [--config config/config.yaml]

Prints a line for each artifact; exit status 1 if one does not hold. Changes nothing. What cannot be compared is named.
"""

import argparse
import os
from functools import cache
from pathlib import Path

from retro.base import command, provenance
from retro.base.artifacts import Manifest, read_json, read_manifest, sha256
from retro.base.names import CUTS, RECORDED, untuned
from retro.base.stage import UserError
from retro.config import schema
from retro.config.checks import TUNINGS
from retro.database.folders import identity_at
from retro.dataset.named import dataset_folder
from retro.dataset.packed import Pack, left_out, opened
from retro.report.read import read_csv


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=dataset_folder, help="a dataset, by name or folder")
    parser.add_argument("--config", help="the config file, which tells what retrievals are no longer asked for")
    parser.add_argument("--quick", action="store_true", help="sizes and manifests only, not every file's sha256")
    options = parser.parse_args()
    folder: Path = options.folder
    _digest.cache_clear()  # files may have changed since
    bad: list[str] = []
    left: dict[str, None] = {}  # folders that nothing makes again
    unsure: dict[str, None] = {}  # folders of retrievals, of which only the config tells whether it asks for them
    notes: set[str] = set()
    facts = read_json(folder / "config.json")
    if not isinstance(facts, dict) or facts.get("kind") != "recorded config":
        raise UserError(f"{folder}/config.json: not a recorded config. Give results/<dataset>.")
    recorded, asked, pack = recordings(folder), measured(folder), opened(folder)
    retrievals = None if options.config is None else named(options.config, folder)
    found = {*folder.rglob("manifest.json"), *folder.glob("runs/*/model.json")}
    paths = sorted(found | {folder / name for name, _ in recorded})
    for path in paths:
        name = os.path.relpath(path, folder)
        wanted = {config: digest for (each, config), digest in recorded.items() if each == name}
        problems = _problems(path, wanted, options.quick, notes, pack)
        at = Path(name).as_posix()
        old = left_over(at, facts.get("source_order", []), asked, retrievals) if problems else None
        if old is not None:
            problems = [f"{line} The config no longer asks for it: delete {folder / old}." for line in problems]
            left[str(folder / old)] = None
        else:
            bad += problems
            if problems and retrievals is None and at.startswith("retrievals/"):
                unsure["/".join([str(folder), *at.split("/")[:2]])] = None
        for line in problems or ["ok"]:
            print(f"{name:48s} {line}")
    for name in (RECORDED.format(cut=cut) for cut in CUTS if pack):
        if pack and (not (folder / name).is_file() or sha256(folder / name) != pack.files[name].sha256):
            bad.append(f"{folder / name}: is not as it was packed.")
            print(f"{name:48s} {bad[-1]}")
    for tuning in TUNINGS:
        if any((folder / tuning).glob("*.jsonl")):
            notes.add(f"{tuning}: answers have no manifest, so what they were made from is not compared")
    for note in sorted(notes):
        print(f"note: {note}")
    if bad or left:
        again = " It was opened from a pack: what that held, open again." if pack and bad else ""
        raise UserError(f"{folder}: {' '.join(ways_out(len(bad), list(left), list(unsure)))}{again}")
    print(f"{folder}: {len(paths)} artifacts hold.")


def recordings(folder: Path) -> dict[tuple[str, str], str]:
    """The sha256 of the manifests that the recorded config names, and of those that its cuts for trainings do."""
    found: dict[tuple[str, str], str] = {}
    for config in (RECORDED.format(cut=cut) for cut in CUTS):
        if (folder / config).exists():
            found |= {(name, config): digest for name, digest in read_json(folder / config)["manifests"].items()}
    return found


def named(config: str, folder: Path) -> set[str]:
    """The retrievals that a config names. Refuses the config of another dataset."""
    settings = schema.load(config)
    place = Path(settings.results) / settings.dataset.name
    if place.resolve() != folder.resolve():
        raise UserError(f"--config {config}: is the config of {place}, not of {folder}. Give that of {folder}.")
    return set(settings.retrievals)


def ways_out(bad: int, left: list[str], unsure: list[str]) -> list[str]:
    """What to do about artifacts that do not hold, about folders that nothing makes again, and about those of
    retrievals, which the config may or may not name.
    """
    found = []
    if bad:
        found.append(
            f"{bad} artifact(s) do not hold. Run snakemake to make them again, with the target that made them (all, "
            f"experiments, qa)."
        )
    if unsure:
        found.append(
            f"If the config no longer names these retrievals, delete them (--config tells): {' '.join(unsure)}"
        )
    if left:
        found.append(f"Snakemake makes no longer what the config no longer asks for. Delete: {' '.join(left)}")
    return found


def measured(folder: Path) -> set[tuple[str, str, str]]:
    """Run, condition and split of all that the config asked for when it ran last, by the tables made then."""
    rows = [row for path in folder.glob("summary.csv") for row in read_csv(path)]
    rows += [row for path in folder.glob("experiments/*/summary.csv") for row in read_csv(path)]
    return {(row["run"], row["retrieval"], row["split"]) for row in rows}


def left_over(
    name: str, sources: list[str], asked: set[tuple[str, str, str]], retrievals: set[str] | None
) -> str | None:
    """The folder of an artifact that the config no longer asks for; None if it does, or that cannot be told.

    `retrievals`: those that the config names, None if it was not given.
    """
    first, *rest = name.split("/")
    if first in ("tokens", "chunks", "embeddings") and rest[0] not in sources:
        return f"{first}/{rest[0]}"
    if first == "retrievals" and retrievals is not None and rest[0] not in retrievals:
        return f"{first}/{rest[0]}"
    if first == "overlap" and asked and rest[0] not in {split for _, _, split in asked}:
        return f"{first}/{rest[0]}"
    if first != "runs" or not asked:
        return None
    run = rest[0]
    for tuning in TUNINGS:
        run = untuned(run, tuning)
    if run not in {name for name, _, _ in asked}:
        return f"runs/{rest[0]}"
    if rest[1] == "evaluation" and (run, rest[3], rest[2]) not in asked:
        return "/".join([first, *rest[:4]])
    return None


@cache
def _digest(path: Path) -> str:
    """sha256 of an input, which several artifacts may have."""
    return sha256(path)


def _problems(path: Path, wanted: dict[str, str], quick: bool, notes: set[str], pack: Pack | None) -> list[str]:
    """What is wrong with one artifact, a line each; what differs here or cannot be compared becomes a note.

    `wanted`: the sha256 that it was recorded with, by the recorded config that names it. `pack`: the list of a dataset
    that was opened from one.
    """
    try:
        manifest = read_manifest(path)
        if pack and wanted and left_out(manifest, pack.without):
            notes.add(f"{manifest.facts['kind']}: were not packed, so that only their manifests are here")
        else:
            for name in manifest.facts["files"]:
                manifest.file(name)
            if not quick:
                manifest.check()
    except UserError as error:
        return [str(error)]
    _compare_with_here(manifest, notes)
    other = [config for config, digest in wanted.items() if sha256(path) != digest]
    problems = [f"{path}: is not the manifest that {config} recorded." for config in other]
    for name, digest in manifest.facts["inputs"].items():
        source = Path(os.path.normpath(manifest.folder / name))  # as it was recorded, links not followed
        source = source if source.exists() else manifest.folder / name
        if pack and wanted and source.name != "manifest.json":
            notes.add("what lay outside the pack, such as corpora, is not compared with what was read")
        elif not source.exists():
            problems.append(f"{path}: was made from {source}, which is missing.")
        elif quick and source.suffix != ".json":
            notes.add("--quick: files that are no manifests, such as corpora, are not compared with what was read")
        else:
            try:
                same = _digest(source) == digest
            except OSError as error:
                notes.add(f"{source}: could not be compared with what was read ({error.strerror})")
                continue
            if not same:
                problems.append(f"{path}: was made from another {source}; it is stale.")
    if not quick:
        problems += _encoder(manifest, notes)
    return problems


def _encoder(manifest: Manifest, notes: set[str]) -> list[str]:
    """What is wrong with the folder of the encoder that made embeddings: it is known by the sha256 of what it reads."""
    encoder = manifest.settings.get("encoder") if manifest.facts["kind"] == "embeddings" else None
    if not encoder or not encoder.get("path"):
        return []
    try:
        if encoder.get("type") == "given":
            key, here = "vectors", sha256(Path(encoder["path"], f"{manifest.folder.name}.npy"))
        else:
            key, here = "identity", identity_at(encoder["path"], encoder.get("pooling"))
    except (UserError, OSError) as error:
        notes.add(f"the encoder could not be compared: {error}")
        return []
    if encoder.get(key) != here:
        return [f"{manifest.path}: was made by another encoder than {encoder['path']} is now; it is stale."]
    return []


def _compare_with_here(manifest: Manifest, notes: set[str]) -> None:
    facts = manifest.facts
    if provenance.source_path(facts["stage"]) and provenance.digest(facts["stage"]) != facts["fingerprint"]:
        notes.add(f"{facts['kind']}: made by other code of {facts['stage']} than is here now")
    for package, version in facts["versions"].items():
        here = provenance.version(package)
        if here is not None and here.split(".")[0] != version.split(".")[0]:
            notes.add(f"{facts['kind']}: made with {package} {version}, here is {here}")


if __name__ == "__main__":
    command.run(main)
