"""Tokenizers of each kind, trained on the tiny corpus once a test run."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from retro.corpus.readers import Reader
from retro.corpus.settings import SourceSettings, SplitSettings, TokenizerSettings
from retro.corpus.tokenizers import Tokenizer
from retro.corpus.train_tokenizer import TrainTokenizerSettings, train

TINY = Path(__file__).parents[2] / "data" / "tiny.jsonl"


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory) -> Path:
    """A folder with tokenizer.json: byte-level BPE of 600 tokens."""
    folder = tmp_path_factory.mktemp("bpe")
    source = SourceSettings(path=str(TINY))
    settings = TrainTokenizerSettings(
        tokenizer=TokenizerSettings(vocab_size=600), sources={"tiny": source}, split=SplitSettings(), seed=1
    )
    text, _ = train(settings, [Reader(source, "tiny")])
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(bpe_folder, tmp_path_factory) -> Path:
    """The same tokenizer as vocab.json and merges.txt, in GPT-2's form."""
    folder = tmp_path_factory.mktemp("gpt2")
    model = json.loads((bpe_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory) -> Path:
    """A folder with tokenizer.model: SentencePiece BPE with byte fallback, 700 pieces."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    texts = [json.loads(line)["text"] for line in TINY.read_text(encoding="utf-8").splitlines()]
    lines = [line[:2000] for text in texts for line in text.split("\n") if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=700, model_type="bpe",
        byte_fallback=True, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="session")
def bpe(bpe_folder) -> Tokenizer:
    return Tokenizer.open(bpe_folder, "bpe", "<|endoftext|>")
