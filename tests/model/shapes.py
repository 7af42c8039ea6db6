"""Small random settings, models and inputs."""

import random

import torch

from retro.model.build import build_model
from retro.model.settings import ModelSettings

VOCAB = 13


def random_settings(rng: random.Random, flavour: str) -> ModelSettings:
    """Settings with about half of the fields chosen at random, the rest the flavour's."""
    layers, heads, size = rng.randint(1, 4), rng.choice([1, 2, 4]), rng.choice([2, 4, 6])
    chosen = {"layers": layers, "heads": heads, "width": heads * size, "flavour": flavour}
    encoder_layers = rng.randint(1, 3)
    cca_heads = rng.choice([h for h in (1, 2, 4) if (heads * size) % h == 0 and heads * size // h % 2 == 0])
    choices = {
        "kv_heads": rng.choice([h for h in (1, 2, 4) if heads % h == 0]),
        "ffn": rng.choice([None, 7]),
        "positions": rng.choice(["rope", "learned"]),
        "rope_fraction": rng.choice([1.0, 0.5]),
        "rope_base": rng.choice([100.0, 10000.0]),
        "norm": rng.choice(["rmsnorm", "layernorm"]),
        "activation": rng.choice(["gelu", "gelu_tanh", "squared_relu", "swiglu"]),
        "bias": rng.random() < 0.5,
        "tied": rng.random() < 0.5,
        "final_norm": rng.random() < 0.5,
        "chunk_alignment": rng.choice(["start", "end"]),
        "mask_padding": rng.random() < 0.5,
        "cca_layers": tuple(sorted(rng.sample(range(1, layers + 1), rng.randint(1, layers)))),
        "cca_positions": rng.choice(["rope", "relative", "none"]),
        "cca_null": rng.random() < 0.5,
        "cca_gate": rng.choice(["none", "layer", "token"]),
        "encoder_positions": rng.choice(["rope", "none"]),
        "encoder_residual": rng.choice(["raw", "normed"]),
        "encoder_final_norm": rng.random() < 0.5,
        "shared_embeddings": rng.random() < 0.5,
        "encoder_cross_attention": tuple(sorted(rng.sample(range(1, encoder_layers + 1), rng.randint(0, 1)))),
    }
    chosen |= {name: value for name, value in choices.items() if rng.random() < 0.6}
    chosen |= {"encoder_layers": encoder_layers, "cca_heads": cca_heads}
    chosen.setdefault("encoder_cross_attention", (1,))
    if rng.random() < 0.5:
        chosen |= {"encoder_heads": rng.choice([1, 2])}
        chosen |= {"encoder_width": chosen["encoder_heads"] * rng.choice([2, 4])}
    if flavour == "copy-ready":
        chosen |= {"copy_context": rng.randint(1, 3), "copy_output": rng.random() < 0.7}
    if not chosen.get("shared_embeddings", flavour != "paper") and rng.random() < 0.3:
        chosen["encoder_positions"] = "learned"
    if chosen.get("positions", "learned" if flavour == "megatron" else "rope") == "rope":
        learned = chosen.get("encoder_positions") == "learned"
        if learned and chosen.get("shared_embeddings", flavour != "paper"):
            chosen["encoder_positions"] = "none"
    return ModelSettings(**(chosen | {"encoder_dropout": 0.0}))


def small_model(settings, *, architecture="retro", seq_length=16, chunk=3, retrieved=6, seed=1, shaken=True):
    """A model whose every parameter is far from its initial value, so that a lost one shows."""
    model = build_model(
        settings,
        architecture=architecture,
        vocab_size=VOCAB,
        seq_length=seq_length,
        chunk_length=chunk,
        retrieved_length=retrieved,
        seed=seed,
    )
    if shaken:
        shake(model, seed)
    return model


def shake(model, seed):
    """Add noise to every parameter, by name, the same for a GPT and its RETRO."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(seed * 7919 + sum(map(ord, name)))
            scale = 0.5 if parameter.dim() > 1 else 0.2
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def inputs(rng: random.Random, *, batch=2, tokens=14, chunk=3, k=2, r=6, missing=True):
    """tokens [b, n], neighbours [b, l, k, r], a mask with padded ends and missing ones, targets [b, n]."""
    generator = torch.Generator().manual_seed(rng.randrange(10**6))
    chunks = -(-tokens // chunk)
    words = rng.choice([2, VOCAB])  # few different words make long matches
    x = torch.randint(words, (batch, tokens), generator=generator)
    y = torch.randint(-1, VOCAB, (batch, tokens), generator=generator)
    neighbours = torch.randint(words, (batch, chunks, k, r), generator=generator)
    lengths = torch.randint(0 if missing else r, r + 1, (batch, chunks, k, 1), generator=generator)
    mask = torch.arange(r) < lengths  # (b, l, k, r)
    if missing:
        mask[:, 0] = False
    return x, neighbours, mask, y
