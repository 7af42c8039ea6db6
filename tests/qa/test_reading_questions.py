"""What a file of questions says: which split each is in, and what is told of those that name what is not there."""

import gzip
import json
import os
import re
from dataclasses import replace

import pytest
import zstandard

from retro.base.stage import UserError
from retro.qa.questions import read
from tests.evaluation.built import build_dataset
from tests.evaluation.words import corpus


@pytest.fixture
def written(tmp_path):
    """Write records as a file of questions; the file."""

    def write(*records, name="asked.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"question": "Who?", "answers": ["I"], **each}) + "\n" for each in records))
        return path

    return write


@pytest.fixture(scope="module")
def splits(dataset):
    """The split that the dataset gave each page which is trained on or evaluated."""
    return {
        dataset.store.document(int(row))["id"]: split
        for split in ("train", "valid", "test")
        for row in dataset.rows(split)
    }


def test_a_question_is_in_the_split_of_its_page(dataset, written, splits):
    found = read(written(*({"doc_id": page} for page in splits)), dataset)
    assert {each.document: each.split for each in found} == splits and set(splits.values()) == {
        "train",
        "valid",
        "test",
    }
    group = {record["id"]: record["group"] for records in corpus().values() for record in records}
    assert all(each.group == group[each.document] for each in found)


def test_a_page_decides_even_against_the_group_that_a_question_names(dataset, written, splits):
    pages = {split: page for page, split in splits.items()}
    other = next(each["group"] for each in corpus()["atlas"] if splits[each["id"]] == "test")
    (example,) = read(written({"doc_id": pages["train"], "group": other}), dataset)
    assert (example.split, example.group) == ("train", other)


def test_a_page_of_an_open_book_is_in_the_split_of_its_group(dataset, written, splits):
    old = {record["id"]: record["id"].removeprefix("old-") for record in corpus()["atlas-old"]}
    found = read(written(*({"doc_id": page} for page in old)), dataset)
    assert {each.document: each.split for each in found} == {page: splits[newer] for page, newer in old.items()}


def test_questions_of_pages_that_the_dataset_lacks_are_counted_and_named(dataset, written, capsys):
    path = written(
        {"doc_id": "alba-economy"}, {"doc_id": "nowhere-1"}, {"doc_id": "nowhere-2"}, {"doc_id": "nowhere-1"}
    )
    assert [each.document for each in read(path, dataset)] == ["alba-economy"]
    said = capsys.readouterr().err
    assert f"{path}: 3 of 4 lines name a page (doc_id) that the dataset lacks" in said
    assert "'nowhere-1', 'nowhere-2'" in said and said.count("\n") == 1


def test_questions_without_a_known_page_are_told_of(dataset, written, capsys):
    read(written({"group": "Alba"}, {"group": "Atlantis"}, {"id": "lost"}), dataset)
    said = capsys.readouterr().err
    assert "1 of 3 lines name no page, and a group that the dataset lacks: 'Atlantis'" in said
    assert "1 of 3 lines name neither page nor group" in said and "'lost'" in said and "Alba" not in said


def test_a_question_without_page_and_group_is_in_one_split_whatever_file_it_stands_in(dataset, written):
    records = [{"question": f"Which is number {number}?"} for number in range(20)]
    one = read(written(*records), dataset)
    other = read(
        written(*({"id": str(number), **each} for number, each in enumerate(records)), name="b.jsonl"), dataset
    )
    assert [each.split for each in one] == [each.split for each in other] and len({each.split for each in one}) > 1


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A dataset in which the speeches have the ids of pages of the atlas, and other groups."""
    given = corpus()
    for speech, page in zip(given["speeches"], given["atlas"][::3], strict=False):
        speech["id"] = page["id"]
    return build_dataset(tmp_path_factory.mktemp("twice") / "words", given)


def test_a_page_of_which_copies_are_in_several_splits_is_neither_trained_on_nor_asked(twice, written, capsys):
    named = [record["id"] for record in corpus()["atlas"]]
    seen = {}
    for split in ("train", "valid", "test"):
        for row in twice.rows(split):
            seen.setdefault(twice.store.document(int(row))["id"], set()).add(split)
    several = [page for page in named if len(seen[page]) > 1]
    found = read(written(*({"doc_id": page} for page in named)), twice)
    assert several and {each.document: {each.split} for each in found} == {
        page: seen[page] for page in named if page not in several
    }
    assert f"{len(several)} of {len(named)} lines name a page (doc_id) that is in several" in capsys.readouterr().err


QUESTION = {"question": "Who?", "answers": ["I"]}
INSTRUCTION = {"instruction": "Say it.", "output": "It."}
ODD_VALUES = {
    # name: (record, what the message says)
    "contexts are text": ({**QUESTION, "contexts": "One."}, "field 'contexts' is text, wanted a list of texts"),
    "contexts are an object": ({**QUESTION, "contexts": {"a": "b"}}, "field 'contexts' is an object, wanted a list"),
    "contexts are true": ({**QUESTION, "contexts": True}, "field 'contexts' is true or false, wanted a list"),
    "a context is an object": (
        {**QUESTION, "contexts": ["a", {"text": "b"}]},
        "field 'contexts', number 2, is an object",
    ),
    "a context is a list": ({**QUESTION, "contexts": [["a", "b"]]}, "field 'contexts', number 1, is a list"),
    "a context is blank": ({**QUESTION, "contexts": ["a", " \n"]}, "field 'contexts', number 2, is blank"),
    "an instruction's contexts are text": ({**INSTRUCTION, "contexts": "One."}, "field 'contexts' is text"),
    "an input is a list": ({**INSTRUCTION, "input": ["One."]}, "field 'input' is a list, wanted text"),
    "an input is an object": ({**INSTRUCTION, "input": {"a": "b"}}, "field 'input' is an object, wanted text"),
    "an output is a list": ({**INSTRUCTION, "output": ["It."]}, "field 'output' is a list, wanted text"),
    "an output is blank": ({**INSTRUCTION, "output": "\t"}, "field 'output' is blank, wanted text"),
    "answers are an object": (
        {**QUESTION, "answers": {"a": 1}},
        "field 'answers' is an object, wanted a list of texts",
    ),
    "an answer is a number": ({**QUESTION, "answers": ["a", 5]}, "field 'answers', number 2, is a number, wanted text"),
    "no answers": ({"question": "Who?", "answer": "I"}, "field 'answers' is empty or absent"),
    "a question is a list": ({**QUESTION, "question": ["Who?"]}, "field 'question' is a list, wanted text"),
    "both": ({**QUESTION, **INSTRUCTION}, "has both question and instruction"),
    "a group is a list": ({**QUESTION, "group": ["a"]}, "field 'group' is a list, wanted text or a number"),
    "a page is an object": (
        {**QUESTION, "doc_id": {"id": "a"}},
        "field 'doc_id' is an object, wanted text or a number",
    ),
    "an id is a list": ({**QUESTION, "id": [1]}, "field 'id' is a list, wanted text or a number"),
    "half a character": ({**QUESTION, "contexts": ["a\ud800"]}, "holds \\ud800, half of a character"),
    "wide text": ({**QUESTION, "contexts": ["O\0n\0e\0 \0p\0a\0g\0e\0.\0"]}, "number 1, is full of null characters"),
}


@pytest.mark.parametrize("name", ODD_VALUES)
def test_odd_values_are_refused_with_their_line(dataset, written, name):
    record, said = ODD_VALUES[name]
    path = written({})
    with open(path, "a") as file:
        file.write("\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError) as refused:
        read(path, dataset)
    assert f"{path}, line 3: " in str(refused.value) and said in str(refused.value)
    assert "set dataset.on_error to skip" in str(refused.value)


def test_lines_that_cannot_be_used_are_counted_where_the_dataset_skips_them(dataset, tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    records = [QUESTION, {**QUESTION, "contexts": "One."}, INSTRUCTION]
    path.write_text("".join(json.dumps(each) + "\n" for each in records) + "{\n")
    skipping = replace(dataset, facts={**dataset.facts, "on_error": "skip"})
    assert [each.prompt for each in read(path, skipping)] == ["Question: Who?\nAnswer:", "Say it.\nAnswer:"]
    said = capsys.readouterr().err
    assert "2 of 4 lines cannot be used, and are left out" in said
    assert "line 2: field 'contexts' is text" in said and "line 4: not valid JSON" in said


def test_an_input_of_nothing_is_no_passage(dataset, tmp_path):
    path = tmp_path / "given.jsonl"
    given = ({"input": ""}, {"input": None}, {"input": " "}, {"contexts": []}, {"contexts": None}, {})
    path.write_text("".join(json.dumps({**INSTRUCTION, **each}) + "\n" for each in given))
    assert [each.contexts for each in read(path, dataset)] == [()] * len(given)


def test_numbers_are_names_as_they_are_in_a_corpus(dataset, written):
    first, second = read(written({"id": 0, "group": 2003.0}, {"id": 7, "group": 0}), dataset)
    assert (first.id, first.group, second.id, second.group) == ("0", "2003", "7", "0")


def test_what_is_not_read_is_told(dataset, written, capsys):
    read(written({"context": ["One."], "id": "a"}, {"id": "a", "input": "One."}, {"id": "b"}), dataset)
    said = capsys.readouterr().err
    assert "2 of 3 lines have fields that are not read: 'context', 'input'" in said
    assert "1 of 3 lines have the id of one before: 'a'" in said


LINES = b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\r\n\n" for each in (QUESTION, INSTRUCTION))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.jsonl", LINES),
        ("bom.json", b"\xef\xbb\xbf" + LINES),
        ("packed.ndjson.gz", gzip.compress(LINES, mtime=0)),
        ("members.jsonl.gz", gzip.compress(LINES[:30], mtime=0) + gzip.compress(LINES[30:], mtime=0)),
        ("packed.jsonl.zst", zstandard.compress(LINES)),
        ("bom.jsonl.zst", zstandard.compress(b"\xef\xbb\xbf" + LINES)),
        ("unended.jsonl", LINES.rstrip()),
    ],
)
def test_every_form_of_json_lines_is_read(dataset, tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = read(tmp_path / name, dataset)
    assert [each.answers for each in found] == [("I",), ("It.",)]


LATIN = json.dumps({**QUESTION, "answers": ["Århus"]}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("latin.jsonl", LATIN.encode("latin-1"), "line 1: not valid UTF-8 (byte 0xc5"),
        ("wide.jsonl", LATIN.encode("utf-16"), "line 1: not valid UTF-8 (byte 0xff): this is UTF-16 text"),
        ("packed.jsonl", gzip.compress(LINES, mtime=0), "this is gzip data. Name the file .jsonl.gz"),
        ("plain.jsonl.gz", LINES, "line 1: broken .gz data"),
        ("plain.jsonl.zst", LINES, "line 1: broken .zst data"),
        ("cut.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "the .gz data ends too early"),
        ("twice.jsonl", b'{"question": "a", "question": "b", "answers": ["c"]}', "the key question stands there twice"),
        ("list.json", b"[\n" + LINES + b"]", "one JSON object a line is wanted"),
        ("empty.jsonl", b"", "the file is empty"),
        ("blank.jsonl", b"\n \n", "the file is empty"),
        ("table.parquet", b"PAR1", "is not JSON lines"),
    ],
)
def test_files_that_are_not_json_lines_are_refused(dataset, tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as refused:
        read(tmp_path / name, dataset)
    assert name in str(refused.value) and said in str(refused.value)


def test_what_is_no_file_is_refused(dataset, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path, said in (
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "pipe.jsonl", "is a named pipe, not a file"),
        (tmp_path / "nowhere.jsonl", "cannot be read (No such file or directory)"),
    ):
        with pytest.raises(UserError, match=re.escape(f"{path}: {said}")):
            read(path, dataset)
