"""docs/troubleshooting.md lists every message of the package, and every message says a way out."""

import ast
import re
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from retro.base.stage import settings_in
from retro.base.texts import called, walk
from retro.config.schema import Config
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


def keys(section: type[BaseModel], before: str = ""):
    """Every key of the config, dotted, and its type."""
    for attribute, field in section.model_fields.items():
        key = f"{before}{field.alias or attribute}"
        yield key, field.annotation
        if (inside := settings_in(field.annotation)) is not None:
            yield from keys(inside, f"{key}.<name>." if "dict" in str(field.annotation) else f"{key}.")


def choices(annotation: Any) -> set[str]:
    """The words that a key of that type takes; none where it takes anything."""
    if annotation is bool:
        return {"true", "false"}
    if get_origin(annotation) is Literal:
        return set(map(str, get_args(annotation)))
    return set().union(*map(choices, get_args(annotation)))


def said():
    """Every text that a reader is told: messages, and what is printed."""
    yield from LISTED
    for module in docs.modules().values():
        for node in walk(module.tree):
            told = isinstance(node, ast.Call) and called(node.func) in ("say", "warn", "print")
            if told and node.args:
                yield " ".join(module._text(node.args[0]).split())


KEYS = dict(keys(Config))
KEY = r"([a-z_]+(?:\.[a-z_]+)*)"
TAKEN = re.compile(rf"(?<![\w.<>/-])(?:{KEY}(?:: |=)|[Ss]et {KEY} to )([a-z_0-9][\w.-]*)")
PROSE = {("neighbours", "the"), ("database", "name")}  # no key and value, though they look like it


def recommended(text: str) -> list[tuple[str, str, set[str]]]:
    """Key, value and the values that there are, wherever a text names a value of a key that has only some."""
    found = []
    for before, after, value in TAKEN.findall(text):
        key = before or after
        some = set().union(*(choices(kind) for known, kind in KEYS.items() if f".{known}".endswith(f".{key}")))
        if some and (key, value) not in PROSE:
            found.append((key, value.rstrip("."), some))
    return found


SAID = sorted(set(said()))


@pytest.mark.parametrize("text", [text for text in SAID if recommended(text)])
def test_values_that_messages_recommend_are_values_of_their_keys(text):
    for key, value, some in recommended(text):
        if value != "found":  # <key>: found <value>, wanted …
            assert value in some, f"{key}: {value} in {text!r}"


def test_recommendations_are_found_in_whatever_form_they_are_written():
    wanted = {("dataset.tokenizer.type", "tokenizer.json"), ("dataset.on_error", "skip"), ("type", "transformers")}
    wanted |= {("dataset.tokenizer.lossy", "allow"), ("dataset.encoder.gpu_dtype", "float32"), ("train", "true")}
    assert wanted <= {(key, value) for text in SAID for key, value, _ in recommended(text)}
    assert recommended("use tokenizer.type: wordpiece")[0][1] not in recommended("tokenizer.type: bpe")[0][2]


FILES = {
    "model.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "database.npy",
    "train.npy",
}
DOTTED = re.compile(r"(?<![\w.<>/*-])([a-z_]+(?:\.(?:[a-z_]+|<name>))+)(?![\w/(<])")


@pytest.mark.parametrize("text", [text for text in SAID if DOTTED.search(text)])
def test_keys_that_messages_name_are_keys_of_the_config(text):
    sections = {key.partition(".")[0] for key in KEYS if "." in key} | {"tokenizer"}
    for name in DOTTED.findall(text):
        if name.partition(".")[0] in sections and name not in FILES:
            assert name.removesuffix(".<name>") in KEYS, f"{name} in {text!r}"
