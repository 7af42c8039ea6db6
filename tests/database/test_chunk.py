"""Chunks cover their documents exactly, never cross them, and say how many bytes they stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.artifacts import read_manifest
from retro.base.names import CHUNK, DOCUMENT, SPLITS
from retro.base.stage import UserError
from retro.corpus.mmididx import TokenStore, TokenWriter
from retro.corpus.tokenizers import Tokenizer
from retro.database import chunk
from retro.database.chunk import cut, offsets_of, text_hashes
from tests.database.stages import M, stage

VOCABULARY = 50


def table_of(folder, documents: list[list[int]], length: int, document_bytes=None, block: int = 7) -> tuple:
    """The chunk table of documents of token ids, made in small blocks; token t stands for t % 5 bytes."""
    token_bytes = np.arange(VOCABULARY, dtype=np.int64) % 5
    with TokenWriter(folder / "tokens", np.uint16) as writer:
        for ids in documents:
            writer.add(ids)
        writer.finish()
    store, facts = TokenStore(folder / "tokens"), np.zeros(len(documents), DOCUMENT)
    facts["bytes"] = [token_bytes[ids].sum() for ids in documents] if document_bytes is None else document_bytes
    facts["split"], facts["group"] = np.arange(len(documents)) % 3, np.arange(len(documents)) + 100
    table = np.empty(int(offsets_of(store, length)[-1]), CHUNK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk, "BLOCK", block)
        cut(store, facts, token_bytes, length, table)
    return table, store, facts


DOCUMENTS = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=40), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, length=st.integers(2, 17))
def test_chunks_cover_each_document_in_order_and_never_cross(tmp_path_factory, documents, length):
    table, store, facts = table_of(tmp_path_factory.mktemp("t"), documents, length)
    for number, ids in enumerate(documents):
        rows = table[table["document"] == number]
        read = [
            store.tokens[start : start + size].tolist()
            for start, size in zip(rows["start"], rows["length"], strict=True)
        ]
        assert read == [ids[begin : begin + length] for begin in range(0, len(ids), length)]
        assert (rows["split"] == facts["split"][number]).all() and (rows["group"] == facts["group"][number]).all()
        assert rows["bytes"].sum() == facts["bytes"][number]
    assert (np.diff(table["start"]) > 0).all() if len(table) > 1 else True


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, length=st.integers(2, 17), data=st.data())
def test_bytes_of_a_document_sum_to_its_text_even_where_tokens_disagree(tmp_path_factory, documents, length, data):
    filled = [(max(1, len(ids)) and ids) or [1] for ids in documents]
    wanted = [data.draw(st.integers(0, 300)) for _ in filled]
    table, _, _ = table_of(tmp_path_factory.mktemp("t"), filled, length, wanted)
    assert [int(table["bytes"][table["document"] == n].sum()) for n in range(len(filled))] == wanted


def test_text_hash_is_equal_for_equal_tokens_only():
    random = np.random.default_rng(0)
    chunks = [random.integers(0, 5, random.integers(1, 6)).tolist() for _ in range(3000)]
    hashes = text_hashes(np.concatenate(chunks), np.array([len(ids) for ids in chunks]))
    seen = {}
    for ids, value in zip(map(tuple, chunks), hashes.tolist(), strict=True):
        assert seen.setdefault(ids, value) == value
    assert len(set(seen.values())) == len(seen)


def mixed(value: int) -> int:
    """SplitMix64's output function, in Python's integers."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def test_text_hash_is_the_documented_one():
    """The hash is stored: it may not change with a version of numpy or a machine."""
    wanted = [mixed((len(ids) + sum(mixed((j + 1 << 32) + id) for j, id in enumerate(ids))) % 2**64)
              for ids in ([1, 2, 3], [1])]  # fmt: skip
    assert text_hashes(np.array([1, 2, 3, 1]), np.array([3, 1])).tolist() == wanted
    assert wanted == [8669114437404451888, 1314251189269621430]


def test_stage_counts_chunks_padding_and_splits(corpus):
    manifest = read_manifest(corpus.manifest("chunks", "main"), "chunks")
    table, tokens = manifest.array("chunks.npy"), read_manifest(corpus.manifest("tokens", "main"))
    assert manifest.counts["chunks"] == len(table) == sum(manifest.counts["by_split"].values())
    assert manifest.counts["padding_share"] == pytest.approx(1 - table["length"].sum() / (len(table) * M), abs=1e-6)
    assert table["length"].sum() == tokens.counts["tokens"]
    assert table["bytes"].sum() == tokens.counts["bytes"]
    book = read_manifest(corpus.manifest("chunks", "open")).array("chunks.npy")
    assert set(book["split"]) == {SPLITS.index("book")}


def test_every_document_ends_in_eod(corpus):
    tokens = read_manifest(corpus.manifest("tokens", "main"))
    store = TokenStore(tokens.file("tokens.bin").with_suffix(""))
    table = read_manifest(corpus.manifest("chunks", "main")).array("chunks.npy")
    last = np.flatnonzero(np.diff(table["document"], append=-1))
    eod = Tokenizer.load(corpus.manifest("tokenizer")).eod_id
    assert (store.tokens[table["start"][last] + table["length"][last] - 1] == eod).all()


def test_a_store_of_another_tokenizer_is_refused(corpus, tmp_path):
    """Ids the tokenizer does not know: the message names the file, the id and the way out."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    source = corpus.manifest("tokens", "main")
    for file in source.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    ids = np.fromfile(folder / "tokens.bin", np.uint16)
    ids[5] = 60_000
    ids.tofile(folder / "tokens.bin")
    with pytest.raises(UserError, match=r"tokens\.bin: token id 60000.*another tokenizer"):
        stage(
            "retro.database.chunk",
            settings={"chunk_length": M},
            tokens=folder / "manifest.json",
            tokenizer=corpus.manifest("tokenizer"),
            output=tmp_path / "chunks/manifest.json",
        )
    assert not (tmp_path / "chunks/manifest.json").exists()
