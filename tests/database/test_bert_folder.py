"""A BERT checkpoint as `save_pretrained` writes it is an encoder, in float32 on a CPU or in half precision."""

import numpy as np
import pytest
import torch

from retro.database.encoders import open_encoder
from retro.database.engines import TorchEngine
from retro.database.settings import EncoderSettings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat", "##s", "dog"]
TEXTS = ["the cat sat on a mat", "dogs", "", "the dog sat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights of Megatron's BERT-large architecture in little, word pieces beside it."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def test_vectors_are_the_mean_of_the_states_that_transformers_computes(folder):
    from transformers import BertModel

    encoder = open_encoder(EncoderSettings(type="transformers", path=str(folder)), 1)
    found, model = encoder.encode(TEXTS), BertModel.from_pretrained(folder).eval()
    pieces = {"the": 5, "cat": 6, "sat": 7, "on": 8, "a": 9, "mat": 10, "dog": 12}
    for row, text in enumerate(TEXTS):
        ids = [piece for word in text.split() for piece in ([12, 11] if word == "dogs" else [pieces[word]])]
        with torch.no_grad():
            states = model(torch.tensor([[2, *ids, 3]])).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(found[row], states / np.linalg.norm(states), atol=2e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close(folder, dtype):
    """What a GPU would compute in; here on the CPU."""
    pieces = np.array([[2, 5, 6, 7, 3], [2, 9, 10, 12, 3]])
    exact, half = (TorchEngine(folder, "cpu", kind)(pieces) for kind in ("float32", dtype))
    assert half.dtype == np.float32 and not (half == exact).all()
    assert np.abs(half - exact).max() < 0.1 and (np.sum(half * exact) / np.sum(exact**2)) > 0.99
