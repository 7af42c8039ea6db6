"""Dates of documents: read in every way that records have them, refused where it is not clear what is meant, stored."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from retro.base.artifacts import read_manifest
from retro.base.names import DOCUMENT, UNDATED, dated
from retro.corpus import tokenize, train_tokenizer
from retro.corpus.dates import last_second, told
from retro.corpus.files import Damaged
from retro.corpus.readers import Malformed, Reader
from retro.corpus.settings import SourceSettings
from tests.corpus.test_corpus_stages import TINY, call, tokenize_settings, train_settings, write


@pytest.mark.parametrize(
    ("value", "end"),
    [
        ("2015", "2015-12-31T23:59:59"),
        (2015, "2015-12-31T23:59:59"),
        (2015.0, "2015-12-31T23:59:59"),  # as pandas writes a year beside missing ones
        (Decimal("2015"), "2015-12-31T23:59:59"),
        ("2016-02", "2016-02-29T23:59:59"),
        ("2015-03-01", "2015-03-01T23:59:59"),
        ("20150301", "2015-03-01T23:59:59"),
        ("2015-W10-7", "2015-03-08T23:59:59"),
        ("2015-W10", "2015-03-08T23:59:59"),
        ("2015W10", "2015-03-08T23:59:59"),
        ("2015-03-01T10", "2015-03-01T10:59:59"),
        ("20150301T1030Z", "2015-03-01T10:30:59"),
        ("20150301T103000", "2015-03-01T10:30:00"),
        ("2015-03-01T10:00:00Z", "2015-03-01T10:00:00"),
        ("2015-03-01 23:30+02:00", "2015-03-01T21:30:59"),
        ("2015-03-01T23:30:00.5-05:00", "2015-03-02T04:30:00"),
        ("2015-03-01T10:00:00", "2015-03-01T10:00:00"),
        (1425168000, "2015-03-01T00:00:00"),
        (1425168000.75, "2015-03-01T00:00:00"),
        (-2208988800, "1900-01-01T00:00:00"),
        (date(2015, 3, 1), "2015-03-01T23:59:59"),
        (datetime(2015, 3, 1, 5), "2015-03-01T05:00:00"),
    ],
)
def test_a_date_stands_for_the_last_second_that_it_can_mean(value, end):
    wanted = datetime.fromisoformat(end).replace(tzinfo=UTC)
    assert last_second(value, "when") == wanted.timestamp()
    assert told(last_second(value, "when")) == (end[:10] if end.endswith("23:59:59") else f"{end}Z")


@pytest.mark.parametrize(
    "value",
    ["spring", "2015-13", "2015-02-30", "0000", "03/01/2015", " 2015", "1425168000", "0001-01-01T00:00+14:00", 201503]
    + [20150301, 999, 2015.5, True, 1.4e12, 1e300, float("inf"), [2015], b"2015"],
)
def test_what_is_no_date_or_could_be_two_is_refused(value):
    """20150301 is a day or a second of 1970, 1.4e12 are milliseconds."""
    with pytest.raises(Damaged, match=r"field 'when' is .*wanted a date, such as 2015, 2015-03-01"):
        last_second(value, "when")


RECORDS = [
    {"text": "one", "when": "2015-03-01"},
    {"text": "two", "when": 1999},
    {"text": "three", "when": None},
    {"text": "four"},
]


def test_records_are_refused_by_name_or_left_out_and_those_without_a_date_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", [*RECORDS, {"text": "five", "when": "soon"}])
    source = SourceSettings(path=str(path), fields={"date": "when"})
    with pytest.raises(Malformed, match=r"a\.jsonl, line 5: field 'when' is 'soon', wanted a date"):
        list(Reader(source, "a"))
    reader = Reader(source, "a", "skip")
    assert [each.date for each in reader] == [last_second("2015-03-01", ""), last_second(1999, ""), None, None]
    assert reader.skipped == 1 and reader.fields.counts() == {"absent": {"when": 2}}
    assert any("absent in 2 of 4 records: it has no date" in line for line in reader.fields.remarks())


def test_dates_of_a_table_are_taken_as_they_are(tmp_path):
    """Also in nanoseconds, which pandas writes and Python's dates do not have."""
    second = 1_425_168_000 * 10**9
    columns = {
        "text": ["one", "two"],
        "day": pyarrow.array([date(2015, 3, 1), None]),
        "time": pyarrow.array([second + 7, None], pyarrow.timestamp("ns", "UTC")),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for field, wanted in {"day": "2015-03-01", "time": "2015-03-01T00:00:00Z"}.items():
        source = SourceSettings(path=str(tmp_path / "a.parquet"), fields={"date": field})
        assert [each.date for each in Reader(source, "a")] == [last_second(wanted, ""), None]


def test_parts_of_a_document_have_its_date(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "word " * 100, "when": 2015}])
    found = list(Reader(SourceSettings(path=str(path), fields={"date": "when"}, cut=200), "a"))
    assert len(found) == 3 and {each.date for each in found} == {last_second(2015, "")}


def test_dates_are_stored_with_the_documents_only_where_the_config_names_them(tmp_path, monkeypatch):
    tokenizer, path = tmp_path / "tokenizer/manifest.json", write(tmp_path / "a.jsonl", RECORDS * 400)
    call(train_tokenizer, monkeypatch, train_settings(TINY), tokenizer)

    def made(name, *more, notes=(), **source):
        output = tmp_path / name
        call(tokenize, monkeypatch, tokenize_settings(path, **source), output, "--tokenizer", tokenizer, *more)
        return read_manifest(output) if not notes and "--shard" not in more else output

    whole = made("whole/manifest.json", fields={"date": "when"})
    table = whole.array("documents.npy")
    assert table.dtype == dated(DOCUMENT)
    assert table["date"][:4].tolist() == [last_second("2015-03-01", ""), last_second(1999, ""), UNDATED, UNDATED]
    lines = whole.file("documents.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("date") for line in lines[:4]] == ["2015-03-01", "1999-12-31", None, None]
    notes = [made(f"parts/shards/{n}-of-2.json", "--shard", f"{n}-of-2", fields={"date": "when"}) for n in range(2)]
    parts = made("parts/manifest.json", "--shards", *notes, fields={"date": "when"})
    assert parts.array("documents.npy").tobytes() == table.tobytes() and parts.counts == whole.counts
    plain = made("plain/manifest.json").array("documents.npy")
    assert plain.dtype == DOCUMENT and np.array_equal(plain["bytes"], table["bytes"])
