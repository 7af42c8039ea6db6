"""What a Megatron-core model is, read from its state dict's names and shapes, and from facts beside it.

Shapes tell nearly everything. They cannot tell how rows divide into heads, the chunk length, how much of a head rope
rotates, its base, the norm's epsilon, the activation of an MLP without a gate, that norms hold how far their weights
are from 1, or that a checkpoint is of the legacy model, which adds the encoder's cross-attention to the raw state:
those come from the facts (flags, or Megatron's arguments), and where both speak they must agree.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from retro.base import log
from retro.base.stage import UserError, reasons
from retro.model.settings import ModelSettings

# One fact under the names that Megatron's arguments, its configs and reference dumps give it.
ALIASES = {
    "layers": ("layers", "num_layers"),
    "width": ("hidden", "hidden_size"),
    "heads": ("heads", "num_attention_heads"),
    "groups": ("query_groups", "num_query_groups"),
    "ffn": ("ffn_hidden_size",),
    "vocab": ("vocab", "padded_vocab_size"),
    "chunk": ("chunk", "retro_chunk_length", "retro_gpt_chunk_length", "chunk_length"),
    "retrieved_chunks": ("retrieved", "retro_num_retrieved_chunks"),
    "retrieved_length": ("retrieved_length", "retro_retrieved_length", "retro_gpt_retrieved_length"),
    "seq": ("seq", "seq_length", "max_position_embeddings"),
    "encoder_layers": ("encoder_layers", "retro_encoder_num_layers", "retro_encoder_layers"),
    "rope_fraction": ("rotary_percent",),
    "rope_base": ("rotary_base",),
    "eps": ("norm_epsilon", "layernorm_epsilon", "eps"),
    "gelu_tanh": ("gelu_tanh", "openai_gelu", "bias_gelu_fusion", "bias_activation_fusion"),
    "squared_relu": ("squared_relu",),
    "cca_layers": ("cca_layers_1based",),
    "encoder_residual": ("encoder_residual",),
    "layernorm_1p": ("apply_layernorm_1p", "layernorm_zero_centered_gamma", "zero_centered_gamma", "layernorm_1p"),
}


# Arguments of Megatron's that make another model of the same parameters, and what else than nothing they may be.
ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("learned_absolute", "rope"),
    "rotary_interleaved": (),
    "rotary_seq_len_interpolation_factor": (1, 1.0),
    "use_rope_scaling": (),
    "apply_residual_connection_post_layernorm": (),
    "quick_geglu": (),
    "window_size": (),
}


@dataclass(frozen=True)
class Inferred:
    """A model's settings, architecture and the lengths that `build_model` wants."""

    settings: ModelSettings
    architecture: Literal["gpt", "retro"]
    lengths: dict[str, int]


def flatten(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts under our names, from a JSON that holds them at its top or below `args` or `config`."""
    found = {**facts, **(facts.get("config") or {}), **(facts.get("args") or {})}
    return {
        ours: found[theirs]
        for ours, names in ALIASES.items()
        for theirs in reversed(names)
        if found.get(theirs) is not None
    }


def refuse(arguments: Mapping[str, Any], where: str) -> None:
    """Raise UserError for arguments of Megatron's that make a model we lack."""
    for name, allowed in ELSEWHERE.items():
        value = arguments.get(name)
        if value and value not in allowed:
            wanted = " or ".join(map(repr, allowed)) or "it off"
            raise UserError(f"{where}: was trained with {name} {value!r}, which is not supported; wanted {wanted}")


def infer(shapes: Mapping[str, tuple[int, ...]], facts: Mapping[str, Any], where: str) -> Inferred:
    """Settings from parameter shapes by Megatron name (either spec) and `flatten`ed facts.

    Raises UserError, which begins with `where`, for what is missing or contradicts itself.
    """
    names = set(shapes)

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(f"{where}: {name} is missing; this is no whole Megatron-core state dict")
        return shapes[name]

    def indices(pattern: str) -> list[int]:
        return sorted({int(match[1]) for name in names if (match := re.match(pattern, name))})

    vocab, width = shape("embedding.word_embeddings.weight")
    layers = indices(r"decoder\.layers\.(\d+)\.")
    if layers != list(range(len(layers))) or not layers:
        raise UserError(
            f"{where}: decoder layers are {layers}; wanted all from 0 on. Join the shards of a pipeline-parallel "
            "model first."
        )
    cca = [i + 1 for i in indices(r"decoder\.layers\.(\d+)\.cross_attention\.attn\.")]
    root = f"decoder.layers.{cca[0] - 1}.cross_attention.encoder.layers" if cca else "-"
    encoder = indices(re.escape(root) + r"\.(\d+)\.")
    crossing = [j + 1 for j in indices(re.escape(root) + r"\.(\d+)\.cross_attention\.")]

    first = "decoder.layers.0"
    rows, ffn = shape(f"{first}.self_attention.linear_qkv.weight")[0], shape(f"{first}.mlp.linear_fc2.weight")[1]
    swiglu = shape(f"{first}.mlp.linear_fc1.weight")[0] == 2 * ffn
    heads = facts.get("heads")
    if heads is None:
        raise UserError(f"{where}: how many heads there are is not in the shapes; give --heads")
    if width % heads or (rows - width) % (2 * width // heads):
        raise UserError(
            f"{where}: {heads} heads do not divide {width} features and {rows} rows of linear_qkv; correct --heads"
        )
    groups = (rows - width) // (2 * width // heads)
    norms = (f"{first}.input_layernorm.bias", f"{first}.self_attention.linear_qkv.layer_norm_bias")
    learned = "embedding.position_embeddings.weight" in names
    fields: dict[str, Any] = {
        "flavour": "megatron",
        "layers": len(layers),
        "width": width,
        "heads": heads,
        "kv_heads": None if groups == heads else groups,
        "ffn": ffn,
        "positions": "learned" if learned else "rope",
        "norm": "layernorm" if names & set(norms) else "rmsnorm",
        "activation": "swiglu" if swiglu else next((name for name in ACTIVATIONS if facts.get(name)), "gelu"),
        "bias": f"{first}.self_attention.linear_qkv.bias" in names,
        "tied": "output_layer.weight" not in names,
        "final_norm": "decoder.final_layernorm.weight" in names,
    }
    for ours, fact in (("rope_fraction", "rope_fraction"), ("rope_base", "rope_base"), ("norm_eps", "eps")):
        if fact in facts and (ours == "norm_eps" or not learned):
            fields[ours] = facts[fact]
    if cca:
        fields |= {
            "cca_layers": tuple(cca),
            "encoder_layers": len(encoder),
            "encoder_cross_attention": tuple(crossing),
            "encoder_final_norm": root.removesuffix("layers") + "final_layernorm.weight" in names,
            "encoder_residual": facts.get("encoder_residual", "normed"),
        }
    _agree(facts, fields | {"vocab": vocab, "groups": groups}, where)

    chunk = facts.get("chunk")
    retrieved = facts.get("retrieved_length")
    if cca and chunk is None and retrieved and facts.get("retrieved_chunks"):
        chunk = retrieved // facts["retrieved_chunks"]
    if cca and chunk is None:
        raise UserError(f"{where}: the chunk length is not in the shapes; give --chunk-length")
    chunk = chunk or 64
    seq = shapes["embedding.position_embeddings.weight"][0] if learned else facts.get("seq", 2048)
    if not cca and learned:
        retrieved = min(seq, retrieved or seq)  # a GPT reads no neighbours; its table must do for any
    lengths = {
        "vocab_size": vocab,
        "seq_length": seq,
        "chunk_length": chunk,
        "retrieved_length": retrieved or chunk * facts.get("retrieved_chunks", 2),
    }
    try:
        return Inferred(ModelSettings(**fields), "retro" if cca else "gpt", lengths)
    except ValidationError as error:
        raise UserError(
            f"{where}: no model can be built of these shapes: {reasons(error, ModelSettings)[0]}. Give other facts."
        ) from None


ACTIVATIONS = ("squared_relu", "gelu_tanh")  # that shapes do not tell from erf GELU
LEAST_MEAN, MOST_NEGATIVE = 0.25, 0.25  # of weights that multiply: they begin at 1 and seldom change sign


def zero_centred(state: Mapping[str, Tensor], facts: Mapping[str, Any], where: str) -> bool:
    """Whether norms hold how far their weights are from 1, as `--apply-layernorm-1p` makes them.

    The facts decide. Without them, weights that look so raise UserError; weights that look otherwise than the facts
    say are told on stderr.
    """
    norms = [state[name].float() for name in state if re.search(r"(layernorm|layer_norm|norm)[._]weight$", name)]
    if not norms:
        return bool(facts.get("layernorm_1p"))
    weights = torch.cat([each.flatten() for each in norms])
    mean, negative = weights.mean().item(), (weights < 0).float().mean().item()
    seems = mean < LEAST_MEAN or negative > MOST_NEGATIVE
    found = f"weights of norms are {mean:.2f} on average, {negative:.0%} of them negative"
    said = facts.get("layernorm_1p")
    if said is None and seems:
        raise UserError(
            f"{where}: {found}, as Megatron's --apply-layernorm-1p stores them, which counts from 1. Give "
            "--layernorm-1p if it was trained so, else --no-layernorm-1p."
        )
    if said is not None and bool(said) != seems:
        log.warn(f"{where}: {found}; they are read as {'distances from 1' if said else 'they are'} all the same")
    return bool(said)


def _agree(facts: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    """Refuse facts that the parameters contradict."""
    for name in ("layers", "width", "ffn", "vocab", "encoder_layers", "cca_layers"):
        if name not in facts or name not in found:
            continue
        said = tuple(facts[name]) if name == "cca_layers" else facts[name]
        if said != found[name]:
            raise UserError(f"{where}: {name} is said to be {said}, the parameters hold {found[name]}")
