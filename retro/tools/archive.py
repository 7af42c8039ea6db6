"""Pack what another machine needs to make a dataset again, and check there that it did.

Every file that the config names is copied, and the config says them as they lie there:

    corpora/<source>/…     documents, laid out below their own common folder as they lay before
    given/<key>/…          what else is named: tokenizer, encoder, questions, instructions, a model to begin with

Which keys name files is what the settings say (`retro.base.stage.Names`); nothing is listed here.
"""

import argparse
import copy
import glob
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from retro.base import command, provenance
from retro.base.artifacts import read_json, read_manifest, sha256, write_json
from retro.base.stage import UserError
from retro.config import schema
from retro.config.checks import Named, items, named
from retro.config.layers import read, with_presets
from retro.corpus.settings import END_OF_TEXT
from retro.training import foreign


def gather(path: Path, folder: Path, corpora: bool = True) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Copy what the config file `path` names below `folder`, without `corpora` all but those.

    Returns the config as it reads in that folder, presets laid in, and of each source's files, by their path there,
    where they lay and their sha256. Raises `UserError` for a file that is not there.
    """
    settings = schema.load(path)
    facts = copy.deepcopy(with_presets(read(path), str(path)))  # as written: flavours fill in their defaults again
    facts.pop("preset", None)
    facts["results"] = "results"
    for each in named(settings):
        if each.what in ("file", "folder"):
            put(facts, each.key, str(_given(each, folder)))
        elif each.what == "model" and each.value not in settings.runs:
            put(facts, each.key, _model(each, settings, folder))
    sources = {}
    for name, source in settings.dataset.sources.items():
        root = common([source.path] if isinstance(source.path, str) else source.path)
        where = Path("corpora") / name
        for key, given in items(("dataset", "sources", name, "path"), source.path):
            put(facts, key, str(where / os.path.relpath(given, root)))
        found: dict[str, str] = {}
        for file in schema.files_of(name, source, settings.dataset.on_error):
            target = str(where / os.path.relpath(file, root))
            if not os.path.samefile(found.setdefault(target, file), file):  # `..` behind a link
                raise UserError(
                    f"dataset.sources.{name}.path: {found[target]} and {file} would both be {target} in an archive. "
                    "Name them without `..`."
                )
        if corpora:
            for target, file in found.items():
                _copy(file, folder / target)
        sources[name] = {target: {"was": file, "sha256": sha256(file)} for target, file in found.items()}
    return facts, sources


def put(facts: dict[str, Any], key: tuple[str, ...], value: str) -> None:
    """Set the value of a key that the config has."""
    at: Any = facts
    for part in key[:-1]:
        at = at[part]
    at[int(key[-1]) if isinstance(at, list) else key[-1]] = value


def common(paths: list[str]) -> str:
    """The folder that files and folders lie in together; a pattern lies where its first star is."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(_before_pattern(path))) for path in paths])


def _before_pattern(path: str) -> str:
    """A path up to the first part that is a pattern, that part included."""
    parts = Path(path).parts
    last = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return os.path.join(*parts[: last + 1]) if parts else path


def _given(each: Named, folder: Path) -> Path:
    """Copy a file or a folder; its path below the archive's folder."""
    if not Path(each.value).exists():
        raise UserError(
            f"{'.'.join(each.key)}: no such file or folder: {each.value} (working folder {Path.cwd()}). An archive "
            "would lack it: put it back, or correct the path."
        )
    target = Path("given", ".".join(each.key), Path(os.path.abspath(each.value)).name)
    if each.key == ("dataset", "tokenizer", "path") and Path(each.value).is_dir():  # a model's: without its weights
        for name in ("tokenizer.json", *END_OF_TEXT):
            if Path(each.value, name).is_file():
                _copy(f"{each.value}/{name}", folder / target / name)
        return target
    _copy(each.value, folder / target)
    return target


def _model(each: Named, settings: schema.Config, folder: Path) -> str:
    """Where the model that a run begins with lies in the archive: made again there, or copied with all it needs."""
    start = Path(foreign.named(each.value))
    made = Path(settings.results, settings.dataset.name, "runs")
    for run in settings.models():
        if os.path.abspath(start) == os.path.abspath(made / run / "model.json"):
            return f"results/{settings.dataset.name}/runs/{run}/model.json"
    below = Path("given", ".".join(each.key))
    if foreign.is_foreign(str(start)):
        beside = [start.with_name(name) for name in ("tokenizer.json", *END_OF_TEXT)]
        for file in {*foreign.files(start), *(path for path in beside if path.is_file())}:
            _copy(str(file), folder / below / start.absolute().parent.name / file.name)
        return str(below / start.absolute().parent.name)
    manifest = read_manifest(start, "model")
    target = below / "runs/model" / start.name
    for file in (start, *map(manifest.file, manifest.facts["files"])):
        _copy(str(file), folder / target.parent / os.path.relpath(file, start.parent))
    # Models of earlier versions do not record their tokenizer: it is looked for beside the runs.
    tokenizer = start.parent / "../../tokenizer/manifest.json"
    if tokenizer.exists():
        _copy(str(tokenizer), folder / below / "tokenizer/manifest.json")
    return str(target)


def _copy(source: str, target: Path) -> None:
    """Copy a file, or a folder with all in it; links are followed, those that lead nowhere left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(source):
        shutil.copytree(source, target, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    else:
        shutil.copy2(source, target)


ROOT = Path(__file__).resolve().parents[2]
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
PLACES = "skipped.jsonl"  # says where a record lay, in the words of the config: another place, other bytes
PAGES = ["report.html", "neighbours.html", "summary.csv", "comparison.csv", "sections.csv"]
README = """# {name}

Everything to make this dataset, its models and its report again.

    make run CONFIG=config/archived.yaml     # sets up .venv from the locks in envs/, then text to report
    .venv/bin/python -m retro.tools.archive check expected.json {folder}

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
    settings = schema.load(path)
    folder = Path(settings.results) / settings.dataset.name
    if not (folder / "config.json").exists() or not (folder / "summary.csv").exists():
        raise UserError(f"{folder}: no finished run. Run `make run CONFIG={path}` first.")
    if output.exists():
        raise UserError(f"{output}: exists already. Choose another --output or remove it.")
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in PROJECT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, part / name, ignore=LEAVE)
        else:
            shutil.copy2(source, part / name)
    facts, corpus_files = gather(path, part, corpora)
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)
    (part / "config/archived.yaml").write_text(
        f"# The archived run, with everything its presets said.\n{text}", encoding="utf-8"
    )
    write_json(part / "expected.json", expected(folder, corpus_files))
    for manifest in [*folder.glob("config*.json"), *folder.rglob("manifest.json"), *folder.glob("runs/*/model.json")]:
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
        else "\nThe corpora are not in here: expected.json names them, where each lay and where it must lie.\n"
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


def expected(folder: Path, corpora: dict[str, dict]) -> dict:
    """The sha256 of every file that a manifest vouches for, and what made it."""
    artifacts = {}
    for path in sorted({*folder.rglob("manifest.json"), *folder.glob("runs/*/model.json")}):
        manifest = read_manifest(path)
        facts = manifest.facts
        artifacts[str(path.relative_to(folder))] = {
            "kind": facts["kind"],
            "files": {name: file["sha256"] for name, file in facts["files"].items() if name != PLACES},
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
    command.run(main)
