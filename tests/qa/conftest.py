"""A small dataset with two untrained runs, and questions about its places, of which some are held out."""

import json
import re

import pytest

from tests.evaluation.built import build_dataset, write_run
from tests.evaluation.words import corpus


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    found = build_dataset(tmp_path_factory.mktemp("qa") / "words")
    for name in ("gpt-s1", "retro-s1"):
        write_run(found, name)
    return found


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """A JSON lines file: the total area in each page of the atlas."""
    lines = []
    for record in corpus()["atlas"]:
        area = re.search(r"area: (.*?)\.", record["text"])[1]
        question = f"What is the total area in {record['title']}?"
        facts = {"id": f"q-{record['id']}", "question": question, "answers": [area]}
        lines.append(json.dumps({**facts, "group": record["group"], "doc_id": record["id"]}))
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
