"""Bytes that one process needs for a training step, by formula: what PyTorch keeps for the gradient, tensor by tensor.

State: fp32 parameters, gradients and AdamW's two moments, 16 bytes a parameter; FSDP2 leaves each of N processes one
N-th of it. With bf16 the fp32 parameters are the master copy: what is gathered, or cast, has two bytes.
`tests/planning/test_memory.py` measures the same of a model that runs.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from retro.model.build import Architecture, build_model
from retro.model.settings import ModelSettings
from retro.training.weights import retrieves

SAFE = 0.9  # share of a GPU that is planned; the rest is CUDA's, NCCL's and the allocator's (an assumption)
LOSS = (
    12  # bytes a logit while the loss is differentiated: log-probabilities and two gradients, fp32 in either precision
)


@dataclass(frozen=True)
class Work:
    """What one forward and backward pass reads, and how."""

    micro_batch: int
    vocab_size: int
    seq_length: int
    chunk_length: int
    retrieved_length: int
    neighbours: int
    precision: str = "fp32"
    recompute: str = "none"
    fsdp: bool = False

    @property
    def lengths(self) -> dict[str, int]:
        """What `build_model` wants to know."""
        names = ("vocab_size", "seq_length", "chunk_length", "retrieved_length")
        return {name: getattr(self, name) for name in names}

    @property
    def tokens(self) -> int:
        """Of the decoder."""
        return self.micro_batch * self.seq_length

    @property
    def keys(self) -> int:
        """Neighbour tokens that a chunk reads, k * r."""
        return self.neighbours * self.retrieved_length

    @property
    def read(self) -> int:
        """Neighbour tokens in all, b * l * k * r."""
        return self.micro_batch * (self.seq_length // self.chunk_length) * self.keys

    @property
    def compute(self) -> int:
        """Bytes of a number that a matrix product reads."""
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True)
class Step:
    """Bytes of a process: lasting state, FSDP's gathered layers (or bf16 copies), activations at their peak."""

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float

    @property
    def state(self) -> float:
        """What lasts from step to step."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.state + self.gathered + self.activations


@dataclass(frozen=True)
class Fit:
    """The largest micro batch that GPUs hold, 0 for none, and what one of them then needs (with none: for a sample)."""

    gpus: int
    recompute: str
    micro_batch: int
    step: Step


def step(
    settings: ModelSettings, architecture: Architecture, work: Work, *, ranks: int = 1, freeze: bool = False
) -> Step:
    """A step of a process, with `work.fsdp` one of `ranks` that share the model; `freeze`: only what retrieves trains.

    The peak is that of any micro batch but a step's first, before which there are no gradients yet.
    """
    shapes = _shapes(settings, architecture, tuple(work.lengths.items()))
    held = {name: _shard(shape, ranks if work.fsdp else 1) for name, shape in shapes.items()}
    trained = sum(count for name, count in held.items() if retrieves(name) or not freeze)
    sizes = [shape.numel() for shape in shapes.values()]
    gathered = _gathered(shapes, work) if work.fsdp else 2.0 * sum(sizes) if work.precision == "bf16" else 0.0
    adding = 0 if work.fsdp else 4 * max(sizes)  # a gradient before it is added
    peak = activations(settings, architecture, work) + adding
    return Step(4 * sum(held.values()), 4 * trained, 8 * trained, gathered, peak)


def fit(
    settings: ModelSettings,
    architecture: Architecture,
    work: Work,
    *,
    gpus: int,
    limit: int,
    room: float,
    freeze: bool = False,
) -> Fit:
    """The largest micro batch up to `limit` with which `gpus` of `room` bytes, that share the model by FSDP2, take a
    step; SAFE of each is planned.

    Activations grow in proportion to the micro batch, so that two of them tell all.
    """

    def at(size: int) -> Step:
        here = replace(work, micro_batch=size, fsdp=True)
        return step(settings, architecture, here, ranks=gpus, freeze=freeze)

    one, two = at(1), at(2)
    size = int((SAFE * room - one.total) // (two.total - one.total)) + 1
    size = max(0, min(limit, size))
    return Fit(gpus, work.recompute, size, at(max(size, 1)))


@lru_cache
def _shapes(
    settings: ModelSettings, architecture: Architecture, lengths: tuple[tuple[str, int], ...]
) -> dict[str, torch.Size]:
    """Every parameter's shape."""
    with torch.device("meta"):
        model = build_model(settings, architecture=architecture, seed=None, **dict(lengths))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _shard(shape: torch.Size, ranks: int) -> int:
    """Numbers of a tensor that a process holds at most: FSDP2 cuts the first side."""
    return -(-shape[0] // ranks) * shape[1:].numel()


def _gathered(shapes: dict[str, torch.Size], work: Work) -> float:
    """Whole tensors while FSDP2 computes: those outside the layers, with their gradient, all the time; of layers the
    current one, the next, and an encoder layer inside; a layer's gradient, and once more in fp32 to be summed."""
    layers: dict[tuple[str, str], int] = {}
    outer = 0
    for name, shape in shapes.items():
        half, inside, number, *_ = [*name.split("."), ""]
        if inside == "layers":
            layers[half, number] = layers.get((half, number), 0) + shape.numel()
        else:
            outer += shape.numel()
    largest = sorted(layers.values())[-3:]
    gradients = max((work.compute + 4) * largest[-1], 4 * outer)
    return 2 * work.compute * outer + work.compute * sum(largest) + gradients


def activations(s: ModelSettings, architecture: str, work: Work) -> float:
    """Bytes that a micro batch holds at its peak, which is where the loss or, with recomputation, a layer is
    differentiated."""
    t, c, retrieval = work.tokens, work.compute, architecture == "retro" and work.neighbours > 0
    reading = {i: _cca(s, work, i == s.cca_at[0]) for i in s.cca_at} if retrieval else {}
    encoder, size = (_encoder(s, work), work.read * s.encoder_dim) if retrieval else ([], 0)
    attending, mlp = _attention(s, work), _mlp(s, work)
    inputs = t * (16 + c * s.width) + 9 * work.read * retrieval  # tokens, targets, what the head reads
    loss = LOSS * t * work.vocab_size
    flow = t * (8 * s.width + c * _hidden(s.activation, s.ffn_dim))  # gradients on their way through a layer
    if work.recompute == "none":
        layers = s.layers * (attending + mlp) + sum(reading.values()) + sum(encoder)
        return inputs + 4 * t * s.width + layers + max(loss, flow)
    stream = (2 if work.fsdp and c == 2 else 4) * t * s.width  # a sum of bf16 tensors where embeddings are bf16 too
    peaks: list[float] = [stream * (s.layers + 1) + c * size + loss]
    for i in range(1, s.layers + 1):  # states that cross-attention reads, and their gradient
        peaks.append(stream * i + 2 * c * size + attending + reading.get(i, 0) + mlp + flow)
    if retrieval:  # the first layer that reads computes the encoder again, and that its layers, one by one
        i, states = s.cca_at[0], 4 * size * s.encoder_layers
        peaks[i] += states
        flow = 8 * size + c * work.read * _hidden(s.activation, s.encoder_ffn_dim)
        peaks.append(stream * (i + 2) + attending + states + max(encoder[1:], default=0) + flow)
        peaks.append(stream * (i + 2) + attending + encoder[0] + flow)
    return inputs + max(peaks)


def _hidden(activation: str, hidden: int) -> int:
    """Numbers a token that an MLP keeps: `up`, what the activation makes of it, and their product."""
    return (4 if activation == "swiglu" else 2) * hidden


def _attention(s: ModelSettings, work: Work) -> float:
    """What a decoder layer's self-attention keeps, the residual stream before it in fp32."""
    c, d, asked, keys = work.compute, s.width, s.heads * s.head_size, s.kv_head_count * s.head_size
    turned = asked + keys if s.positions == "rope" else 0  # rotated queries and keys, beside those in qkv
    turned += asked + keys if s.qk_norm != "none" else 0
    each = 4 * d + c * (d + (asked + 2 * keys) + turned + asked) + 4 * s.heads
    return work.tokens * (each + (d if s.dropout else 0))  # which features were dropped


def _mlp(s: ModelSettings, work: Work) -> float:
    """What a decoder layer's MLP keeps."""
    each = 4 * s.width + work.compute * (s.width + _hidden(s.activation, s.ffn_dim))
    return work.tokens * (each + (s.width if s.dropout else 0))


def _cca(s: ModelSettings, work: Work, first: bool) -> float:
    """What one chunked cross-attention keeps; the `first` also what all of them read and the encoder asks."""
    a, t, c, d, heads = work.read, work.tokens, work.compute, s.width, s.cca_head_count
    kept = t * (4 * d + c * 3 * d + 4 * heads + (d if s.dropout else 0))  # queries, projected ones, what was read
    kept += c * a * s.cca_kv_head_count * (d // heads) * (3 if s.cca_positions == "rope" else 2)
    if s.match_length or s.cca_positions == "relative":
        kept += c * t * heads * work.keys  # scores are added to
    if first:
        kept += c * t * (d + s.match_length * work.keys)  # the chunks, and where tokens match
        kept += a * ((4 + c) * d + 8 * s.match_length) if s.match_length else 0
        kept += 4 * t * work.keys if s.copy_output else 0  # the copier's share of each place
    return kept


def _encoder(s: ModelSettings, work: Work) -> list[float]:
    """What each encoder layer keeps; the first also the embedding, the last the final norm."""
    a, t, c, e = work.read, work.tokens, work.compute, s.encoder_dim
    rope = s.encoder_positions == "rope"
    found: list[float] = []
    for j in range(1, s.encoder_layers + 1):
        kept = a * (4 * e + c * (5 * e + (2 * e if rope else 0)) + 4 * s.encoder_head_count)
        kept += a * (4 * e + c * (e + _hidden(s.activation, s.encoder_ffn_dim)))
        if j in s.encoder_cross_attention:
            kept += a * (4 * e + c * 3 * e + 4 * s.encoder_head_count) + c * t * e * (3 if rope else 2)
        kept += a * e * (3 if j in s.encoder_cross_attention else 2) if s.encoder_dropout else 0
        found.append(kept)
    found[0] += a * (4 * e + 8) + (c * a * s.width if s.shared_embeddings and e != s.width else 0)
    found[-1] += c * a * e if s.encoder_final_norm or c == 2 else 0
    return found
