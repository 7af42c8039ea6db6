"""Pack what another machine needs to make a dataset again, and check there that it did.

    python -m retro.archive pack --config config/config.yaml --output archive/open-book
    python -m retro.archive check archive/open-book/expected.json results/open-book

The folder holds the pipeline (code, rules, config, locks), the corpora it read, the report, the recorded config, every
manifest, and expected.json: the sha256 of every artifact, with the versions and thread counts that made them. README.md
there says the commands. Neighbours come out the same on any machine; weights where versions, thread counts and the kind
of processor are the same.
"""

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path

import yaml

from retro import config, errors, provenance
from retro.artifacts import read_json, read_manifest, sha256, write_json
from retro.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PROJECT = [
    "Snakefile",
    "Makefile",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    ".dockerignore",
    "rules",
    "envs",
    "config",
    "profiles",
    "docs",
    "retro",
]
LEAVE = shutil.ignore_patterns("__pycache__", "*.sif", ".*")
PAGES = ["report.html", "neighbours.html", "summary.csv", "comparison.csv", "sections.csv"]
README = """# {name}

Everything to make this dataset, its models and its report again.

    make run CONFIG=config/archived.yaml     # sets up .venv from the locks in envs/, then text to report
    .venv/bin/python -m retro.archive check expected.json {folder}

`expected.json` lists the sha256 of every artifact of the original run, with versions and thread counts; `made/` holds
its report, recorded config and manifests. Made with Python {python} on {machine}, torch {torch}, faiss {faiss}.
{missing}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="make the folder")
    pack.add_argument("--config", required=True, type=Path, help="config file of the finished run")
    pack.add_argument("--output", required=True, type=Path, help="folder to make; must not exist")
    pack.add_argument("--no-corpora", action="store_true", help="only name the corpus files, with their sha256")
    check = commands.add_parser("check", help="compare results made again with what the archive expects")
    check.add_argument("expected", type=Path, help="expected.json of the archive")
    check.add_argument("folder", type=Path, help="results/<dataset> made again")
    options = parser.parse_args()
    if options.command == "pack":
        print(packed(options.config, options.output, corpora=not options.no_corpora))
    else:
        compare(options.expected, options.folder)


def packed(path: Path, output: Path, corpora: bool = True) -> str:
    """Make the archive's folder; returns a line about it. Raises UserError where the run is not finished."""
    settings = config.load(path)
    folder = Path(settings.results) / settings.dataset.name
    if not (folder / "config.json").exists() or not (folder / "summary.csv").exists():
        raise UserError(f"{folder}: no finished run. Run `make run CONFIG={path}` first.")
    if output.exists():
        raise UserError(f"{output}: exists already. Choose another --output or remove it.")
    files = {
        name: config.files_of(name, source, settings.dataset.on_error)
        for name, source in settings.dataset.sources.items()
    }
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in PROJECT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, part / name, ignore=LEAVE)
        else:
            shutil.copy2(source, part / name)
    facts = settings.model_dump(mode="json", exclude_unset=True)
    facts.pop("preset", None)
    facts["results"] = "results"
    for name, source in files.items():
        where = Path("corpora") / name
        facts["dataset"]["sources"][name]["path"] = (
            str(where / "*") if len(source) > 1 else str(where / Path(source[0]).name)
        )
        if corpora:
            (part / where).mkdir(parents=True)
            for file in source:
                shutil.copy2(file, part / where)
    _given_files(facts, part)
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    (part / "config/archived.yaml").write_text(
        f"# The archived run, with everything its presets said.\n{text}", encoding="utf-8"
    )
    write_json(
        part / "expected.json",
        expected(folder, {name: {f: sha256(Path(f)) for f in source} for name, source in files.items()}),
    )
    for manifest in [folder / "config.json", *folder.rglob("manifest.json"), *folder.glob("runs/*/model.json")]:
        target = part / "made" / manifest.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(manifest, target)
    for name in PAGES:
        if (folder / name).exists():
            shutil.copy2(folder / name, part / "made" / name)
    if (folder / "figures").is_dir():
        shutil.copytree(folder / "figures", part / "made/figures")
    missing = (
        ""
        if corpora
        else "\nThe corpora are not in here: put the files that expected.json names into corpora/<source>/.\n"
    )
    (part / "README.md").write_text(
        README.format(
            name=settings.dataset.name,
            folder=f"results/{settings.dataset.name}",
            python=platform.python_version(),
            machine=platform.machine(),
            torch=provenance.version("torch"),
            faiss=provenance.version("faiss-cpu") or provenance.version("faiss-gpu"),
            missing=missing,
        ),
        encoding="utf-8",
    )
    os.rename(part, output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return f"{output}: {size / 1e6:,.1f} MB. {output}/README.md says how to make it again."


def _given_files(facts: dict, part: Path) -> None:
    """Copy files that the config names besides corpora (a given tokenizer, an encoder's folder)."""
    for section, keys in (("tokenizer", ["path", "merges"]), ("encoder", ["path"])):
        given = facts["dataset"].get(section, {})
        for key in keys:
            if given.get(key) and Path(given[key]).exists():
                source, target = Path(given[key]), part / "given" / section / Path(given[key]).name
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
                given[key] = str(target.relative_to(part))


def expected(folder: Path, corpora: dict[str, dict[str, str]]) -> dict:
    """The sha256 of every file that a manifest vouches for, and what made it."""
    artifacts = {}
    for path in sorted({*folder.rglob("manifest.json"), *folder.glob("runs/*/model.json")}):
        manifest = read_manifest(path)
        facts = manifest.facts
        artifacts[str(path.relative_to(folder))] = {
            "kind": facts["kind"],
            "files": {name: file["sha256"] for name, file in facts["files"].items()},
            "versions": facts["versions"],
            "threads": facts.get("threads"),
        }
    return {
        "kind": "archive",
        "dataset": folder.name,
        "machine": platform.machine(),
        "corpora": corpora,
        "artifacts": artifacts,
    }


def compare(path: Path, folder: Path) -> None:
    """Print a line for each artifact; raise UserError if one differs or is missing."""
    wanted = read_json(path)
    if wanted.get("kind") != "archive":
        raise UserError(f"{path}: not the expected.json of an archive. Give the one that lies in its folder.")
    bad = 0
    for name, facts in wanted["artifacts"].items():
        here = folder / name
        found = read_manifest(here).facts["files"] if here.exists() else {}
        wrong = [file for file, digest in facts["files"].items() if found.get(file, {}).get("sha256") != digest]
        bad += bool(wrong)
        print(f"{name:56s} {'the same' if not wrong else 'differs: ' + ', '.join(wrong)}")
    if bad:
        versions = json.dumps(next(iter(wanted["artifacts"].values()))["versions"])
        raise UserError(
            f"{folder}: {bad} of {len(wanted['artifacts'])} artifacts differ. Weights are the same only with the same "
            f"versions ({versions}), thread counts and kind of processor ({wanted['machine']})."
        )
    print(f"{folder}: all {len(wanted['artifacts'])} artifacts are the same.", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
