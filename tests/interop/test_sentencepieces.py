"""SentencePiece models on their way to Hugging Face: the same ids, or a refusal."""

import io
import json

import pytest
import sentencepiece
import transformers
from transformers import PreTrainedTokenizerFast

from retro.base.artifacts import write_manifest
from retro.base.stage import UserError
from retro.corpus.tokenizers import Tokenizer
from retro.interop.huggingface import export
from retro.interop.sentencepieces import texts, to_tokenizers
from tests.corpus.test_corpus_stages import TINY
from tests.interop.test_huggingface import make

EXACT = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
OWN = {"user_defined_symbols": ["<sep>"]}
MODELS = {
    "bpe": {"model_type": "bpe", "byte_fallback": True},
    "bpe, exact": {"model_type": "bpe", "byte_fallback": True, **EXACT},
    "bpe, without a space before": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **EXACT},
    "bpe, own tokens": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **OWN, **EXACT},
    "unigram": {"model_type": "unigram"},
    "unigram, bytes": {"model_type": "unigram", "byte_fallback": True},
    "unigram, exact": {"model_type": "unigram", "byte_fallback": True, **EXACT},
}


def lines():
    """The tests' corpus by lines, which are short."""
    texts = [json.loads(line)["text"] for line in TINY.read_text(encoding="utf-8").splitlines()]
    return [part[:2000] for text in texts for part in text.split("\n") if part.strip()]


def trained(path, **settings):
    """Write a SentencePiece model of the tests' corpus, and open it as ours."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=made, vocab_size=700, hard_vocab_limit=False, num_threads=1, minloglevel=2, **settings,
    )  # fmt: skip
    path.write_bytes(made.getvalue())
    return Tokenizer.open(path.parent, "sentencepiece", "</s>", lossy=True)


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_sentencepiece_s(name, tmp_path):
    ours = trained(tmp_path / "tokenizer.model", **MODELS[name])
    theirs = to_tokenizers(tmp_path / "tokenizer.model", ours)
    for text in [*lines(), *texts(ours, 50)]:
        ids = ours.encode_batch([text], unknown=True)[0].tolist()
        assert theirs.encode(text, add_special_tokens=False).ids == ids, text[:60]
        if "exact" in name:
            assert theirs.decode(ids) == ours.decode(ids)


def test_a_model_of_characters_is_refused(tmp_path):
    ours = trained(tmp_path / "tokenizer.model", model_type="char")
    with pytest.raises(UserError, match="of words or characters; only unigram and BPE are exported"):
        to_tokenizers(tmp_path / "tokenizer.model", ours)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_other_ids_are_refused(kind, tmp_path):
    """Tokens of one's own cut a text in two, and `tokenizers` puts a space before both parts."""
    ours = trained(tmp_path / "tokenizer.model", model_type=kind, byte_fallback=True, **OWN)
    with pytest.raises(UserError, match=r"Hugging Face's tokenizers would give .* other ids than SentencePiece"):
        to_tokenizers(tmp_path / "tokenizer.model", ours)


@pytest.mark.parametrize("name", ["bpe", "unigram, exact"])
def test_a_run_is_exported_with_it(name, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    ours = trained(folder / "tokenizer.model", **MODELS[name])
    run, _ = make(tmp_path, "retro", vocab=ours.vocab_size)
    settings = {"type": "sentencepiece", "eod": "</s>", "lossy": "allow"}
    write_manifest(
        folder / "manifest.json",
        kind="tokenizer",
        stage="retro.corpus.train_tokenizer",
        files=[folder / "tokenizer.model"],
        settings={"tokenizer": settings},
        counts={"vocab_size": ours.vocab_size, "eod_id": ours.eod_id, "pad_id": ours.pad_id},
    )
    export(run, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert isinstance(theirs, PreTrainedTokenizerFast) and theirs.eos_token_id == ours.eod_id
    for text in texts(ours, 50):
        assert theirs(text)["input_ids"] == ours.encode_batch([text], unknown=True)[0].tolist(), text
