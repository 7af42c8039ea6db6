"""The shipped corpora are the ones that data/README.md describes; convert.py writes text as they have it."""

import importlib.util
import re
from hashlib import sha256
from pathlib import Path

import pytest

from retro.corpus.readers import Reader
from retro.corpus.settings import SourceSettings

DATA = Path(__file__).parents[2] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\S+) \| ([\d,]+)[^|]*\| ([\d,]+) \| `(\w{64})` \|$", README, re.MULTILINE)


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.fixture(scope="module")
def convert():
    """data/convert.py as a module."""
    spec = importlib.util.spec_from_file_location("convert", DATA / "convert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_corpus_is_described():
    assert [row[0] for row in ROWS] == [
        "factbook.jsonl.gz",
        "factbook_2015.jsonl.gz",
        "sotu.jsonl.gz",
        "tiny.jsonl",
    ]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_corpus_is_as_described(row):
    name, documents, size, digest = row
    assert sha256((DATA / name).read_bytes()).hexdigest() == digest
    found = list(Reader(SourceSettings(path=str(DATA / name)), "source"))
    assert (len(found), sum(document.bytes for document in found)) == (number(documents), number(size))
    assert len({document.id for document in found}) == len(found)


def test_sections_can_be_picked():
    source = SourceSettings(path=str(DATA / "factbook.jsonl.gz"), keep={"section": ["geography", "economy"]})
    found = [document.title.rsplit(": ", 1)[1] for document in Reader(source, "factbook")]
    assert (found.count("Geography"), found.count("Economy"), len(found)) == (256, 241, 497)


def test_markup_becomes_plain_lines(convert):
    markup = "<p>One <em>two</em>&amp;nbsp;three.</p> <p>Four<br/>&lt;five&gt;</p><br><br>"
    assert convert.plain(markup) == "One two three.\nFour\n<five>"


def test_a_section_is_a_title_and_its_fields(convert):
    fields = {
        "Area": {"total ": {"text": "5 sq km"}, "note": {"text": "<strong>note:</strong> small"}},
        "Map": {"text": None},
        "Languages": {"text": "many languages, spoken by some of the many people of the country"},
        "Land use": {"farms": {"fields": {"text": "3%"}}},
    }
    assert convert.section_text("Nowhere", "Geography", fields) == (
        "Nowhere: Geography\n\nArea\ntotal: 5 sq km\nnote: small\n\n"
        "Languages\nmany languages, spoken by some of the many people of the country\n\n"
        "Land use\nfarms: fields: 3%"
    )
    assert convert.section_text("Nowhere", "Geography", {"Map": {"text": None}}) is None


@pytest.mark.parametrize(
    ("short", "long", "name"),
    [
        ("Holy See (Vatican City)", "The Holy See", "Holy See"),
        ("none", "Republic of X", "Republic of X"),
        ("C&ocirc;te d'Ivoire", None, "Côte d'Ivoire"),
    ],
)
def test_a_country_has_its_short_name(convert, short, long, name):
    names = {"conventional long form": {"text": long}, "conventional short form": {"text": short}}
    assert convert.country_name("xy", {"Government": {"Country name": names}}) == name
