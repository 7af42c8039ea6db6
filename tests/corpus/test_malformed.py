"""A zoo of malformed input: a clear message with file and line, or a line in skipped.jsonl; never silence."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from retro.corpus.readers import Malformed, Reader
from retro.corpus.settings import SourceSettings

GOOD = b'{"text": "good"}\n'
PLENTY = b"".join(b'{"text": "document number %d, which says this"}\n' % number for number in range(9_000))
ZOO = {
    # name: (bad line between two good ones, what the message says)
    "bad JSON": (b'{"text": "a"', "not valid JSON"),
    "single quotes": (b"{'text': 'a'}", "not valid JSON"),
    "raw control character": (b'{"text": "a\tb"}', "not valid JSON (Invalid control character"),
    "two objects": (b'{"text": "a"} {"text": "b"}', "not valid JSON (Extra data"),
    "bad UTF-8": (b'{"text": "\xff"}', "not valid UTF-8 (byte 0xff at byte 11)"),
    "Latin-1": ('{"text": "Grüße"}'.encode("latin-1"), "not valid UTF-8 (byte 0xfc"),
    "surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "not valid UTF-8"),
    "lone surrogate": (b'{"text": "a\\ud800b"}', "holds \\ud800"),
    "lone surrogate in id": (b'{"id": "\\udc00", "text": "a"}', "holds \\udc00"),
    "lone surrogate in title": (b'{"title": "\\udfff", "text": "a"}', "holds \\udfff"),
    "array": (b'["a"]', "wanted a JSON object, found a list"),
    "string": (b'"a"', "wanted a JSON object, found text"),
    "number": (b"5", "wanted a JSON object, found a number"),
    "null": (b"null", "wanted a JSON object, found null"),
    "no text": (b'{"body": "a", "id": "b"}', "no field 'text', only 'body', 'id'"),
    "empty object": (b"{}", "no field 'text', only none"),
    "null text": (b'{"text": null}', "field 'text' is null, wanted text"),
    "number text": (b'{"text": 5}', "field 'text' is a number, wanted text"),
    "list text": (b'{"text": ["a"]}', "field 'text' is a list, wanted text"),
    "object id": (b'{"id": {}, "text": "a"}', "field 'id' is an object, wanted text or a number"),
    "list group": (b'{"group": [], "text": "a"}', "field 'group' is a list"),
    "infinite title": (b'{"title": Infinity, "text": "a"}', "field 'title' is a number"),
    "endless brackets": (b"[" * 100_000, "not JSON that can be read"),
    "endless number": (b'{"id": ' + b"1" * 5_000 + b', "text": "a"}', "not JSON that can be read"),
}  # fmt: skip


def source(path) -> SourceSettings:
    return SourceSettings(path=str(path))


def skipping(path) -> tuple[list, list]:
    """Texts read, and what was skipped."""
    notes = []
    reader = Reader(source(path), "source", "skip", notes.append)
    found = [document.text for document in reader]
    assert reader.skipped == len(notes)
    return found, notes


@pytest.mark.parametrize("animal", ZOO)
def test_a_bad_line_stops_with_file_and_line(tmp_path, animal):
    line, reason = ZOO[animal]
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(Malformed) as caught:
        list(Reader(source(path), "source"))
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ")
    assert reason in message
    assert "dataset.on_error" in message
    assert "\n" not in message
    message.encode()


@pytest.mark.parametrize("animal", ZOO)
def test_a_bad_line_is_skipped_and_listed(tmp_path, animal):
    line, reason = ZOO[animal]
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    found, notes = skipping(path)
    assert found == ["good", "good"]
    assert [(note["file"], note["line"]) for note in notes] == [(str(path), 2)]
    assert reason in notes[0]["reason"]
    json.dumps(notes, ensure_ascii=False).encode()


def test_a_pretty_printed_file_gets_a_hint(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}], indent=1))
    with pytest.raises(Malformed, match="one JSON object a line is wanted"):
        list(Reader(source(path), "source"))


CUT = {
    "a.jsonl.gz": gzip.compress(PLENTY),
    "a.jsonl.zst": zstandard.ZstdCompressor().compress(PLENTY),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_off_keeps_what_came_before(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CUT[name][: len(CUT[name]) * 2 // 3])
    with pytest.raises(Malformed, match=r"line \d+: .*cut off"):
        list(Reader(source(path), "source"))
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    found, notes = skipping(tmp_path)
    assert found[-1] == "good"
    assert [(note["file"], note["line"]) for note in notes] == [(str(path), len(found))]
    assert found[:-1] == [json.loads(line)["text"] for line in PLENTY.split(b"\n")[: len(found) - 1]]


@pytest.mark.parametrize("name", CUT)
def test_a_last_byte_that_is_missing_is_noticed(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CUT[name][:-1])
    found, notes = skipping(path)
    assert len(notes) == 1
    assert len(found) <= 9_000


@pytest.mark.parametrize("data", [b"plain text", b"\x1f\x8b\x08\x00broken", b"\x28\xb5\x2f\xfdbroken"])
@pytest.mark.parametrize("name", CUT)
def test_data_that_is_not_compressed_as_named_is_refused(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(Malformed, match=r"line 1: .*(broken|cut off)"):
        list(Reader(source(path), "source"))


@pytest.mark.parametrize("name", CUT)
def test_a_flipped_bit_is_noticed(tmp_path, name):
    path = tmp_path / name
    data = bytearray(CUT[name])
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    notes = []
    reader = Reader(source(path), "source", "skip", notes.append)
    list(reader)
    # zstd checks sums only where the writer put some, so there the damage may show in the records alone
    assert notes or name.endswith(".zst")


@pytest.mark.parametrize("data", [b"", b"\n\n \r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_an_empty_file_is_told(tmp_path, data):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(Malformed, match="line 1: the file is empty"):
        list(Reader(source(path), "source"))
    assert skipping(path)[0] == []


def test_a_text_file_of_other_encoding_is_told_by_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\ntwo\ndrei Grüße".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes(b"good")
    with pytest.raises(Malformed, match=r"a\.txt, line 3: not valid UTF-8 \(byte 0xfc\)"):
        list(Reader(source(tmp_path), "source"))
    assert skipping(tmp_path)[0] == ["good"]


def table(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def test_a_parquet_file_without_the_text_column_is_told(tmp_path):
    table(tmp_path / "a.parquet", body=["a"], id=["b"])
    with pytest.raises(Malformed, match=r"a\.parquet, row 1: no column 'text', only 'body', 'id'"):
        list(Reader(source(tmp_path), "source"))


def test_bad_parquet_rows_are_told(tmp_path):
    path = tmp_path / "a.parquet"
    table(path, text=["good", None, "good"], id=["a", "b", None])
    with pytest.raises(Malformed, match="row 2: field 'text' is null"):
        list(Reader(source(path), "source"))
    found, notes = skipping(path)
    assert (found, [note["line"] for note in notes]) == (["good", "good"], [2])


def test_bad_utf8_in_parquet_is_told(tmp_path):
    path = tmp_path / "a.parquet"
    cells = pyarrow.array([b"good", b"\xff", b"good"]).view(pyarrow.string())
    table(path, text=cells)
    found, notes = skipping(path)
    assert found == ["good", "good"]
    assert [(note["line"], note["reason"]) for note in notes] == [(2, "not valid UTF-8")]


@pytest.mark.parametrize("size", [0, 3, -20])
def test_a_broken_parquet_file_is_told(tmp_path, size):
    path = tmp_path / "a.parquet"
    table(path, text=["a"] * 1000)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Malformed, match=r"a\.parquet, row 1: broken \.parquet data") as caught:
        list(Reader(source(path), "source"))
    assert "\n" not in str(caught.value)


def test_an_empty_parquet_file_is_told(tmp_path):
    table(tmp_path / "a.parquet", text=pyarrow.array([], pyarrow.string()))
    with pytest.raises(Malformed, match="the file is empty"):
        list(Reader(source(tmp_path), "source"))


def test_text_as_bytes_in_parquet_is_told(tmp_path):
    table(tmp_path / "a.parquet", text=[b"bytes"])
    with pytest.raises(Malformed, match="field 'text' is bytes, wanted text"):
        list(Reader(source(tmp_path), "source"))
