"""The settings of GPT and RETRO: one frozen pydantic model, three flavours.

A flavour only fills defaults; every quirk it stands for is a field of its own that can be set apart.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Flavour = Literal["paper", "megatron", "copy-ready"]

FLAVOURS: dict[str, dict[str, Any]] = {
    # Borgeaud et al. 2021: RMSNorm, relative positions, an encoder with its own embeddings.
    "paper": {},
    # Megatron-core as released, quirks included.
    "megatron": {
        "positions": "learned",
        "norm": "layernorm",
        "init_std": 0.02,
        "bias": True,
        "final_norm": False,
        "encoder_residual": "normed",
        "encoder_final_norm": False,
        "encoder_dropout": 0.1,
        "mask_padding": False,
        "shared_embeddings": True,
        "chunk_alignment": "end",
        "cca_positions": "none",
    },
    # Ours: chunked cross-attention that can copy, and abstain, from the first hundred steps.
    "copy-ready": {
        "shared_embeddings": True,
        "cca": "copy-ready",
        "copy_output": True,
        "cca_layers": "every-third",
        "cca_positions": "relative",
        "cca_null": True,
    },
}


def apply_flavour(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mapping` with the defaults of its `flavour` filled in for keys that it does not give.

    Raises ValueError for an unknown flavour.
    """
    name = mapping.get("flavour", "paper")
    if not isinstance(name, str) or name not in FLAVOURS:
        raise ValueError(f"flavour {name!r} is unknown; choose one of {', '.join(FLAVOURS)}")
    filled = {**FLAVOURS[name], **mapping}
    if filled.get("cca") != "copy-ready":  # the output's copier goes with the flavour's cross-attention
        filled["copy_output"] = mapping.get("copy_output", False)
    if name == "megatron" and "encoder_positions" not in filled:
        # With rope, Megatron leaves the encoder and every cross-attention without positions.
        filled["encoder_positions"] = "learned" if filled["positions"] == "learned" else "none"
    return filled


def paper_cca_layers(layers: int) -> tuple[int, ...]:
    """The 1-based layers with chunked cross-attention: 6, 9, 12, .. or, above 15 layers, 9, 12, ..

    Below 6 layers, where the paper says nothing: the middle and the last layer.
    """
    if layers < 6:
        return tuple(sorted({(layers + 1) // 2, layers}))
    return tuple(range(6 if layers <= 15 else 9, layers + 1, 3))


class RopeScaling(BaseModel):
    """How rope reaches further than it was first trained to: the frequencies of Hugging Face's `rope_type`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["linear", "llama3", "yarn"] = Field(
        "linear", description="linear: all frequencies are divided by `factor`; llama3, yarn: the low ones only"
    )
    factor: float = Field(1.0, gt=0, description="how many times further")
    length: int = Field(8192, ge=1, description="positions it was first trained to (llama3, yarn)")
    low: float = Field(1.0, gt=0, description="turns within `length` up to which the whole factor divides")
    high: float = Field(4.0, gt=0, description="turns within `length` from which on nothing does")
    whole_pairs: bool = Field(True, description="yarn: `low` and `high` are rounded to a pair of features")
    amplitude: float = Field(1.0, gt=0, description="yarn: what rotated queries and keys are multiplied by")

    @model_validator(mode="after")
    def _in_order(self) -> "RopeScaling":
        if self.low >= self.high:
            raise ValueError(
                f"low is {self.low}, which must be below high, {self.high}; lower the one or raise the other"
            )
        return self


def _is_none(value: object) -> bool:
    return value is None


def _is_false(value: object) -> bool:
    return value is False


class ModelSettings(BaseModel):
    """What a model is made of. Vocabulary, sequence and chunk lengths come from the recorded config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flavour: Flavour = Field("paper", description="whose RETRO: fills the defaults of the other fields")

    layers: int = Field(6, ge=1, description="decoder layers")
    width: int = Field(128, ge=1, description="width of the decoder's residual stream")
    heads: int = Field(4, ge=1, description="attention heads of a decoder layer")
    kv_heads: int | None = Field(
        None, ge=1, description="key/value heads of decoder self-attention (grouped queries); none: as heads"
    )
    head_dim: int | None = Field(
        None,
        ge=2,
        exclude_if=_is_none,
        description="width of a head of decoder self-attention; none: width / heads",
    )
    ffn: int | None = Field(
        None, ge=1, description="hidden width of the MLP; none: 4 width, with swiglu 8/3 width in steps of 64"
    )
    positions: Literal["rope", "learned"] = Field("rope", description="positions of the decoder")
    rope_fraction: float = Field(1.0, gt=0, le=1, description="share of each head that rope rotates")
    rope_base: float = Field(10000.0, gt=1, description="rope's longest wavelength is 2 pi times this")
    rope_scaling: RopeScaling | None = Field(
        None, exclude_if=_is_none, description="how rope of the decoder was stretched; none: not at all"
    )
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="normalisation before each branch")
    norm_eps: float = Field(1e-5, gt=0, description="added to the variance in a normalisation")
    norm_position: Literal["before", "after"] = Field(
        "before",
        exclude_if=lambda value: value == "before",
        description="after: the decoder normalises what self-attention and MLP put out, not what they read (OLMo 2)",
    )
    parallel_residual: bool = Field(
        False,
        exclude_if=_is_false,
        description="a decoder layer's MLP reads what its self-attention reads (GPT-NeoX)",
    )
    qk_norm: Literal["none", "head", "whole"] = Field(
        "none",
        exclude_if=lambda value: value == "none",
        description="RMSNorm of the decoder's queries and keys: of each head (Qwen 3), or of all heads as one (OLMo 2)",
    )
    activation: Literal["gelu", "gelu_tanh", "squared_relu", "swiglu"] = Field(
        "gelu", description="activation of the MLPs"
    )
    bias: bool = Field(False, description="biases on every linear but the head")
    qkv_bias: bool | None = Field(
        None,
        exclude_if=_is_none,
        description="biases on the decoder's queries, keys and values (Qwen 2); none: as bias",
    )
    tied: bool = Field(True, description="the head shares the token table")
    final_norm: bool = Field(True, description="normalise the residual stream before the head")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on embeddings and decoder branches")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the weights of decoder and cross-attention"
    )
    init_std: float | None = Field(
        None,
        gt=0,
        description="standard deviation of initial weights; none: sqrt(2 / (5 width)) (Nguyen and Salazar 2019)",
    )

    chunk_alignment: Literal["start", "end"] = Field(
        "start", description="where the chunk grid begins when the length is no multiple of the chunk"
    )
    mask_padding: bool = Field(True, description="hide padding inside neighbours from every attention")
    cca_layers: tuple[int, ...] | Literal["paper", "every-third"] = Field(
        "paper", description="decoder layers, counted from 1, with chunked cross-attention, or a rule"
    )
    cca: Literal["standard", "copy-ready"] = Field(
        "standard",
        description="copy-ready: scores are told how many of the last tokens stand before a place in a "
        "neighbour, and values carry the token there, so that reading on after a match works at once",
    )
    cca_heads: int | None = Field(None, ge=1, description="heads of chunked cross-attention; none: as heads")
    cca_kv_heads: int | None = Field(
        None, ge=1, description="key/value heads of chunked cross-attention; none: as its heads"
    )
    cca_positions: Literal["rope", "relative", "none"] = Field(
        "rope", description="positions in chunked cross-attention: rope, a learned bias per distance, none"
    )
    cca_null: bool = Field(False, description="a learned slot without content, so that attention may abstain")
    cca_gate: Literal["none", "layer", "token"] = Field(
        "none",
        description="gate on chunked cross-attention: a scalar a layer that starts at zero (the model then "
        "starts as its twin), or one a head and token that sees the state and what was read",
    )
    copy_output: bool = Field(
        False,
        description="mix the head's distribution with that of what followed the longest match in the neighbours, by a "
        "learned gate; with cca: copy-ready",
    )
    copy_context: int | None = Field(
        None, ge=1, le=16, description="copy-ready: how many tokens before a place a match is judged by; none: 8"
    )

    encoder_layers: int = Field(2, ge=1, description="layers of the neighbour encoder")
    encoder_width: int | None = Field(None, ge=1, description="width of the encoder; none: as the decoder")
    encoder_heads: int | None = Field(
        None, ge=1, description="heads of an encoder layer; none: heads of the decoder's size if they fit"
    )
    encoder_ffn: int | None = Field(None, ge=1, description="hidden width of the encoder's MLPs; as for ffn")
    encoder_positions: Literal["rope", "learned", "none"] = Field(
        "rope", description="positions of the encoder's self- and cross-attention"
    )
    encoder_cross_attention: tuple[int, ...] = Field(
        (1,), description="encoder layers, counted from 1, that look at the retrieving chunk"
    )
    encoder_residual: Literal["raw", "normed"] = Field(
        "raw", description="normed: the encoder's cross-attention is added to the normalised state"
    )
    encoder_final_norm: bool = Field(True, description="normalise what the encoder hands out")
    encoder_dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on encoder branches and self-attention weights"
    )
    shared_embeddings: bool = Field(False, description="the encoder reads the decoder's tables")

    @model_validator(mode="before")
    @classmethod
    def _fill_flavour(cls, values: Any) -> Any:
        return apply_flavour(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check(self) -> "ModelSettings":
        for name, whole, part in (
            ("heads", ("width", self.width), self.heads if self.head_dim is None else 1),
            ("kv_heads", ("heads", self.heads), self.kv_heads or self.heads),
            ("cca_heads", ("width", self.width), self.cca_heads or self.heads),
            ("cca_kv_heads", ("cca_heads", self.cca_heads or self.heads), self.cca_kv_heads or 1),
            ("encoder_heads", ("encoder_width", self.encoder_dim), self.encoder_head_count),
        ):
            if whole[1] % part:
                raise ValueError(
                    f"{name} is {part}, which does not divide {whole[0]} {whole[1]}; choose a divisor of it"
                )
        self._check_layers("cca_layers", self.cca_at, self.layers)
        self._check_layers("encoder_cross_attention", self.encoder_cross_attention, self.encoder_layers)
        if not self.cca_at:
            raise ValueError("cca_layers is empty; name a layer, or choose architecture gpt, which has none")
        if self.cca == "copy-ready" and self.cca_kv_head_count != self.cca_head_count:
            raise ValueError(
                "cca is copy-ready, whose values carry whole embeddings; leave cca_kv_heads out, or set "
                f"it to the number of heads, {self.cca_head_count}"
            )
        if self.copy_output and self.cca != "copy-ready":
            raise ValueError("copy_output is for cca: copy-ready only; leave it out or change cca")
        if self.copy_context is not None and self.cca != "copy-ready":
            raise ValueError("copy_context is for cca: copy-ready only; leave it out or change cca")
        if self.encoder_positions == "learned" and self.shared_embeddings and self.positions != "learned":
            raise ValueError(
                "encoder_positions is learned with shared_embeddings, but the decoder has no table of "
                "positions to share; set positions: learned, or another encoder_positions"
            )
        return self

    @staticmethod
    def _check_layers(name: str, chosen: tuple[int, ...], count: int) -> None:
        wrong = [i for i in chosen if not 1 <= i <= count]
        if wrong:
            raise ValueError(f"{name} names layer {wrong[0]}; layers are counted from 1 to {count}")
        if list(chosen) != sorted(set(chosen)):
            raise ValueError(f"{name} is {list(chosen)}; name each layer once, in ascending order")

    @property
    def head_size(self) -> int:
        """Width of one decoder head."""
        return self.head_dim or self.width // self.heads

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values of the decoder have biases."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def kv_head_count(self) -> int:
        """Key/value heads of decoder self-attention."""
        return self.kv_heads or self.heads

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the decoder's MLPs."""
        return self.ffn or self._default_ffn(self.width)

    @property
    def cca_at(self) -> tuple[int, ...]:
        """The layers with chunked cross-attention, counted from 1, ascending."""
        if self.cca_layers == "paper":
            return paper_cca_layers(self.layers)
        if self.cca_layers == "every-third":
            return tuple(range(3, self.layers + 1, 3)) or paper_cca_layers(self.layers)
        return self.cca_layers

    @property
    def cca_head_count(self) -> int:
        """Query heads of chunked cross-attention."""
        return self.cca_heads or self.heads

    @property
    def cca_kv_head_count(self) -> int:
        """Key/value heads of chunked cross-attention."""
        return self.cca_kv_heads or self.cca_head_count

    @property
    def match_length(self) -> int:
        """How many tokens a match is judged by; 0 without copy-ready cross-attention."""
        return (self.copy_context or 8) if self.cca == "copy-ready" else 0

    @property
    def initial_std(self) -> float:
        """Standard deviation of initial weights."""
        return self.init_std or (2 / (5 * self.width)) ** 0.5

    @property
    def encoder_dim(self) -> int:
        """Width of the neighbour encoder."""
        return self.encoder_width or self.width

    @property
    def encoder_head_count(self) -> int:
        """Heads of an encoder layer: given, or of the decoder's head size, or the next fitting number."""
        if self.encoder_heads:
            return self.encoder_heads
        size = self.width // self.heads
        wanted = max(1, self.encoder_dim // size) if size else 1
        return next(h for h in range(wanted, 0, -1) if self.encoder_dim % h == 0)

    @property
    def encoder_ffn_dim(self) -> int:
        """Hidden width of the encoder's MLPs."""
        if self.encoder_ffn is None and self.encoder_dim == self.width:
            return self.ffn_dim
        return self.encoder_ffn or self._default_ffn(self.encoder_dim)

    def _default_ffn(self, width: int) -> int:
        if self.activation == "swiglu":
            return max(64, int(8 * width / 3 / 64) * 64)
        return 4 * width
