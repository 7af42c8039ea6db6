"""Tokenizers that change a text, or do by chance: refused, switched off, or allowed by name and told of."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.corpus import documents, tokenize, train_tokenizer
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from tests.corpus.test_corpus_stages import TINY, call, tokenize_settings, train_settings, write
from tests.corpus.test_tokenizers import EOD, changed

ENGLISH = "The harbour of Norvik lies north of the mill, the council says. "
CHINESE = "港口磨坊河流市场学校桥梁"


def model(**settings) -> bytes:
    made = io.BytesIO()
    texts = [ENGLISH, "Salt and copper came by ferry; oats and timber went.", "A market, a school and a bridge."] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=made, vocab_size=400, hard_vocab_limit=False, model_type="unigram",
        num_threads=1, minloglevel=2, **settings,
    )  # fmt: skip
    return made.getvalue()


EXACT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """SentencePiece models: `exact` spells every text, `unspelling` what it knows, `normal` changes white space."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "exact": model(byte_fallback=True, **EXACT),
        "unspelling": model(byte_fallback=False, **EXACT),
        "normal": model(byte_fallback=True),
    }
    for name, data in made.items():
        (folder / f"{name}.model").write_bytes(data)
    return {name: folder / f"{name}.model" for name in made}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Take a given tokenizer and tokenize texts with it; returns the manifest of the tokens."""

    def go(texts, path, shards=1, lossy=None):
        kind = "sentencepiece" if path.suffix == ".model" else "tokenizer.json"
        given = {"type": kind, "path": str(path), "vocab_size": None} | ({"lossy": lossy} if lossy else {})
        tokenizer, output = tmp_path / "tokenizer" / "manifest.json", tmp_path / "tokens" / "manifest.json"
        call(train_tokenizer, monkeypatch, train_settings(TINY, **given), tokenizer)
        source = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
        settings, notes = tokenize_settings(source), []
        for number in range(shards if shards > 1 else 0):
            notes.append(output.parent / "shards" / f"{number}-of-{shards}.json")
            more = ("--tokenizer", tokenizer, "--shard", f"{number}-of-{shards}")
            call(tokenize, monkeypatch, settings, notes[-1], *more)
        more = ("--shards", *notes) if notes else ()
        call(tokenize, monkeypatch, settings, output, "--tokenizer", tokenizer, *more)
        return read_manifest(output, "tokens")

    return go


def given(bpe_folder, folder, **change) -> Path:
    """The trained tokenizer.json with some of its sections changed."""
    changed(bpe_folder, folder, lambda facts: facts.update(change))
    return folder / "tokenizer.json"


LOSSY = {
    # normalizer: (its section, a text that it changes, what is said)
    "Lowercase": ({"type": "Lowercase"}, "a Harbour", "'a Harbour' becomes 'a harbour'"),
    "StripAccents": (
        {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
        "Köln",
        "'Köln' becomes 'Koln'",
    ),
    "NFKC": ({"type": "NFKC"}, "1 ﬁsh", "'1 ﬁsh' becomes '1 fish'"),
    "NFC": ({"type": "NFC"}, "e\u0301", "becomes"),
    "Replace": ({"type": "Replace", "pattern": {"String": "mill"}, "content": "MILL"}, "a mill", "becomes 'a MILL'"),
    "Strip": (
        {"type": "Strip", "strip_left": True, "strip_right": True},
        " a mill\n",
        "becomes 'a mill'",
    ),
}


@pytest.mark.parametrize("case", LOSSY)
def test_a_normalizer_that_changes_a_text_is_refused(made, bpe_folder, tmp_path, case):
    normalizer, text, said = LOSSY[case]
    with pytest.raises(
        UserError, match=rf"a\.jsonl, line 2: the tokenizer changes this text: .*{said}.*lossy to allow"
    ):
        made(["plain words", text], given(bpe_folder, tmp_path, normalizer=normalizer))


@pytest.mark.parametrize("case", LOSSY)
def test_a_normalizer_may_be_allowed_and_bytes_are_of_what_is_modelled(made, bpe_folder, tmp_path, case):
    normalizer, text, _ = LOSSY[case]
    manifest = made(["plain words", text], given(bpe_folder, tmp_path, normalizer=normalizer), lossy="allow")
    tokenizer, store = Tokenizer.load(tmp_path / "tokenizer" / "manifest.json"), TokenStore(manifest.folder / "tokens")
    modelled = [len(tokenizer.decode(store[number]).encode()) for number in range(2)]
    assert manifest.array("documents.npy")["bytes"].tolist() == modelled
    assert (manifest.counts["changed"], manifest.counts["unknown"]) == (1, 0)
    assert read_manifest(tmp_path / "tokenizer" / "manifest.json").settings["tokenizer"]["lossy"] == "allow"


def test_a_normalizer_that_changes_no_text_of_the_corpus_is_accepted(made, bpe_folder, tmp_path):
    counts = made(["plain words", "no capitals"], given(bpe_folder, tmp_path, normalizer={"type": "Lowercase"})).counts
    assert (counts["documents"], counts["bytes"]) == (2, 22)
    assert "changed" not in counts


def test_a_rare_change_of_length_is_found_in_every_document(made, bpe_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "FIRST", 0)
    monkeypatch.setattr(documents, "SHARE", 0.0)
    texts = ["plain words"] * 999 + ["one ﬁsh"]
    with pytest.raises(UserError, match="line 1000: the tokenizer changes this text"):
        made(texts, given(bpe_folder, tmp_path, normalizer={"type": "NFKC"}))


def test_a_change_of_the_same_length_is_found_in_a_sample(made, bpe_folder, tmp_path):
    texts = ["plain words"] * 600 + ["A Harbour"] * 600
    with pytest.raises(UserError, match=r"the tokenizer changes this text"):
        made(texts, given(bpe_folder, tmp_path, normalizer={"type": "Lowercase"}))


def test_text_that_a_splitting_rule_loses_is_refused(made, bpe_folder, tmp_path):
    """Byte-level by its decoder only: characters beyond ASCII have no token and vanish."""
    path = given(bpe_folder, tmp_path, pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(UserError, match="the tokenizer changes this text"):
        made(["two words"], path)


def test_a_space_before_the_text_is_no_change(made, bpe_folder, tmp_path):
    rule = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    counts = made(["words", " words", "  words"], given(bpe_folder, tmp_path, pre_tokenizer=rule)).counts
    assert counts["bytes"] == 5 + 6 + 7


def test_the_end_of_a_long_text_is_compared_by_its_length(made, bpe_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "LENGTH", 100)
    long = "plain words " * 100
    assert made([long], given(bpe_folder, tmp_path, normalizer={"type": "NFKC"})).counts["bytes"] == len(long)
    with pytest.raises(UserError, match=r"line 1"):
        made([f"Plain {long}"], given(bpe_folder, tmp_path, normalizer={"type": "Lowercase"}))


@pytest.mark.parametrize("shards", [1, 2])
def test_characters_without_a_token_are_refused_by_name(made, models, shards):
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: the tokenizer has no token for 港 口 .*lossy to allow"):
        made([ENGLISH, CHINESE * 40], models["unspelling"], shards)


def test_one_unknown_character_among_many_documents_is_refused(made, models, monkeypatch):
    monkeypatch.setattr(documents, "FIRST", 0)
    with pytest.raises(UserError, match="line 500: the tokenizer has no token for ¤ of"):
        made([ENGLISH] * 499 + ["the price is ¤"], models["unspelling"])


@pytest.mark.parametrize("shards", [1, 2])
def test_unknown_characters_may_be_allowed_and_count_no_bytes(made, models, tmp_path, shards, capsys):
    manifest = made([ENGLISH, f"Norvik {CHINESE}"], models["unspelling"], shards, lossy="allow")
    tokenizer, store = Tokenizer.load(tmp_path / "tokenizer" / "manifest.json"), TokenStore(manifest.folder / "tokens")
    assert manifest.array("documents.npy")["bytes"].tolist() == [len(ENGLISH), len("Norvik ")]
    assert tokenizer.count_unknown(store.tokens) == manifest.counts["unknown"] == 1
    assert manifest.counts["changed"] == 1
    assert "warning: the tokenizer changed 1 of 2 documents, 1 tokens are unknown" in capsys.readouterr().err


def test_a_text_of_which_nothing_is_left_is_refused_all_the_same(made, models):
    with pytest.raises(UserError, match="has no token for any of this text"):
        made([ENGLISH, CHINESE], models["unspelling"], lossy="allow")


def test_a_model_without_byte_fallback_does_for_texts_that_it_spells(made, models):
    assert made([ENGLISH, ENGLISH * 3], models["unspelling"]).counts["bytes"] == 4 * len(ENGLISH)


def test_prompts_with_characters_without_a_token_are_refused(models, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(models["unspelling"].read_bytes())
    with pytest.raises(UserError, match="has no token for 河 流"):
        Tokenizer.open(tmp_path, "sentencepiece", EOD).encode_batch(["the mill", "a 河流"])
    assert len(Tokenizer.open(tmp_path, "sentencepiece", EOD, lossy=True).encode_batch(["a 河流"])[0]) > 1


def test_a_model_that_changes_white_space_is_refused(made, models):
    with pytest.raises(UserError, match=r"line 2: the tokenizer changes this text: .*two\\nlines.*becomes.*two lines"):
        made([ENGLISH.strip(), "two\nlines"], models["normal"])


@pytest.mark.parametrize("text", ["two\n lines \t", f"{CHINESE} \U0001f600", " leading", "ﬁsh"])
def test_an_exact_model_spells_every_text(made, models, text):
    assert made([text], models["exact"]).counts["bytes"] == len(text.encode())


def unigram(bpe_folder) -> dict:
    """A byte-level model of the kind Unigram, in the trained tokenizer's frame."""
    facts = json.loads((bpe_folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = [token for token in facts["model"]["vocab"] if token != EOD]
    vocabulary = [[EOD, 0.0], *([piece, -float(len(pieces) - 10 * len(piece))] for piece in pieces)]
    return {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False}


@pytest.mark.parametrize("dropout", [0.1, 0.5, 1.0])
def test_dropout_of_a_given_file_is_off(bpe_folder, tmp_path, dropout):
    changed(bpe_folder, tmp_path, lambda facts: facts["model"].update(dropout=dropout))
    usual, dropping = (Tokenizer.open(folder, "tokenizer.json", EOD) for folder in (bpe_folder, tmp_path))
    assert dropping.chance == f"dropout {dropout:g}"
    for _ in range(20):
        for one, other in zip(*(each.encode_batch([ENGLISH, CHINESE]) for each in (usual, dropping)), strict=True):
            assert np.array_equal(one, other)


def test_sampling_of_a_unigram_model_is_off(bpe_folder, tmp_path):
    changed(bpe_folder, tmp_path, lambda facts: facts.update(model=unigram(bpe_folder)))
    tokenizer = Tokenizer.open(tmp_path, "tokenizer.json", EOD)
    inside = tokenizer._engine.tokenizer.model
    assert [inside.alpha, inside.nbest_size] == [None, None]
    assert len({tuple(tokenizer.encode_batch([ENGLISH])[0]) for _ in range(20)}) == 1


def test_a_sentencepiece_model_does_not_sample(models, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(models["exact"].read_bytes())
    tokenizer = Tokenizer.open(tmp_path, "sentencepiece", EOD)
    assert len({tuple(tokenizer.encode_batch([ENGLISH])[0]) for _ in range(20)}) == 1


def test_dropout_is_told_and_makes_the_same_tokens_twice(made, bpe_folder, tmp_path, capsys):
    changed(bpe_folder, tmp_path, lambda facts: facts["model"].update(dropout=0.3))
    one = made([ENGLISH * 50], tmp_path / "tokenizer.json").facts["files"]["tokens.bin"]
    assert "dropout 0.3 of the given file is switched off" in capsys.readouterr().err
    assert made([ENGLISH * 50], tmp_path / "tokenizer.json").facts["files"]["tokens.bin"] == one
