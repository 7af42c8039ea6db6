"""A decoder's tensors under Hugging Face's names and layouts, and back: every bit is kept.

Llama and its like keep queries, keys and values, gate and up apart; GPT-NeoX groups them by head; GPT-2's linears hold
[columns, rows].
"""

import re
from collections.abc import Callable, Container, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from retro.model.families import CLASSES
from retro.model.settings import ModelSettings

ROOTS = {"gpt2": "transformer", "gpt_neox": "gpt_neox"}  # what their names begin with, but for the head's; else model
OUTER = {
    "gpt2": {"embedding.tokens": "wte", "embedding.positions": "wpe", "decoder.norm": "ln_f", "head": "lm_head"},
    "gpt_neox": {"embedding.tokens": "embed_in", "decoder.norm": "final_layer_norm", "head": "embed_out"},
    "": {"embedding.tokens": "embed_tokens", "decoder.norm": "norm", "head": "lm_head"},
}
LAYER: dict[str, dict[str, tuple[str, ...]]] = {
    "gpt2": {
        "attention_norm": ("ln_1",),
        "attention.qkv": ("attn.c_attn",),
        "attention.out": ("attn.c_proj",),
        "mlp_norm": ("ln_2",),
        "mlp.up": ("mlp.c_fc",),
        "mlp.down": ("mlp.c_proj",),
    },
    "gpt_neox": {
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("attention.query_key_value",),
        "attention.out": ("attention.dense",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.up": ("mlp.dense_h_to_4h",),
        "mlp.down": ("mlp.dense_4h_to_h",),
    },
    "": {
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.q_norm": ("self_attn.q_norm",),
        "attention.k_norm": ("self_attn.k_norm",),
        "attention.out": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.up": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down": ("mlp.down_proj",),
    },
}
OWN = {
    "arcee": {"mlp.up": ("mlp.up_proj",)},
    "olmo2": {"attention_norm": ("post_attention_layernorm",), "mlp_norm": ("post_feedforward_layernorm",)},
}
# What files hold that is no parameter: causal masks, frequencies of rope.
BUFFERS = re.compile(r"(.*\.)?(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq)")

CUT = ("embedding.tokens.weight", "head.weight", "embedding.positions.weight")  # of which the first rows may be enough


class Place(NamedTuple):
    """Where one of our parameters lies: the names of its parts, one after the other, and how their rows are laid."""

    names: tuple[str, ...]
    layout: Literal["plain", "turned", "by head"] = "plain"


def place(kind: str, name: str) -> Place:
    """The place of the decoder's parameter `name` in a model of the type `kind`."""
    assert kind in CLASSES, kind
    root, where, part = ROOTS.get(kind, "model"), *name.rsplit(".", 1)
    if not where.startswith("decoder.layers."):
        found = OUTER.get(kind, OUTER[""])[where]
        return Place((f"{found}.{part}" if where == "head" else f"{root}.{found}.{part}",))
    number, rest = where.removeprefix("decoder.layers.").split(".", 1)
    home = f"{root}.{'h' if kind == 'gpt2' else 'layers'}.{number}"
    names = (LAYER.get(kind, LAYER[""]) | OWN.get(kind, {}))[rest]
    layout: Literal["plain", "turned", "by head"] = "plain"
    if kind == "gpt2" and part == "weight" and "norm" not in rest:
        layout = "turned"
    if kind == "gpt_neox" and rest == "attention.qkv":
        layout = "by head"
    return Place(tuple(f"{home}.{each}.{part}" for each in names), layout)


def from_theirs(kind: str, name: str, read: Callable[[str], Tensor], s: ModelSettings) -> Tensor:
    """Our parameter `name` [rows, ..] of the tensors that `read` gives by their names."""
    found = place(kind, name)
    tensor = torch.cat([read(each) for each in found.names]) if len(found.names) > 1 else read(found.names[0])
    if found.layout == "turned":
        return tensor.T.contiguous()
    if found.layout == "by head":
        return tensor.unflatten(0, (s.heads, 3, -1)).transpose(0, 1).flatten(0, 2)  # (3 h size, ..)
    return tensor


def found_as(kind: str, name: str, names: Container[str]) -> str | None:
    """Which of `names` is their tensor `name`: some files hold a model without its head, and leave its root out."""
    bare = name.removeprefix(f"{ROOTS.get(kind, 'model')}.")
    return next((each for each in (name, bare) if each in names), None)


def to_theirs(kind: str, name: str, tensor: Tensor, s: ModelSettings) -> Iterator[tuple[str, Tensor]]:
    """The parts of our parameter `name` [rows, ..], by their names: the inverse of `from_theirs`."""
    found = place(kind, name)
    if found.layout == "turned":
        tensor = tensor.T
    if found.layout == "by head":
        tensor = tensor.unflatten(0, (3, s.heads, -1)).transpose(0, 1).flatten(0, 2)  # (h 3 size, ..)
    sizes = [len(tensor) // len(found.names)] * len(found.names)
    if len(sizes) == 3:
        sizes = [count * s.head_size for count in (s.heads, s.kv_head_count, s.kv_head_count)]
    yield from zip(found.names, tensor.split(sizes), strict=True)
