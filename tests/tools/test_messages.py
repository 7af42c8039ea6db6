"""docs/troubleshooting.md lists every message of the package, and every message says a way out."""

import re

import pytest

from retro.tools import docs

LISTED = [message for room in docs.listed().values() for message in room]
THEIRS = {
    "corpus.jsonl, line 17: …",
    "[Errno 28] No space left on device. Make room and run again: what was finished is kept.",
}
THEIRS |= {"ensurepip is not available", "Python 3.11 or newer is needed"}  # and others that say it in other words
WORDS = """
wanted supported nearest needs only add begin change choose copy correct delete did drop evaluate give install installs
leave lower make name prepare put raise reinstall remove rename restore run save set split start stop take train try
call use wait wants write
"""
WAY_OUT = re.compile(rf"\b({'|'.join(WORDS.split())})\b", re.IGNORECASE)


def test_the_page_is_current():
    text = docs.PAGE.read_text(encoding="utf-8")
    assert text.endswith(docs.section()), "run: python -m retro.tools.docs"


@pytest.mark.parametrize("message", LISTED)
def test_every_message_says_what_is_wanted_or_to_be_done(message):
    assert WAY_OUT.search(message)


def test_the_list_is_read_from_the_code():
    """Messages of each form the code has: plain, in pieces, with a constant, from a function, of a setting."""
    assert len(LISTED) > 200
    for part in [
        "Run snakemake to make it.",
        "has braces, which Snakemake reads as a pattern; rename it",
        "Correct dataset.tokenizer in the config.",
        "left out by keep",
        "is not a multiple of chunk_length",
        "Correct it, or set dataset.on_error to skip",
        "wanted a multiple of dataset.chunk_length",
    ]:
        assert any(part in message for message in LISTED), part


def test_symptoms_in_the_page_are_messages_of_the_code():
    """What the tables say of our own messages still stands in the code."""
    text = docs.PAGE.read_text(encoding="utf-8").partition("Snakemake's own:")[0]
    said = " ".join(path.read_text(encoding="utf-8") for path in docs.PACKAGE.rglob("*.py"))
    symptoms = re.findall(r"^\| `(.*?)`", text, re.MULTILINE)
    assert len(symptoms) > 20
    for symptom in symptoms:
        words = symptom.split()
        some = min(2, len(words) - symptom.endswith("…"))
        runs = [" ".join(words[start : start + some]) for start in range(len(words) - some + 1)]
        assert any(run in said for run in runs) or symptom in THEIRS, symptom
