"""Tokenizers of each kind: text comes back, special tokens stay text, bytes are counted."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.stage import UserError
from retro.corpus import tokenizers
from retro.corpus.tokenizers import Tokenizer

EOD = "<|endoftext|>"
TEXTS = {
    "German": "Grüße aus Köln – Weißwürste für 3,50 €",
    "Hebrew": "שָׁלוֹם עוֹלָם, מה שלומך?",
    "Chinese": "检索增强的语言模型。你好，世界！",
    "Hindi": "नमस्ते दुनिया, आप कैसे हैं?",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301",
    "controls": "a\0b\x07c\x1b[0m\x7f\u2028\u2029\ufeff\ufffe",
    "white space": "  two  spaces\t\ttabs\n\n\nlines\r\nreturn \n",
    "astral": "\U0001f600\U0010ffff",
}


@pytest.fixture(scope="module", params=["bpe", "gpt2"])
def byte_level(request, bpe_folder, gpt2_folder) -> Tokenizer:
    return Tokenizer.open(bpe_folder if request.param == "bpe" else gpt2_folder, request.param, EOD)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_byte_level_text_comes_back(byte_level, text):
    (ids,) = byte_level.encode_batch([text])
    assert ids.dtype == np.int64
    assert byte_level.decode(ids) == text
    assert byte_level.token_bytes[ids].sum() == len(text.encode())


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(max_size=60), max_size=4))
def test_any_text_comes_back_and_its_bytes_add_up(bpe, texts):
    encoded = bpe.encode_batch(texts)
    assert [bpe.decode(ids) for ids in encoded] == texts
    assert [bpe.token_bytes[ids].sum() for ids in encoded] == [len(text.encode()) for text in texts]


def test_both_forms_of_a_tokenizer_agree(bpe_folder, gpt2_folder):
    one, other = Tokenizer.open(bpe_folder, "bpe", EOD), Tokenizer.open(gpt2_folder, "gpt2", EOD)
    assert (one.vocab_size, one.eod_id) == (other.vocab_size, other.eod_id)
    assert np.array_equal(one.token_bytes, other.token_bytes)
    for ours, theirs in zip(*(t.encode_batch(list(TEXTS.values())) for t in (one, other)), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("text", [EOD, f"a{EOD}b", f"{EOD}\n{EOD}", f" {EOD} "])
def test_text_that_spells_the_special_token_stays_text(byte_level, text):
    (ids,) = byte_level.encode_batch([text])
    assert byte_level.eod_id not in ids
    assert byte_level.decode(ids) == text


def test_special_tokens_stand_for_no_bytes_and_are_dropped(byte_level):
    (ids,) = byte_level.encode_batch(["text"])
    assert byte_level.token_bytes[byte_level.eod_id] == 0
    assert byte_level.pad_id == byte_level.eod_id
    assert byte_level.decode([byte_level.eod_id, *ids, byte_level.pad_id]) == "text"


def test_half_a_character_is_replaced(bpe):
    (ids,) = bpe.encode_batch(["\U0010ffff"])
    assert bpe.decode(ids[:-1]).strip("\ufffd") == ""


def test_nothing_encodes_to_nothing(byte_level):
    assert byte_level.encode_batch([]) == []
    assert [list(ids) for ids in byte_level.encode_batch(["", ""])] == [[], []]


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab. \n\r\té中\u2028\x1c'", min_size=30, max_size=120))
def test_long_text_encoded_in_pieces_gives_the_same_ids(bpe, text):
    (whole,) = bpe.encode_batch([text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "LONG", 10)
        (pieces,) = bpe.encode_batch([text])
    assert np.array_equal(whole, pieces)


def test_a_long_text_is_really_cut(bpe, monkeypatch):
    monkeypatch.setattr(tokenizers, "LONG", 10)
    assert len(bpe._engine.cut("some words\n" * 10)) > 3


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_sentencepiece_spells_every_text_it_does_not_normalize(sentencepiece_folder, text):
    tokenizer = Tokenizer.open(sentencepiece_folder, "sentencepiece", EOD)
    normalized = tokenizer._engine.model.normalize(text).replace("▁", " ").strip()
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == normalized
    # one more byte: the space that SentencePiece puts before a text
    assert tokenizer.token_bytes[ids].sum() == len(normalized.encode()) + 1


def test_sentencepiece_ends_documents_with_its_own_piece(sentencepiece_folder):
    tokenizer = Tokenizer.open(sentencepiece_folder, "sentencepiece", EOD)
    assert tokenizer.eod_id == tokenizer._engine.model.eos_id()
    assert tokenizer.vocab_size == 700
    named = Tokenizer.open(sentencepiece_folder, "sentencepiece", "<s>")
    assert named.eod_id == tokenizer._engine.model.bos_id()


def test_sentencepiece_keeps_special_pieces_in_text_as_text(sentencepiece_folder):
    tokenizer = Tokenizer.open(sentencepiece_folder, "sentencepiece", EOD)
    (ids,) = tokenizer.encode_batch(["one </s> two <s> three"])
    assert tokenizer.eod_id not in ids
    assert tokenizer.decode([tokenizer.eod_id, *ids]) == "one </s> two <s> three"


def test_a_token_that_is_missing_is_told_with_those_there_are(bpe_folder):
    with pytest.raises(UserError, match=r"no token '<eod>'.*'<\|endoftext\|>'"):
        Tokenizer.open(bpe_folder, "tokenizer.json", "<eod>")


def test_an_ordinary_word_cannot_end_documents(bpe_folder):
    with pytest.raises(UserError, match="text that contains it would end a document"):
        Tokenizer.open(bpe_folder, "tokenizer.json", "a")


BROKEN = {
    "not JSON": ("bpe", {"tokenizer.json": "{"}),
    "empty": ("bpe", {"tokenizer.json": ""}),
    "other JSON": ("tokenizer.json", {"tokenizer.json": "[1]"}),
    "merges of another": ("gpt2", {"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\nx y\n"}),
    "no model": ("sentencepiece", {"tokenizer.model": "text"}),
    "empty model": ("sentencepiece", {"tokenizer.model": ""}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_no_tokenizer_are_named(tmp_path, case):
    kind, files = BROKEN[case]
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"not a tokenizer of type {kind}") as caught:
        Tokenizer.open(tmp_path, kind, EOD)
    assert str(tmp_path / next(iter(files))) in str(caught.value)


def changed(folder, to, change) -> None:
    facts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(facts)
    (to / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")


def test_a_tokenizer_that_cannot_spell_all_text_is_refused(bpe_folder, tmp_path):
    changed(bpe_folder, tmp_path, lambda facts: facts.update(pre_tokenizer={"type": "Whitespace"}, decoder=None))
    with pytest.raises(UserError, match="cannot spell all text"):
        Tokenizer.open(tmp_path, "tokenizer.json", EOD)


def test_a_byte_without_a_token_is_refused(bpe_folder, tmp_path):
    def without_z(facts):
        vocabulary = {t: i for t, i in facts["model"]["vocab"].items() if "z" not in t}
        facts["model"]["vocab"] = {token: number for number, token in enumerate(vocabulary)}
        facts["model"]["merges"] = [pair for pair in facts["model"]["merges"] if "z" not in "".join(pair)]

    changed(bpe_folder, tmp_path, without_z)
    with pytest.raises(UserError, match="1 of the 256 bytes have no token"):
        Tokenizer.open(tmp_path, "tokenizer.json", EOD)


def test_truncation_and_padding_of_a_given_file_are_off(bpe_folder, tmp_path):
    def short(facts):
        facts["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
        facts["padding"] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
                            "pad_id": 0, "pad_type_id": 0, "pad_token": EOD}  # fmt: skip

    changed(bpe_folder, tmp_path, short)
    text = "a sentence of some words"
    tokenizer = Tokenizer.open(tmp_path, "tokenizer.json", EOD)
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod_id not in ids
