"""GPT twins as architectures that transformers has: which one computes the same, and its names and layouts."""

from typing import Any

from torch import Tensor

from retro.interop.names import Entry, to_theirs
from retro.model.settings import ModelSettings

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "swiglu": "silu"}


def stock(s: ModelSettings) -> str | None:
    """The model type that computes what a GPT of these settings does, or None.

    RMSNorm with rotary positions is Llama where the MLP is SwiGLU, Arcee where it is plain; LayerNorm with plain MLPs
    and biases is GPT-NeoX with rotary positions (of a part of each head too), GPT-2 with learned ones.
    """
    if not s.final_norm:
        return None
    plain, grouped = s.activation != "swiglu", s.kv_head_count != s.heads
    if s.norm == "rmsnorm" and s.positions == "rope" and s.rope_fraction == 1.0 and s.head_size % 2 == 0:
        return "arcee" if plain else "llama"
    if s.norm == "layernorm" and s.bias and plain and not grouped:
        if s.positions == "learned":
            return "gpt2"
        rotated = int(s.head_size * s.rope_fraction)
        return "gpt_neox" if rotated and rotated % 2 == 0 else None
    return None


def why_not(s: ModelSettings) -> str:
    """What keeps a GPT of these settings from being a stock architecture."""
    parts: dict[str, object] = {
        "final_norm": s.final_norm,
        "norm": s.norm,
        "positions": s.positions,
        "rope_fraction": s.rope_fraction,
    }
    parts |= {"activation": s.activation, "bias": s.bias}
    return "no stock architecture has " + ", ".join(f"{name} {value}" for name, value in parts.items()) + " together"


def config(kind: str, s: ModelSettings, vocab_size: int, positions: int) -> dict[str, Any]:
    """The architecture's config."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": s.rope_base}
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": s.tied,
        "attention_dropout": s.attention_dropout,
    }
    if kind == "gpt2":
        shape = {"n_embd": s.width, "n_layer": s.layers, "n_head": s.heads, "n_inner": s.ffn_dim}
        dropout = {"resid_pdrop": s.dropout, "embd_pdrop": s.dropout, "attn_pdrop": s.attention_dropout}
        rest = {"n_positions": positions, "layer_norm_epsilon": s.norm_eps, "vocab_size": vocab_size}
        activation = {"activation_function": ACTIVATIONS[s.activation], "tie_word_embeddings": s.tied}
        return {**shape, **dropout, **rest, **activation}
    common |= {
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "intermediate_size": s.ffn_dim,
        "hidden_act": ACTIVATIONS[s.activation],
        "max_position_embeddings": positions,
    }
    if kind == "gpt_neox":
        rope |= {"partial_rotary_factor": s.rope_fraction}
        own = {"layer_norm_eps": s.norm_eps, "use_parallel_residual": False, "hidden_dropout": s.dropout}
        return {**common, **own, "rope_parameters": rope, "attention_bias": True}
    own = {"num_key_value_heads": s.kv_head_count, "head_dim": s.head_size, "rms_norm_eps": s.norm_eps}
    return {**common, **own, "rope_parameters": rope, "attention_bias": s.bias, "mlp_bias": s.bias}


def state(kind: str, ours: dict[str, Tensor], s: ModelSettings) -> dict[str, Tensor]:
    """Our parameters [rows, ..] under the architecture's names and layouts."""
    found: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        found |= _layer(kind, name, tensor, s) if name.startswith("decoder.layers.") else _outer(kind, name, tensor)
    return found


def _outer(kind: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    root = {"gpt2": "transformer", "gpt_neox": "gpt_neox"}.get(kind, "model")
    tokens = {"gpt2": "wte", "gpt_neox": "embed_in"}.get(kind, "embed_tokens")
    norm = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm"}.get(kind, "norm")
    head = "embed_out" if kind == "gpt_neox" else "lm_head"
    where, part = name.rsplit(".", 1)
    known = {
        "embedding.tokens": f"{root}.{tokens}",
        "embedding.positions": f"{root}.wpe",
        "decoder.norm": f"{root}.{norm}",
        "head": head,
    }
    return {f"{known[where]}.{part}": tensor}


def _layer(kind: str, name: str, tensor: Tensor, s: ModelSettings) -> dict[str, Tensor]:
    number, _, rest = name.removeprefix("decoder.layers.").partition(".")
    where, part = rest.rsplit(".", 1)
    if kind == "gpt2":
        home = f"transformer.h.{number}"
        names = {"attention_norm": "ln_1", "mlp_norm": "ln_2", "attention.qkv": "attn.c_attn"}
        names |= {"attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
        turned = tensor.T if tensor.dim() == 2 else tensor  # its linears hold [columns, rows]
        return {f"{home}.{names[where]}.{part}": turned}
    if kind == "gpt_neox":
        home = f"gpt_neox.layers.{number}"
        names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        names |= {"attention.qkv": "attention.query_key_value", "attention.out": "attention.dense"}
        names |= {"mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h"}
        if where == "attention.qkv":
            tensor = to_theirs(tensor, Entry(name, name, name, "qkv", s.heads, s.heads))
        return {f"{home}.{names[where]}.{part}": tensor}
    home = f"model.layers.{number}"
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    names |= {"attention.out": "self_attn.o_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
    if where == "attention.qkv":
        sizes = [count * s.head_size for count in (s.heads, s.kv_head_count, s.kv_head_count)]
        parts = zip("qkv", tensor.split(sizes), strict=True)
        return {f"{home}.self_attn.{letter}_proj.{part}": rows for letter, rows in parts}
    if where == "mlp.up" and kind == "llama":
        gate, up = tensor.chunk(2)
        return {f"{home}.mlp.gate_proj.{part}": gate, f"{home}.mlp.up_proj.{part}": up}
    return {f"{home}.{names[where]}.{part}": tensor}
