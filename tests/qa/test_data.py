"""The shipped questions are what data/README.md says."""

import gzip
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8").partition("## Questions")[2]
ROWS = re.findall(r"^\| (\S+\.gz) \| ([\d,]+)[^|]* \| `(\w{64})` \|$", README, re.MULTILINE)


def lines(name):
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_files_are_the_described_ones(row):
    name, count, digest = row
    assert sha256((DATA / name).read_bytes()).hexdigest() == digest
    assert len(lines(name)) == int(count.replace(",", ""))


def test_both_are_described():
    assert [row[0] for row in ROWS] == ["qa_factbook.jsonl.gz", "instruct_factbook_template.jsonl.gz"]


def test_every_answer_stands_in_its_page():
    pages = {page["id"]: page for page in lines("factbook.jsonl.gz")}
    for each in lines("qa_factbook.jsonl.gz"):
        page = pages[each["doc_id"]]
        assert page["group"] == each["group"] and all(answer in page["text"] for answer in each["answers"])
