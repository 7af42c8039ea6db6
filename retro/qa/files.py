"""Questions and instructions: JSON lines, plain or gzip, and which split each belongs to."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.corpus.settings import SplitSettings
from retro.corpus.split import split_of
from retro.database.tables import SPLITS
from retro.errors import UserError
from retro.recorded import Dataset


@dataclass(frozen=True)
class Example:
    """A question or an instruction. `document`: the page it was made from; `contexts`: passages given with it."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    split: str
    group: str
    document: str | None
    contexts: tuple[str, ...]


def records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of each line; raises UserError, naming it, for one that is no JSON object."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give qa.questions and qa.instructions files that exist.")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not valid JSON ({error}). Correct or remove the line.") from None
            if not isinstance(record, dict):
                raise UserError(f"{where}: wanted a JSON object, found {type(record).__name__}.")
            yield where, record


def read(path: str | Path, dataset: Dataset) -> list[Example]:
    """The examples of a file, each in the split of its group (or document, as the dataset is split).

    A question has `question` and `answers`; an instruction has `instruction`, `output` and, it may be, `input`.
    """
    split, found = SplitSettings(**dataset.facts["split"]), []
    for where, record in records(path):
        if "question" in record:
            prompt, answers = f"Question: {_text(record, 'question', where)}\nAnswer:", record.get("answers")
            contexts = record.get("contexts") or []
        elif "instruction" in record:
            prompt, answers = f"{_text(record, 'instruction', where)}\nAnswer:", [record.get("output")]
            contexts = [record["input"]] if record.get("input") else []
        else:
            raise UserError(f"{where}: has neither question nor instruction, only {', '.join(sorted(record))}.")
        if not (isinstance(answers, list) and answers and all(isinstance(a, str) and a for a in answers)):
            raise UserError(f"{where}: answers (of an instruction: output) is {answers!r}, wanted texts.")
        document = record.get("doc_id")
        key = str(record.get("id") or where)
        group = str(record.get("group") or document or key)
        number = split_of(group, str(document or key), True, split, dataset.facts["seed"])
        found.append(Example(key, prompt, tuple(answers), SPLITS[number], group, document, tuple(contexts)))
    return found


def _text(record: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(record[key], str) or not record[key].strip():
        raise UserError(f"{where}: {key} is {record[key]!r}, wanted a text.")
    return record[key].strip()


def pages(dataset: Dataset) -> set[str]:
    """Ids of every document of the dataset, held-out ones included."""
    found = set()
    for manifest in dataset.store.documents:
        with open(manifest.file("documents.jsonl"), encoding="utf-8") as file:
            found |= {json.loads(line)["id"] for line in file}
    return found


def answerable(examples: list[Example], dataset: Dataset) -> list[Example]:
    """Those whose page is part of the dataset, in whatever split, or is not known."""
    known = pages(dataset)
    return [example for example in examples if example.document is None or example.document in known]
