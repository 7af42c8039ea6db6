"""Token stores: Megatron's bytes, whole round trips, and damage that is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.stage import UserError
from retro.corpus.mmididx import DTYPES, TokenStore, TokenWriter, token_dtype


def write(prefix: Path, documents, dtype="u2") -> None:
    with TokenWriter(prefix, dtype) as writer:
        for ids in documents:
            writer.add(np.array(ids, np.int64))
        writer.finish()


def test_the_index_has_megatrons_bytes(tmp_path):
    write(tmp_path / "tokens", [[1, 2, 3], [65535]])
    assert (tmp_path / "tokens.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        b"\x01\x00\x00\x00\x00\x00\x00\x00"  # version
        b"\x08"  # uint16
        b"\x02\x00\x00\x00\x00\x00\x00\x00"  # sequences
        b"\x03\x00\x00\x00\x00\x00\x00\x00"  # entries of the document table
        b"\x03\x00\x00\x00\x01\x00\x00\x00"  # lengths
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00"  # byte positions
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00"
    )
    assert (tmp_path / "tokens.bin").read_bytes() == b"\x01\x00\x02\x00\x03\x00\xff\xff"


def test_the_codes_are_megatrons():
    names = {
        1: "uint8",
        2: "int8",
        3: "int16",
        4: "int32",
        5: "int64",
        6: "float64",
        7: "float32",
        8: "uint16",
    }
    assert {code: dtype.name for code, dtype in DTYPES.items()} == names


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(["u1", "i1", "i2", "i4", "i8", "u2"]),
    documents=st.lists(st.lists(st.integers(0, 127), max_size=9), max_size=9),
)
def test_what_was_written_is_read(tmp_path_factory, dtype, documents):
    prefix = tmp_path_factory.mktemp("store") / "with.dots"
    write(prefix, documents, dtype)
    store = TokenStore(prefix)
    assert [list(store[number]) for number in range(len(store))] == documents
    assert store.tokens.dtype == np.dtype(dtype)
    assert store.offsets.dtype == np.int64
    assert list(store.offsets) == list(np.cumsum([0, *map(len, documents)]))
    assert store.sequences == len(documents)
    assert len(store.tokens) == store.offsets[-1]


def test_an_empty_store_opens(tmp_path):
    write(tmp_path / "tokens", [])
    store = TokenStore(tmp_path / "tokens")
    assert (len(store), store.sequences, len(store.tokens), list(store.offsets)) == (0, 0, 0, [0])


def test_tokens_are_mapped_not_read(tmp_path):
    write(tmp_path / "tokens", [[1, 2, 3]])
    assert isinstance(TokenStore(tmp_path / "tokens").tokens, np.memmap)


def test_a_document_may_be_several_sequences(tmp_path):
    """As Megatron writes them with --split-sentences."""
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 3, 3)
    body = np.array([2, 1, 3], "<i4").tobytes() + np.array([0, 8, 12], "<i8").tobytes()
    (tmp_path / "tokens.idx").write_bytes(head + body + np.array([0, 2, 3], "<i8").tobytes())
    (tmp_path / "tokens.bin").write_bytes(np.arange(6, dtype="<i4").tobytes())
    store = TokenStore(tmp_path / "tokens")
    assert (list(store.offsets), store.sequences) == ([0, 3, 6], 3)
    assert list(store[-1]) == [3, 4, 5]


def test_ids_that_do_not_fit_are_refused(tmp_path):
    with TokenWriter(tmp_path / "tokens", "u2") as writer:
        for wrong in (65536, -1):
            with pytest.raises(ValueError, match="do not fit"):
                writer.add(np.array([wrong]))


def test_the_dtype_follows_the_vocabulary():
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.int32


def test_nothing_appears_before_finish(tmp_path):
    with pytest.raises(RuntimeError), TokenWriter(tmp_path / "tokens", "u2") as writer:
        writer.add(np.array([1]))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def patched(at: int, data: bytes):
    return lambda content: content[:at] + data + content[at + len(data) :]


DAMAGES = {
    "magic": (patched(0, b"X"), "not an MMIDIDX index"),
    "empty": (lambda content: b"", "not an MMIDIDX index"),
    "version": (patched(9, b"\x02"), "version 2, wanted 1"),
    "dtype": (patched(17, b"\x63"), "dtype code 99"),
    "more sequences": (patched(18, b"\x09"), "9 sequences"),
    "absurd sequences": (patched(18, b"\xff" * 8), "sequences"),
    "cut off": (lambda content: content[:-1], "are 82"),
    "longer": (lambda content: content + b"\0", "are 82"),
    "length": (patched(34, b"\x02"), "follow each other"),
    "negative length": (patched(34, b"\xff\xff\xff\xff"), "follow each other"),
    "position": (patched(42, b"\x02"), "follow each other"),
    "document table": (patched(58, b"\x01"), "document table"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused_by_name(tmp_path, damage):
    write(tmp_path / "tokens", [[1, 2, 3], [4]])
    change, message = DAMAGES[damage]
    path = tmp_path / "tokens.idx"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        TokenStore(tmp_path / "tokens")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0\0"])
def test_tokens_that_do_not_fit_the_index_are_refused(tmp_path, change):
    write(tmp_path / "tokens", [[1, 2, 3], [4]])
    path = tmp_path / "tokens.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=r"tokens\.bin: \d+ bytes, but tokens\.idx tells of 4 tokens"):
        TokenStore(tmp_path / "tokens")


@pytest.mark.parametrize("name", ["tokens.bin", "tokens.idx"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path / "tokens", [[1]])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: no such file"):
        TokenStore(tmp_path / "tokens")
