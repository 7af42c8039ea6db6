"""Datasets and runs as a user names them: by a path, or by a name below `results`; and the newest ones."""

import csv
import json
import os
from pathlib import Path

from retro.base.nearest import unknown
from retro.base.stage import UserError

RESULTS = Path("results")  # where datasets are looked for by their name
MAKE = "`retro run` makes one."


def datasets() -> list[Path]:
    """The recorded config of each dataset below `results`, the newest first."""
    found = [path for path in RESULTS.glob("*/config.json") if path.is_file()]
    return sorted(found, key=lambda path: (-path.stat().st_mtime, path))


def newest() -> Path:
    """The recorded config of the newest dataset. Raises `UserError` where there is none."""
    for path in datasets():
        return path
    raise UserError(f"{RESULTS.resolve()}: no dataset there. {MAKE} Or name the folder of one that lies elsewhere.")


BOOKS = "books.json"  # in a dataset's folder: names of the datasets that `retro add-book` made beside it, in order


def books(folder: Path) -> list[Path]:
    """The recorded configs of the books that were added to the dataset in `folder`, the last one last."""
    path = folder / BOOKS
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["books"] if path.is_file() else []
        return [folder.parent / name / "config.json" for name in names]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a list of books. Delete it; the books it named lie in {folder.parent}.") from None


def book_of(config: Path) -> Path:
    """The recorded config of what runs of a dataset look things up in: the book added last, or the dataset itself."""
    added = books(config.parent)
    if added and not added[-1].is_file():
        raise UserError(
            f"{config.parent / BOOKS}: {added[-1]} is missing. Bring it back, or run retro add-book --undo."
        )
    return added[-1] if added else config


def recorded_config(text: str) -> Path:
    """The config.json of a dataset, given by its path, by that of its folder or by its name: a type for argparse.

    Raises `UserError` for a name or folder without; a path that ends in .json is handed on as it is.
    """
    path = Path(text)
    for each in (path / "config.json", RESULTS / text / "config.json"):
        if not path.is_file() and each.is_file():
            return each
    if path.suffix != ".json" and not os.path.lexists(path):
        raise UserError(no_dataset(path.name, path.parent if "/" in text else RESULTS))
    return path


def dataset_folder(text: str) -> Path:
    """The same of a dataset's folder, whether there is a config.json in it or not."""
    return Path(text) if os.path.lexists(text) else recorded_config(text).parent


def model_json(text: str) -> Path:
    """The model.json of a run, given by its path, by that of its folder or by the run's name: a type for argparse."""
    return Path(text) if Path(text).is_file() else run_folder(text) / "model.json"


def run_folder(text: str) -> Path:
    """The folder of a trained run, given by its path, by that of its model.json or by its name: a type for argparse.

    A name is looked for in the newest dataset first. Raises `UserError` where there is no such run.
    """
    path = Path(text)
    if (path / "model.json").exists():
        return path
    if path.name == "model.json" and path.is_file():
        return path.parent
    folders = [config.parent for config in datasets()]
    for folder in folders if "/" not in text else ():
        if (folder / "runs" / text / "model.json").is_file():
            return folder / "runs" / text
    if "/" in text:  # results/<dataset>/runs/<run>
        folders = [path.parents[1]] if path.parent.name == "runs" and len(path.parents) > 1 else [path.parent]
    raise UserError(no_run(path.name, folders))


def no_run(name: str, folders: list[Path]) -> str:
    """What to say of a run that none of these datasets has."""
    for folder in folders:
        if runs := runs_of(folder):
            return unknown("run", name, runs, str(folder))
        if folder.is_dir():
            return f"no run {name!r}: {folder} has no trained run. {MAKE}"
    if folders:
        return no_dataset(folders[0].name, folders[0].parent)
    return f"no run {name!r}: there is none below {RESULTS.resolve()}. {MAKE}"


def no_dataset(name: str, results: Path) -> str:
    """What to say of a dataset that is not there: which there are, beside it or else below `results`."""
    known = [path.parent.name for path in sorted(results.glob("*/config.json"))]
    known, results = (known, results) if known else ([path.parent.name for path in datasets()], RESULTS)
    return f"{unknown('dataset', name, known, str(results))}{'' if known else f' {MAKE}'}"


def runs_of(folder: Path) -> list[str]:
    """Trained runs of a dataset, by name."""
    return sorted(path.parent.name for path in folder.glob("runs/*/model.json"))


def report_run(folder: Path) -> Path:
    """The run that a dataset's report is about: its first that retrieves. Raises `UserError` where there is none."""
    table = folder / "summary.csv"
    if table.is_file():
        with open(table, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                run = folder / "runs" / row.get("run", "")
                if row.get("retrieval") == "on" and (run / "model.json").is_file():
                    return run
    raise UserError(f"{folder}: no evaluated run that retrieves. {MAKE} Or name a run: --run {folder}/runs/…")
