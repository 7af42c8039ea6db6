"""What a file of questions says: which split each is in, and what is told of those that name what is not there."""

import json

import pytest

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
    assert f"{path}: 3 of 4 examples name a page (doc_id) that the dataset lacks" in said
    assert "'nowhere-1', 'nowhere-2'" in said and said.count("\n") == 1


def test_questions_without_a_known_page_are_told_of(dataset, written, capsys):
    read(written({"group": "Alba"}, {"group": "Atlantis"}, {"id": "lost"}), dataset)
    said = capsys.readouterr().err
    assert "1 of 3 examples name no page, and a group that the dataset lacks: 'Atlantis'" in said
    assert "1 of 3 examples name neither page nor group" in said and "'lost'" in said and "Alba" not in said


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
    assert f"{len(several)} of {len(named)} examples name a page (doc_id) that is in several" in capsys.readouterr().err
