"""Synthetic reference dumps: laid out as Megatron-core's are, computed by our own model."""

import json

import torch
from safetensors.torch import save_file

from retro.interop.names import to_megatron
from retro.model.build import build_model
from retro.model.settings import ModelSettings

# name: (settings beside flavour megatron, lengths and counts)
VARIANTS = {
    "base": ({}, {}),
    "ragged": ({}, {"tokens": 13}),
    "threes": ({"encoder_layers": 3}, {"k": 3, "retrieved": 3}),
    "deep": ({"layers": 18}, {}),
    "modern": (
        {"positions": "rope", "rope_fraction": 0.5, "activation": "swiglu", "bias": False, "tied": False, "ffn": 64},
        {},
    ),
    "final norm": ({"final_norm": True, "encoder_final_norm": True, "encoder_residual": "raw"}, {}),
    "rmsnorm": ({"norm": "rmsnorm", "activation": "gelu_tanh"}, {}),
    "squared relu": (
        {"positions": "rope", "rope_fraction": 0.5, "activation": "squared_relu", "bias": False, "tied": False},
        {},
    ),
}


def variant(name, architecture="retro"):
    """Settings, lengths, model with noisy weights, and inputs of a variant."""
    fields, counts = VARIANTS[name]
    settings = ModelSettings(**({"flavour": "megatron", "layers": 6, "width": 16, "heads": 2} | fields))
    settings = settings.model_copy(update={"encoder_dropout": 0.0})
    m, b, k, retrieved = 4, 2, counts.get("k", 2), counts.get("retrieved", 2)
    n = counts.get("tokens", 16)
    lengths = {"vocab_size": 19, "seq_length": 16, "chunk_length": m, "retrieved_length": m * retrieved}
    generator = torch.Generator().manual_seed(1)
    model = build_model(settings, architecture=architecture, seed=1, **lengths)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    chunks = -(-n // m)
    inputs = {
        "input_ids": torch.randint(19, (b, n), generator=generator),
        "labels": torch.randint(19, (b, n), generator=generator),
        "position_ids": torch.arange(n).repeat(b, 1),
        "context_input_ids": torch.randint(19, (b * chunks * k, m * retrieved), generator=generator),
        "context_position_ids": torch.arange(m * retrieved).repeat(b * chunks * k, 1),
    }
    return settings, lengths, model, inputs, chunks, retrieved


def write_dump(folder, name, spec="local", spoil=None):
    """Write DUMP.safetensors and DUMP.json; `spoil` names one tensor to move by 1e-3."""
    settings, lengths, model, inputs, chunks, retrieved = variant(name)
    b, n = inputs["input_ids"].shape
    neighbours = inputs["context_input_ids"].view(b, chunks, -1, lengths["retrieved_length"])
    logits = model(inputs["input_ids"], neighbours)
    losses = model(inputs["input_ids"], neighbours, targets=inputs["labels"])
    losses.mean().backward()
    out = {"logits": logits.detach(), "token_loss": losses.detach(), "loss": losses.mean().detach()}
    tensors = {f"in/{name}": t for name, t in inputs.items()} | {f"out/{name}": t for name, t in out.items()}
    for kind, state in (
        ("param", {n: p.detach() for n, p in model.named_parameters()}),
        ("grad", {n: p.grad for n, p in model.named_parameters()}),
    ):
        theirs = to_megatron(state, settings, "retro", spec)
        tensors |= {f"{kind}/{name}": t.contiguous() for name, t in theirs.items()}
    if spoil:
        tensors[spoil] = tensors[spoil] + 1e-3
    path = folder / f"{name.replace(' ', '_')}.safetensors"
    save_file(tensors, path)
    args = {
        "layers": settings.layers,
        "hidden": settings.width,
        "heads": settings.heads,
        "vocab": 19,
        "chunk": 4,
        "seq": 16,
        "retrieved": retrieved,
        "encoder_layers": settings.encoder_layers,
        "rotary_percent": settings.rope_fraction,
        "gelu_tanh": settings.activation == "gelu_tanh",
        "squared_relu": settings.activation == "squared_relu",
        "encoder_residual": settings.encoder_residual,
    }
    facts = {"args": args, "ns": n, "retrieved_length": 4 * retrieved, "cca_layers_1based": list(settings.cca_at)}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path
