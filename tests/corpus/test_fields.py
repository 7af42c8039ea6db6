"""Fields that the config names: found, counted where records lack them, refused where all do."""

import json
import math
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.config import schema
from retro.corpus import tokenize, train_tokenizer
from retro.corpus.readers import Malformed, Reader
from retro.corpus.settings import SourceSettings
from tests.corpus.test_corpus_stages import TINY, call, tokenize_settings, train_settings, write

PAGES = [{"id": f"p{number}", "country": f"c{number % 4}", "text": f"page {number}"} for number in range(12)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    manifest = tmp_path_factory.mktemp("dataset") / "tokenizer" / "manifest.json"
    with pytest.MonkeyPatch.context() as patch:
        call(train_tokenizer, patch, train_settings(TINY), manifest)
    return manifest


@pytest.fixture
def tokens(trained, tmp_path, monkeypatch):
    """Tokenize a source, in so many shards; returns the counts."""

    def go(path, shards=1, **source):
        settings = tokenize_settings(path, **source)
        output = tmp_path / "tokens" / "manifest.json"
        notes = [output.parent / "shards" / f"{number}-of-{shards}.json" for number in range(shards)]
        if shards > 1:
            for number, note in enumerate(notes):
                call(tokenize, monkeypatch, settings, note, "--tokenizer", trained, "--shard", f"{number}-of-{shards}")
            call(tokenize, monkeypatch, settings, output, "--tokenizer", trained, "--shards", *notes)
        else:
            call(tokenize, monkeypatch, settings, output, "--tokenizer", trained)
        return read_manifest(output, "tokens").counts

    return go


def documents(path, name="source", **settings) -> list:
    return list(Reader(SourceSettings(path=str(path), **settings), name))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"fields": {"group": "contry"}}, "fields.group names the field 'contry'"),
        ({"fields": {"title": "Countries"}}, "fields.title names the field 'Countries'"),
        ({"keep": {"county": ["c1"]}}, "keep.county names the field 'county'"),
    ],
)
def test_a_field_that_no_record_has_is_refused_with_those_there_are(tokens, tmp_path, source, key, shards):
    wanted = f"{key}, which none of its 12 records has; the first has 'country', 'id', 'text'. Did you mean 'country'?"
    with pytest.raises(UserError) as caught:
        tokens(write(tmp_path / "a.jsonl", PAGES), shards, **source)
    assert str(caught.value).startswith(f"source s: {wanted}")


def test_the_tokenizer_stage_refuses_it_first(tmp_path, monkeypatch):
    settings = train_settings(write(tmp_path / "a.jsonl", PAGES))
    settings["sources"]["s"]["fields"] = {"id": "name"}
    with pytest.raises(UserError, match=r"fields\.id names the field 'name'"):
        call(train_tokenizer, monkeypatch, settings, tmp_path / "tokenizer" / "manifest.json")


@pytest.mark.parametrize("nothing", [{}, {"country": None}, {"country": ""}, {"country": math.nan}])
def test_a_field_that_is_named_by_its_usual_name_is_named_all_the_same(tokens, tmp_path, nothing):
    records = [{"id": f"p{number}", "text": "t"} | nothing for number in range(3)]
    path = write(
        tmp_path / "a.jsonl", [{("group" if key == "country" else key): v for key, v in r.items()} for r in records]
    )
    with pytest.raises(UserError, match="'group', which none of its 3 records has"):
        tokens(path, fields={"group": "group"})
    assert tokens(path)["documents"] == 3


def test_a_column_that_a_table_lacks_is_refused(tokens, tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAGES), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"'contry', which none of its 12 records has.*Did you mean"):
        tokens(tmp_path / "a.parquet", fields={"group": "contry"})


@pytest.mark.parametrize("shards", [1, 3])
def test_a_field_that_some_records_lack_is_counted_and_told(tokens, tmp_path, capsys, shards):
    records = [*PAGES, {"id": "x", "text": "none"}, {"id": "y", "text": "null", "country": None}]
    found = tokens(write(tmp_path / "a.jsonl", records), shards, fields={"group": "country"})
    assert found["absent"] == {"country": 2}
    assert "'country' (fields.group) absent in 2 of 14 records: each is a group of its own" in capsys.readouterr().err


def test_values_to_keep_that_no_record_has_are_told(tokens, tmp_path, capsys):
    tokens(write(tmp_path / "a.jsonl", PAGES), keep={"country": ["c1", "c9"]})
    assert "no record has 'c9' in 'country' (keep.country)" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [{"year": ["1"], "country": ["c1"]}, {"country": ["c1"], "year": ["1"]}])
def test_a_field_counts_as_found_in_records_that_another_key_of_keep_leaves_out(tokens, tmp_path, keep):
    """Only page 5 has both; the others lack one of the two, or are left out by it."""
    records = [{**page, "year": 1} for page in PAGES[5:6]] + [{"id": "x", "text": "t", "year": 1}, PAGES[2]]
    found = tokens(write(tmp_path / "a.jsonl", records), keep=keep)
    assert (found["documents"], found["filtered"]) == (1, 2)
    assert found["absent"] == {"year": 1, "country": 1}


def test_nothing_left_by_several_keys_of_keep_is_not_called_a_field_that_no_record_has(tokens, tmp_path):
    records = [{"text": "t", "year": 1}, {"text": "t", "country": "c1"}]
    with pytest.raises(UserError, match=r"no documents left of 2 records .* 2 left out by keep"):
        tokens(write(tmp_path / "a.jsonl", records), keep={"year": ["1"], "country": ["c1"]})


@pytest.mark.parametrize("spoilt", [{"title": []}, {"text": None}, {"text": "a\ud800"}], ids=str)
def test_a_record_that_is_skipped_does_not_count_for_a_field(tokens, tmp_path, spoilt):
    """Were it counted, every document would be a group of its own without a word."""
    records = [{"text": "t", "id": "p1"}, {"text": "t", "country": "c1", **spoilt}]
    with pytest.raises(UserError, match=r"fields\.group names the field 'country', which none of its 1 records has"):
        tokens(write(tmp_path / "a.jsonl", records), fields={"group": "country"}, on_error="skip")


def test_fields_that_are_not_named_may_be_absent(tokens, tmp_path, capsys):
    counts = tokens(write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}]))
    assert "absent" not in counts
    assert "absent" not in capsys.readouterr().err


NESTED = [{"meta": {"lang": f"l{number % 2}", "of": {"id": number}}, "body": {"text": "t"}} for number in range(4)]
IN = {"text": "body.text", "group": "meta.lang", "id": "meta.of.id"}


def test_names_with_dots_lead_into_objects(tmp_path):
    found = documents(write(tmp_path / "a.jsonl", NESTED), fields=IN, keep={"meta.lang": ["l1"]})
    assert [(each.id, each.group, each.text) for each in found] == [("1", "l1", "t"), ("3", "l1", "t")]


def test_names_with_dots_lead_into_the_columns_of_a_table(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(NESTED), tmp_path / "a.parquet")
    found = documents(tmp_path / "a.parquet", fields=IN, keep={"meta.lang": ["l1"]})
    assert [(each.id, each.group, each.text) for each in found] == [("1", "l1", "t"), ("3", "l1", "t")]


def test_a_field_whose_own_name_has_a_dot_comes_first(tmp_path):
    records = [{"meta.lang": "flat", "meta": {"lang": "deep"}, "text": "t"}]
    pyarrow.parquet.write_table(pyarrow.table({"meta.lang": ["flat"], "text": ["t"]}), tmp_path / "a.parquet")
    for path in (write(tmp_path / "a.jsonl", records), tmp_path / "a.parquet"):
        assert documents(path, fields={"group": "meta.lang"})[0].group == "flat"


def test_fields_of_tokens_are_refused():
    with pytest.raises(UserError, match="tokens of type megatron have none"):
        raw = {"path": "x", "type": "megatron", "fields": {"group": "country"}}
        schema.parse({"preset": "tiny", "dataset": {"sources": {"a": raw}, "tokenizer": {"type": "gpt2"}}})


WHOLE = {"id": 7.0, "group": 2003.0, "title": -0.0, "text": "t"}


def test_whole_floats_of_json_are_integers(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"id": 7.0, "group": 2.003E3, "title": -0.0, "text": "t"}\n', encoding="utf-8")
    (found,) = documents(lines, keep={"group": ["2003"]})
    assert (found.id, found.group, found.title) == ("7", "2003", "0")


@pytest.mark.parametrize("kind", [pyarrow.float64(), pyarrow.float32(), pyarrow.decimal128(9, 2), pyarrow.int16()])
def test_whole_numbers_of_a_table_are_integers_whatever_their_type(tmp_path, kind):
    years = [2003, None, 1999]
    values = [None if year is None else Decimal(year) for year in years] if "decimal" in str(kind) else years
    columns = {"id": ["a", "b", "c"], "group": pyarrow.array(values, kind), "text": ["t"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert [each.group for each in documents(tmp_path / "a.parquet")] == ["2003", "b", "1999"]
    kept = documents(tmp_path / "a.parquet", keep={"group": ["2003"]})
    assert [each.id for each in kept] == ["a"]


def test_large_whole_floats_equal_the_integers_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": {2**60}, "text": "t"}}\n{{"id": {float(2**60)!r}, "text": "t"}}\n', encoding="utf-8")
    assert {each.id for each in documents(path)} == {str(2**60)}


def test_other_floats_stay_as_they_are(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": 0.1, "group": 2003.5, "title": 1e300, "text": "t"}])
    (found,) = documents(path)
    assert (found.id, found.group, found.title) == ("0.1", "2003.5", "1e+300")


def test_nan_is_absent(tmp_path):
    """pandas writes NaN where a number is missing."""
    nan = write(tmp_path / "a.jsonl", [{"id": math.nan, "group": math.nan, "title": math.nan, "text": "t"}])
    pyarrow.parquet.write_table(pyarrow.table({"group": [math.nan], "text": ["t"]}), tmp_path / "a.parquet")
    for path in (nan, tmp_path / "a.parquet"):
        assert [(each.id, each.group, each.title) for each in documents(path)] == [("source-0",) * 3]


@pytest.mark.parametrize("field", ["id", "group", "title"])
@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_is_refused(tmp_path, field, value):
    with pytest.raises(Malformed, match=rf"field '{field}' is a number that is not finite \(-?inf\)"):
        documents(write(tmp_path / "a.jsonl", [{field: value, "text": "t"}]))


TWICE = {
    "at the top": ('{"text": "first", "id": "a", "text": "second"}', "text"),
    "equal values": ('{"text": "one", "text": "one"}', "text"),
    "inside": ('{"text": "t", "meta": {"lang": "de", "lang": "en"}}', "lang"),
    "in a list": ('{"text": "t", "of": [{"a": 1, "a": 2}]}', "a"),
    "of other spelling": ('{"text": "t", "\\u0074ext": "u"}', "text"),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_key_that_stands_twice_in_a_record_is_refused(tmp_path, case):
    line, key = TWICE[case]
    (tmp_path / "a.jsonl").write_text(f'{{"text": "good"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(Malformed, match=f"line 2: the key {key} stands there twice; one value would be lost"):
        documents(tmp_path / "a.jsonl")


def test_a_column_that_stands_twice_in_a_table_is_refused(tmp_path):
    table = pyarrow.table([["first"], ["second"], ["x"]], names=["text", "text", "id"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(Malformed, match="the column 'text' stands there twice"):
        documents(tmp_path / "a.parquet")


def test_what_is_named_reaches_the_stages_and_no_more():
    source = SourceSettings(path="x", fields={"group": "country"})
    assert source.facts()["fields"] == {"group": "country"}
    assert SourceSettings(**json.loads(json.dumps(source.facts()))) == source
