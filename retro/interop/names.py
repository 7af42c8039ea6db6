"""Parameter names and layouts: ours against those of Megatron-core's RETRO and GPT, both specs.

Megatron groups the rows of its fused projections by head, [group, queries of the group + k + v, size] and
[head, k + v, size]; ours are [all queries; all keys; all values]. Everything else is only named differently.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from retro.base.stage import UserError
from retro.model.settings import ModelSettings

Spec = Literal["local", "te"]
Layout = Literal["plain", "qkv", "kv"]


class Entry(NamedTuple):
    """One parameter: our name, Megatron's names (local, Transformer Engine), and how rows are laid out."""

    ours: str
    local: str
    te: str
    layout: Layout = "plain"
    heads: int = 0  # query heads
    groups: int = 0  # key/value heads

    @property
    def norm(self) -> bool:
        """Whether it is the weight of a norm."""
        return self.ours.endswith("norm.weight")


def entries(settings: ModelSettings, architecture: str) -> Iterator[Entry]:
    """Every parameter of the model, in the order of its state dict."""
    s = settings
    yield _same("embedding.tokens.weight", "embedding.word_embeddings.weight")
    if s.positions == "learned":
        yield _same("embedding.positions.weight", "embedding.position_embeddings.weight")
    at = s.cca_at if architecture == "retro" else ()
    if at:
        root = f"decoder.layers.{at[0] - 1}.cross_attention.encoder.layers"
        for j in range(s.encoder_layers):
            crosses = j + 1 in s.encoder_cross_attention
            heads = s.encoder_head_count
            yield from _layer(s, f"encoder.layers.{j}", f"{root}.{j}", heads, heads, "cross" if crosses else None)
        if s.encoder_final_norm:
            yield from _norm(s, "encoder.norm", root.removesuffix("layers") + "final_layernorm", None)
    for i in range(s.layers):
        name = f"decoder.layers.{i}"
        yield from _layer(s, name, name, s.heads, s.kv_head_count, "cca" if i + 1 in at else None)
    if s.final_norm:
        yield from _norm(s, "decoder.norm", "decoder.final_layernorm", None)
    if not s.tied:
        yield _same("head.weight", "output_layer.weight")


def _same(ours: str, theirs: str) -> Entry:
    return Entry(ours, theirs, theirs)


def _norm(s: ModelSettings, ours: str, local: str, fused: str | None) -> Iterator[Entry]:
    """A norm; `fused` is the linear that swallows it in Transformer Engine, None where none does."""
    for part in ("weight", "bias") if s.norm == "layernorm" else ("weight",):
        plain = f"{local}.{part}"
        yield Entry(f"{ours}.{part}", plain, f"{fused}.layer_norm_{part}" if fused else plain)


def _linear(
    s: ModelSettings, ours: str, theirs: str, layout: Layout = "plain", heads: int = 0, groups: int = 0
) -> Iterator[Entry]:
    for part in ("weight", "bias") if s.bias else ("weight",):
        yield Entry(f"{ours}.{part}", f"{theirs}.{part}", f"{theirs}.{part}", layout, heads, groups)


def _layer(s: ModelSettings, ours: str, theirs: str, heads: int, groups: int, cross: str | None) -> Iterator[Entry]:
    """A transformer layer; `cross` names our cross-attention in it: "cca", "cross" (encoder) or None."""
    qkv = f"{theirs}.self_attention.linear_qkv"
    yield from _norm(s, f"{ours}.attention_norm", f"{theirs}.input_layernorm", qkv)
    yield from _linear(s, f"{ours}.attention.qkv", qkv, "qkv", heads, groups)
    yield from _linear(s, f"{ours}.attention.out", f"{theirs}.self_attention.linear_proj")
    if cross:
        norm = f"{ours}.cca.norm" if cross == "cca" else f"{ours}.cross_norm"
        attn = f"{theirs}.cross_attention.attn"
        yield from _norm(s, norm, f"{theirs}.pre_cross_attn_layernorm", None)
        yield from _linear(s, f"{ours}.{cross}.q", f"{attn}.linear_q")
        yield from _linear(s, f"{ours}.{cross}.kv", f"{attn}.linear_kv", "kv", heads, heads)
        yield from _linear(s, f"{ours}.{cross}.out", f"{attn}.linear_proj")
    if cross == "cross":  # the encoder's conditioned layer wraps its MLP norm, and never fuses it
        yield from _norm(s, f"{ours}.mlp_norm", f"{theirs}.pre_mlp_layernorm.norm", None)
    else:
        yield from _norm(s, f"{ours}.mlp_norm", f"{theirs}.pre_mlp_layernorm", f"{theirs}.mlp.linear_fc1")
    yield from _linear(s, f"{ours}.mlp.up", f"{theirs}.mlp.linear_fc1")
    yield from _linear(s, f"{ours}.mlp.down", f"{theirs}.mlp.linear_fc2")


def pairs(names: Iterable[str], settings: ModelSettings, architecture: str) -> list[tuple[Entry, str]]:
    """Every parameter of the model with the one of `names` (either spec, `_extra_state` ignored) that holds it.

    Raises UserError naming the first missing or unknown parameter.
    """
    left = {name for name in names if not name.endswith("_extra_state")}
    found = []
    for entry in entries(settings, architecture):
        name = entry.local if entry.local in left else entry.te
        if name not in left:
            other = "" if entry.te == entry.local else f" (nor {entry.te})"
            raise UserError(f"{entry.local} is missing{other}; the model of these settings needs it")
        left.remove(name)
        found.append((entry, name))
    if left:
        raise UserError(
            f"{min(left)} is unknown, with {len(left) - 1} more; the model has no such parameter, remove them"
        )
    return found


def from_megatron(
    state: Mapping[str, Tensor], settings: ModelSettings, architecture: str, layernorm_1p: bool = False
) -> dict[str, Tensor]:
    """Megatron's parameters under our names and layouts, all at once; as `pairs` and `one_from_megatron`."""
    found = pairs(state, settings, architecture)
    return {entry.ours: one_from_megatron(state[name], entry, layernorm_1p) for entry, name in found}


def one_from_megatron(tensor: Tensor, entry: Entry, layernorm_1p: bool) -> Tensor:
    """Megatron's tensor [rows, ..] as ours.

    `layernorm_1p`: its norms hold how far a weight is from 1 (`apply_layernorm_1p`); ours hold the weight, in fp32.
    """
    tensor = to_ours(tensor, entry)
    return tensor.float() + 1 if layernorm_1p and entry.norm else tensor


def to_megatron(
    state: Mapping[str, Tensor],
    settings: ModelSettings,
    architecture: str,
    spec: Spec,
    layernorm_1p: bool = False,
) -> dict[str, Tensor]:
    """Our parameters under Megatron's names and layouts: the inverse of `from_megatron`, with its errors."""
    left, theirs = set(state), {}
    for entry in entries(settings, architecture):
        if entry.ours not in left:
            raise UserError(f"{entry.ours} is missing; the model of these settings needs it")
        left.remove(entry.ours)
        tensor = to_theirs(state[entry.ours], entry)
        tensor = tensor - 1 if layernorm_1p and entry.norm else tensor
        theirs[entry.local if spec == "local" else entry.te] = tensor
    if left:
        raise UserError(
            f"{min(left)} has no counterpart in Megatron-core, with {len(left) - 1} more; "
            f"only flavour megatron can be exported"
        )
    return theirs


def to_ours(tensor: Tensor, entry: Entry) -> Tensor:
    """Megatron's tensor [rows, ..] with its rows in our order."""
    if entry.layout == "plain":
        return tensor
    sizes = _blocks(tensor, entry)
    blocks = tensor.unflatten(0, (entry.groups, sum(sizes), -1)).split(sizes, dim=1)  # (g, part, size, ..) each
    return torch.cat([block.flatten(0, 2) for block in blocks])  # (rows, ..)


def to_theirs(tensor: Tensor, entry: Entry) -> Tensor:
    """Our tensor [rows, ..] with its rows in Megatron's order."""
    if entry.layout == "plain":
        return tensor
    sizes, g = _blocks(tensor, entry), entry.groups
    size = tensor.shape[0] // (g * sum(sizes))
    blocks = tensor.split([g * part * size for part in sizes])  # (g * part * size, ..) each
    return torch.cat([b.unflatten(0, (g, -1, size)) for b in blocks], dim=1).flatten(0, 2)  # (rows, ..)


def _blocks(tensor: Tensor, entry: Entry) -> list[int]:
    """How many query, key and value heads one group has; they must divide the rows."""
    sizes = [entry.heads // entry.groups, 1, 1] if entry.layout == "qkv" else [1, 1]
    if tensor.shape[0] % (entry.groups * sum(sizes)):
        rows = f"{entry.local} has {tensor.shape[0]} rows"
        raise UserError(
            f"{rows}, which {entry.heads} heads in {entry.groups} groups do not divide; correct the number of heads"
        )
    return sizes


# What the legacy model (before Megatron-core) calls the parts of a layer, both generations of its names.
LEGACY = {
    "input_layernorm": "input_layernorm",
    "input_norm": "input_layernorm",
    "self_attention.query_key_value": "self_attention.linear_qkv",
    "self_attention.dense": "self_attention.linear_proj",
    "inter_attention.query": "cross_attention.attn.linear_q",
    "inter_attention.key_value": "cross_attention.attn.linear_kv",
    "inter_attention.dense": "cross_attention.attn.linear_proj",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
    "retriever.final_layernorm": "cross_attention.encoder.final_layernorm",
    "retriever.final_norm": "cross_attention.encoder.final_layernorm",
}
OUTER = {
    "word_embeddings_for_head": "output_layer",
    "embedding.word_embeddings": "embedding.word_embeddings",
    "embedding.position_embeddings": "embedding.position_embeddings",
    "encoder.final_layernorm": "decoder.final_layernorm",
    "encoder.final_norm": "decoder.final_layernorm",
    "output_layer": "output_layer",
}


def is_legacy(names: Iterable[str]) -> bool:
    """Whether the names are the legacy model's."""
    return any(name.startswith("language_model.") for name in names)


def core_names(names: Iterable[str]) -> dict[str, str]:
    """The legacy model's names with Megatron-core's (local spec); those that are unknown stay as they are.

    The norm after self-attention stands before cross-attention in a layer that has it, else before the MLP.
    """
    names = list(names)
    crossing = {name.split(".inter_attention.")[0] for name in names if ".inter_attention." in name}
    found = {}
    for name in names:
        where, _, part = name.removeprefix("language_model.").rpartition(".")
        layer = re.fullmatch(r"(encoder\.layers\.\d+)(\.retriever\.layers\.\d+)?\.(.+)", where)
        if layer is None:
            found[name] = f"{OUTER.get(where, where)}.{part}"
            continue
        home, inner, what = layer[1], layer[2] or "", layer[3]
        before_mlp = "pre_mlp_layernorm"
        if f"language_model.{home}{inner}" in crossing:
            before_mlp += ".norm" if inner else ""
            after_attention = "pre_cross_attn_layernorm"
        else:
            after_attention = before_mlp
        norms = {f"post_attention_{n}": after_attention for n in ("layernorm", "norm")}
        norms |= {f"post_inter_attention_{n}": before_mlp for n in ("layernorm", "norm")}
        home = home.replace("encoder.", "decoder.", 1) + inner.replace(".retriever.", ".cross_attention.encoder.")
        found[name] = f"{home}.{(LEGACY | norms).get(what, what)}.{part}"
    return found
