"""Let a trained run's book grow: more text to look things up in, without training, and back again.

    retro add-book notes/ --config open-book
    retro add-book --undo --config open-book

The grown book is a dataset beside the first, results/open-book-notes: the first's sources and the new one, its
tokenizer and its settings, made by the pipeline as any other, so that it can be verified, searched and evaluated.
Vectors that were embedded already are kept (`retro.database.kept`). The first dataset changes in one thing: its
books.json names what was added, and its runs write with the last of these (`retro.dataset.named.book_of`), a served one
from its next text on. `--undo` takes the last one away.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from retro.base import command
from retro.base.artifacts import write_json, write_text
from retro.base.log import say
from retro.base.stage import UserError, whole
from retro.config import schema
from retro.config.schema import DatasetSettings
from retro.corpus.settings import TOKENIZER_FILES
from retro.dataset.dataset import Dataset
from retro.dataset.named import BOOKS, book_of, books, recorded_config
from retro.dataset.packed import opened
from retro.tools.new import read_text

CONFIG = "book.yaml"  # in the folder of a grown book: what it is made of


def grown(book: Dataset, name: str, source: str, more: dict[str, Any]) -> dict[str, Any]:
    """The config of a dataset `name` that has what `book` has, and the open book `more`, called `source`."""
    facts, tokenizer = book.facts, book.facts["tokenizer"]
    kept = {key: facts[key] for key in DatasetSettings.model_fields if key in facts}
    files = [str(book.folder / "tokenizer" / file) for file in TOKENIZER_FILES[tokenizer["type"]]]
    given = {"type": "tokenizer.json" if tokenizer["type"] == "bpe" else tokenizer["type"], "path": files[0]}
    given |= {"merges": files[1]} if len(files) > 1 else {}
    given |= {key: tokenizer[key] for key in ("eod", "lossy") if key in tokenizer}
    kept |= {"name": name, "tokenizer": given, "samples": {"seq_length": book.seq_length}}
    kept["sources"] = {**facts["sources"], source: {**more, "train": False}}
    return {"results": str(book.folder.parent), "dataset": kept}


def begun(folder: Path) -> list[str]:
    """Names of the books whose making began and has not ended, the last one last."""
    books(folder)  # refuses what is no list
    path = folder / BOOKS
    return json.loads(path.read_text(encoding="utf-8")).get("begun", []) if path.is_file() else []


def note(folder: Path, whole: list[str], half: list[str]) -> None:
    """Write down which books a dataset has, and which were begun; where there are none, nothing."""
    if whole or half:
        write_json(folder / BOOKS, {"books": whole, **({"begun": half} if half else {})})
    else:
        (folder / BOOKS).unlink(missing_ok=True)


def origin(config: Path) -> Path:
    """The folder of the dataset that a book was added to, or of a dataset that is none."""
    for path in sorted(config.parent.parent.glob(f"*/{BOOKS}")):
        if config.parent.name in [each.parent.name for each in books(path.parent)]:
            return path.parent
    return config.parent


def add(folder: Path, path: str, name: str | None, date: str | None, cores: str) -> None:
    """Make the book of the dataset in `folder` grow by the text at `path`, as a source called `name`."""
    if opened(folder) is not None:
        raise UserError(
            f"{folder}: was opened from a pack, so that its sources are not here; a book is made of them and the new "
            "text. Add it where the dataset was made, and pack that."
        )
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.split(".")[0]).strip("-._")
    source = name or stem or "book"
    book = Dataset.open(book_of(folder / "config.json"))
    target = folder.parent / f"{folder.name}-{source}"
    listed = [each.parent.name for each in books(folder)]
    if source in book.sources or target.name in listed or (target.exists() and not (target / CONFIG).exists()):
        raise UserError(f"{target}: there is a book or source {source!r} already. Choose another name: --name.")
    more = {"path": path, **read_text(path, source).source}
    more.pop("cut", None)  # the parts of a book are chunks
    if date:
        more["fields"] = {**more.get("fields", {}), "date": date}
    config = target / CONFIG
    raw = json.loads(json.dumps(grown(book, target.name, source, more)))
    text = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    schema.parse(yaml.safe_load(text), str(config))
    half = [each for each in begun(folder) if each != target.name]
    note(folder, listed, [*half, target.name])  # first, so that --undo finds what is stopped
    write_text(config, f"# Written by retro add-book for {path}.\n{text}")
    made = [sys.executable, "-m", "retro.tools.run", "--config", str(config), "--cores", cores]
    status = subprocess.run([*made, str(target / "config.json")]).returncode
    if status:
        say(f"{target}: is not whole. The same command goes on; back: retro add-book --undo --config {folder}")
        sys.exit(status)
    chunks = len(Dataset.open(target / "config.json").database) - len(book.database)
    note(folder, [*listed, target.name], half)
    say(f"{folder}: its book has {chunks:,} more chunks, from {path}. Its runs look things up in {target} from now on.")
    say(f"Back: retro add-book --undo --config {folder}")


def undo(folder: Path) -> None:
    """Take away the book that was begun last and is not whole; else the one that was added last."""
    listed, half = [each.parent for each in books(folder)], begun(folder)
    if half:
        last = folder.parent / half.pop()
        if (last / CONFIG).is_file():
            shutil.rmtree(last)
        note(folder, [each.name for each in listed], half)
        say(f"{folder}: {last.name}, which was not whole, is gone.")
        return
    if not listed:
        raise UserError(f"{folder}: no book was added to it. Name the dataset that one was added to: --config.")
    last = listed.pop()
    if any(last.glob("runs/*/model.json")):
        raise UserError(f"{last}: models were trained on it. Copy what is to be kept, and delete {last / 'runs'}.")
    note(folder, [each.name for each in listed], [])
    shutil.rmtree(last, ignore_errors=True)
    say(f"{folder}: {last.name} is gone. Its runs look things up in {book_of(folder / 'config.json').parent} again.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", help="more text: folder of .txt, a .txt, .jsonl (.gz, .zst), .parquet")
    parser.add_argument(
        "--config", required=True, type=recorded_config, help="a dataset, by name, folder or config.json"
    )
    parser.add_argument("--undo", action="store_true", help="take the book away that was added last")
    parser.add_argument("--name", help="what the new source is called (default: after the path)")
    parser.add_argument("--date", help="the field of its records that holds their date, if they have one")
    parser.add_argument("--cores", type=whole, help="CPU cores to use (default: all)")
    options = parser.parse_args()
    if options.undo == (options.path is not None):
        raise UserError("add-book: give the path of more text, or --undo to take the last book away; one of the two.")
    folder = origin(options.config)
    if options.undo:
        undo(folder)
    else:
        add(folder, options.path, options.name, options.date, str(options.cores or "all"))


if __name__ == "__main__":
    command.run(main)
