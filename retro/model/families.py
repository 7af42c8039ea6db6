"""Decoders as Hugging Face's config.json describes them: what a file says in our settings, and settings as a file.

Llama and its like (RMSNorm, rope, MLPs with a gate), Arcee (without a gate), GPT-NeoX and GPT-2. What a file says that
our decoder does not compute is refused by its key. Their tensors: `retro.model.exchange`.
"""

import math
from collections.abc import Mapping
from typing import Any

from retro.model.settings import ModelSettings

CLASSES = {
    "arcee": "ArceeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "squared_relu": "relu2", "swiglu": "silu"}
READ = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "swiglu",
}
KEYS = {  # theirs, and ours; of GPT-2 and of the others
    "gpt2": {"n_layer": "layers", "n_embd": "width", "n_head": "heads", "n_inner": "ffn"},
    "": {
        "num_hidden_layers": "layers",
        "hidden_size": "width",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "head_dim": "head_dim",
        "intermediate_size": "ffn",
    },
}


def decoder(facts: Mapping[str, Any], seq_length: int | None = None) -> dict[str, Any]:
    """The decoder's settings, all of them, of a config.json, for texts of `seq_length` tokens (None: of any length).

    Dropout, which is of a training, is left out. Raises ValueError, which names key and value, for what is missing or
    not supported.
    """
    kind = facts.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ValueError(f"model_type is {kind!r}, wanted one of {', '.join(CLASSES)}")
    _only(facts, "quantization_config", None)
    _only(facts, "add_cross_attention", False)
    _only(facts, "rope_interleaved", False)
    found = _common(kind, facts)
    if kind == "gpt2":
        _only(facts, "scale_attn_weights", True)
        _only(facts, "scale_attn_by_inverse_layer_idx", False)
        most = _number(facts, "n_positions")
    else:
        found |= _rope(kind, facts, found["head_dim"] or found["width"] // found["heads"])
        most = _number(facts, "max_position_embeddings")
    if found["positions"] == "learned" and seq_length is not None and seq_length > most:
        raise ValueError(f"n_positions is {most}, and dataset.samples.seq_length {seq_length}; shorten that")
    window = facts.get("sliding_window") if facts.get("use_sliding_window", kind == "mistral") else None
    if window is not None and _number(facts, "sliding_window") < (seq_length or most):
        raise ValueError(
            f"sliding_window is {window}, which texts of {seq_length or most} tokens outgrow (dataset.samples."
            "seq_length); attention is to all tokens here"
        )
    return found


def _common(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All but rope's settings."""
    old = kind == "gpt2"
    found: dict[str, Any] = {}
    for key, ours in KEYS["gpt2" if old else ""].items():
        optional = ours in ("head_dim", "kv_heads") or (old and ours == "ffn")
        found[ours] = None if optional and facts.get(key) is None else _number(facts, key)
    found |= {"ffn": found["ffn"] or 4 * found["width"]}
    kv_heads, size = found.get("kv_heads"), found.get("head_dim")
    found["kv_heads"] = None if kind == "gpt_neox" or kv_heads == found["heads"] else kv_heads
    found["head_dim"] = None if size is None or size * found["heads"] == found["width"] else size
    layered = kind in ("gpt2", "gpt_neox")
    eps = {"gpt2": "layer_norm_epsilon", "gpt_neox": "layer_norm_eps"}.get(kind, "rms_norm_eps")
    found |= {
        "positions": "learned" if old else "rope",
        "norm": "layernorm" if layered else "rmsnorm",
        "norm_eps": _number(facts, eps),
        "norm_position": "after" if kind == "olmo2" else "before",
        "parallel_residual": kind == "gpt_neox" and facts.get("use_parallel_residual", True),
        "qk_norm": {"qwen3": "head", "olmo2": "whole"}.get(kind, "none"),
        "activation": _activation(kind, facts),
        "qkv_bias": True if kind == "qwen2" else None,
        "bias": layered,
        "tied": facts.get("tie_word_embeddings", old),
        "final_norm": True,
        "rope_fraction": 1.0,
        "rope_base": 10000.0,
        "rope_scaling": None,
    }
    if kind == "gpt_neox":
        _only(facts, "attention_bias", True)
    elif kind in ("llama", "arcee") and facts.get("mlp_bias"):
        if not facts.get("attention_bias"):
            raise ValueError("mlp_bias is True and attention_bias is not, wanted both or none")
        found["bias"] = True
    else:
        _only(facts, "attention_bias", False)
    return found


def _activation(kind: str, facts: Mapping[str, Any]) -> str:
    key, usual = {"gpt2": ("activation_function", "gelu_new"), "gpt_neox": ("hidden_act", "gelu")}.get(
        kind, ("hidden_act", "relu2" if kind == "arcee" else "silu")
    )
    gated = kind not in ("gpt2", "gpt_neox", "arcee")
    fitting = [name for name, ours in READ.items() if (ours == "swiglu") == gated]
    found = facts.get(key, usual)
    if found not in fitting:
        raise ValueError(f"{key} is {found!r}, wanted one of {', '.join(fitting)}")
    return READ[found]


def _rope(kind: str, facts: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Base, share and scaling, as transformers wrote them since version 5 (rope_parameters) and before."""
    named = next((name for name in ("rope_parameters", "rope_scaling") if facts.get(name)), "rope_parameters")
    rope = facts.get(named) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{named} is {rope!r}, wanted an object")
    given = {"rope_theta": 10000.0, "partial_rotary_factor": 0.25 if kind == "gpt_neox" else 1.0, **facts}
    olds = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    base, share = (
        _number(rope, key, f"{named}.") if key in rope else _number(given, old if old in facts else key)
        for key, old in olds.items()
    )
    if int(size * share) % 2 or not int(size * share):
        raise ValueError(f"partial_rotary_factor (rotary_pct) is {share}, which rotates {size * share:g} features")
    found: dict[str, Any] = {"rope_base": float(base), "rope_fraction": float(share), "rope_scaling": None}
    how = rope.get("rope_type", rope.get("type", "default"))
    if how == "default":
        return found
    if how not in ("linear", "llama3", "yarn"):
        raise ValueError(f"{named}.rope_type is {how!r}, wanted default, linear, llama3 or yarn")
    scaling: dict[str, Any] = {"type": how, "factor": _number(rope, "factor", f"{named}.")}
    length = rope.get("original_max_position_embeddings", facts.get("max_position_embeddings"))
    if how == "llama3":
        scaling |= {"low": _number(rope, "low_freq_factor", f"{named}."), "length": length}
        scaling |= {"high": _number(rope, "high_freq_factor", f"{named}.")}
    if how == "yarn":
        for key in ("mscale", "mscale_all_dim"):
            _only(rope, key, None, prefix=f"{named}.")
        grown = 1.0 if scaling["factor"] <= 1 else 0.1 * math.log(scaling["factor"]) + 1
        scaling |= {"low": rope.get("beta_slow") or 1.0, "high": rope.get("beta_fast") or 32.0, "length": length}
        scaling |= {"amplitude": rope.get("attention_factor") or grown, "whole_pairs": rope.get("truncate", True)}
    return found | {"rope_scaling": scaling}


def _number(facts: Mapping[str, Any], key: str, prefix: str = "") -> Any:
    value = facts.get(key)
    if value is None:
        raise ValueError(f"lacks {prefix}{key}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{prefix}{key} is {value!r}, wanted a number above 0")
    return value


def _only(facts: Mapping[str, Any], key: str, *wanted: Any, prefix: str = "") -> None:
    """Refuse every other value of a key that may be absent."""
    if key in facts and facts[key] not in wanted:
        raise ValueError(f"{prefix}{key} is {facts[key]!r}, wanted {' or '.join(map(repr, wanted))}")


def vocabulary(facts: Mapping[str, Any]) -> int:
    """How many rows the token table has; a tokenizer may have fewer tokens."""
    return int(_number(facts, "vocab_size"))


def stock(s: ModelSettings) -> str | None:
    """The model type that computes what a GPT of these settings does, or None.

    RMSNorm with rotary positions is Llama where the MLP is SwiGLU, or one that differs from it in biases or norms, and
    Arcee where it is plain; LayerNorm with plain MLPs and biases is GPT-NeoX with rotary positions (of a part of each
    head too), GPT-2 with learned ones.
    """
    if not s.final_norm:
        return None
    plain, grouped = s.activation != "swiglu", s.kv_head_count != s.heads
    other = (s.norm_position, s.qk_norm, s.qkv_bias in (None, s.bias))
    if s.norm == "rmsnorm" and s.positions == "rope" and s.rope_fraction == 1.0 and s.head_size % 2 == 0:
        if s.parallel_residual:
            return None
        if other == ("before", "none", True):
            return "arcee" if plain else "llama"
        special = {
            ("before", "none", False): "qwen2" if s.qkv_bias and s.head_dim is None else None,
            ("before", "head", True): "qwen3",
            ("after", "whole", True): "olmo2" if s.head_dim is None else None,
        }
        return None if plain or s.bias else special.get(other)
    if other != ("before", "none", True) or s.head_dim is not None:
        return None
    if s.norm == "layernorm" and s.bias and plain and not grouped:
        if s.positions == "learned":
            return None if s.parallel_residual else "gpt2"
        rotated = int(s.head_size * s.rope_fraction)
        return "gpt_neox" if rotated and rotated % 2 == 0 else None
    return None


def why_not(s: ModelSettings) -> str:
    """What keeps a GPT of these settings from being a stock architecture."""
    names = ("final_norm", "norm", "positions", "rope_fraction", "activation", "bias")
    others = ("norm_position", "parallel_residual", "qk_norm", "qkv_bias", "head_dim")
    parts = {name: getattr(s, name) for name in names}
    parts |= {name: getattr(s, name) for name in others if getattr(s, name) != ModelSettings.model_fields[name].default}
    return "no stock architecture has " + ", ".join(f"{name} {value}" for name, value in parts.items()) + " together"


def stock_config(kind: str, s: ModelSettings, vocab_size: int, positions: int) -> dict[str, Any]:
    """The architecture's config: the inverse of `decoder`."""
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
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": s.rope_base} | _scaling(s)
    if kind == "gpt_neox":
        rope |= {"partial_rotary_factor": s.rope_fraction}
        own = {"layer_norm_eps": s.norm_eps, "use_parallel_residual": s.parallel_residual, "hidden_dropout": s.dropout}
        return {**common, **own, "rope_parameters": rope, "attention_bias": True}
    own = {"num_key_value_heads": s.kv_head_count, "head_dim": s.head_size, "rms_norm_eps": s.norm_eps}
    if kind in ("qwen2", "olmo2"):  # whose heads' width follows from the others
        del own["head_dim"]
    if kind in ("qwen2", "qwen3"):
        own |= {"use_sliding_window": False}
    biases = {} if kind == "qwen2" else {"attention_bias": s.bias, "mlp_bias": s.bias}
    return {**common, **own, "rope_parameters": rope, **biases}


def _scaling(s: ModelSettings) -> dict[str, Any]:
    scaling = s.rope_scaling
    if scaling is None:
        return {}
    found: dict[str, Any] = {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type != "linear":
        found["original_max_position_embeddings"] = scaling.length
    if scaling.type == "llama3":
        found |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.type == "yarn":
        found |= {"beta_slow": scaling.low, "beta_fast": scaling.high, "truncate": scaling.whole_pairs}
        found |= {"attention_factor": scaling.amplitude}
    return found
