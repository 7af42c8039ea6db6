"""Parameters and floating-point operations by formula, without building a model.

`python -m retro.model.count` prints the shapes that Megatron-LM's RETRO examples name, or one given as JSON.
"""

import argparse
import json

from retro.model.settings import ModelSettings

MEGATRON_SHAPES = {"857m": (24, 1024, 16), "2b": (32, 2048, 32), "4b": (48, 2560, 32)}  # layers, width, heads


def _linear(rows: int, columns: int, bias: bool) -> int:
    return rows * columns + (rows if bias else 0)


def _norm(s: ModelSettings, width: int) -> int:
    return 2 * width if s.norm == "layernorm" else width


def _mlp(s: ModelSettings, width: int, hidden: int) -> int:
    up = 2 * hidden if s.activation == "swiglu" else hidden
    return _linear(up, width, s.bias) + _linear(width, hidden, s.bias)


def _cca(s: ModelSettings, distances: int) -> int:
    """One chunked cross-attention and its norm; `distances` = m + r - 1."""
    d, heads, groups = s.width, s.cca_head_count, s.cca_kv_head_count
    size = d // heads
    total = _norm(s, d) + 2 * _linear(d, d, s.bias)
    total += _linear(2 * groups * size, s.encoder_dim, s.bias)
    total += heads * s.match_length
    if s.cca_positions == "relative":
        total += heads * distances
    if s.cca_null:
        total += groups * size
    if s.cca_gate == "layer":
        total += 1
    elif s.cca_gate == "token":
        total += _linear(heads, d, True) + heads * size
    return total


def _encoder(s: ModelSettings, vocab_size: int, retrieved_length: int) -> int:
    d, e = s.width, s.encoder_dim
    total = 0
    if not s.shared_embeddings:
        total += vocab_size * e + (retrieved_length * e if s.encoder_positions == "learned" else 0)
    elif e != d:
        total += e * d
    layer = 2 * _norm(s, e) + _linear(3 * e, e, s.bias) + _linear(e, e, s.bias)
    layer += _mlp(s, e, s.encoder_ffn_dim)
    cross = _norm(s, e) + 2 * _linear(e, e, s.bias) + _linear(2 * e, d, s.bias)
    total += s.encoder_layers * layer + len(s.encoder_cross_attention) * cross
    return total + (_norm(s, e) if s.encoder_final_norm else 0)


def parameters(
    settings: ModelSettings,
    architecture: str,
    vocab_size: int,
    seq_length: int,
    chunk_length: int = 64,
    retrieved_length: int = 128,
) -> int:
    """Parameters of the model that `build_model` makes of the same arguments; tied weights count once."""
    s, d = settings, settings.width
    total = vocab_size * d * (1 if s.tied else 2) + (_norm(s, d) if s.final_norm else 0)
    if s.positions == "learned":
        total += d * (max(seq_length, retrieved_length) if s.shared_embeddings else seq_length)
    attention = _linear((s.heads + 2 * s.kv_head_count) * s.head_size, d, s.has_qkv_bias)
    attention += _linear(d, s.heads * s.head_size, s.bias)
    if s.qk_norm != "none":
        attention += s.head_size * (2 if s.qk_norm == "head" else s.heads + s.kv_head_count)
    total += s.layers * (2 * _norm(s, d) + attention + _mlp(s, d, s.ffn_dim))
    if architecture == "retro":
        total += _encoder(s, vocab_size, retrieved_length)
        total += len(s.cca_at) * _cca(s, chunk_length + retrieved_length - 1)
        total += s.match_length + d + 3 if s.copy_output else 0
    return total


def flops_per_token(
    settings: ModelSettings,
    *,
    architecture: str,
    vocab_size: int,
    seq_length: int,
    chunk_length: int,
    retrieved_length: int,
    neighbours: int,
) -> float:
    """Floating-point operations of forward and backward for one decoder token.

    Two per multiply-add, backward = twice forward; linears, attention (half of it where causal), encoder,
    chunked cross-attention and head; norms, activations and look-ups are left out. `neighbours` is k; 0, or
    architecture gpt, means retrieval off.
    """
    s, d, e = settings, settings.width, settings.encoder_dim
    fc = 3 if s.activation == "swiglu" else 2
    inner = s.heads * s.head_size
    qkv = (s.heads + 2 * s.kv_head_count) * s.head_size * d
    # Multiply-adds, forward.
    total: float = s.layers * (qkv + inner * d + fc * d * s.ffn_dim + seq_length * inner) + vocab_size * d
    if architecture == "retro" and neighbours:
        read = neighbours * retrieved_length  # keys of a chunk
        per_token = read / chunk_length  # neighbour tokens for each decoder token
        crossing = len(s.encoder_cross_attention)
        own = s.encoder_layers * (4 * e * e + fc * e * s.encoder_ffn_dim + 2 * retrieved_length * e)
        own += crossing * (2 * e * e + 2 * chunk_length * e)
        if s.shared_embeddings and e != d:
            own += e * d
        kv = 2 * s.cca_kv_head_count * (d // s.cca_head_count) * e
        layer = 2 * d * d + (2 * d + s.match_length * s.cca_head_count) * read + per_token * kv
        total += per_token * own + crossing * 2 * e * d + len(s.cca_at) * layer
    return 6.0 * total


def main() -> None:
    """Print parameters and operations a token, with retrieval and without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="JSON", help='settings, such as \'{"flavour": "paper", "layers": 12}\'')
    parser.add_argument("--vocab-size", type=int, default=50304)
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--chunk-length", type=int, default=64)
    parser.add_argument("--retrieved-length", type=int, default=128)
    parser.add_argument("--neighbours", type=int, default=2)
    args = parser.parse_args()
    if args.model:
        models = {"model": ModelSettings(**json.loads(args.model))}
    else:
        models = {
            name: ModelSettings(flavour="megatron", layers=layers, width=width, heads=heads)
            for name, (layers, width, heads) in MEGATRON_SHAPES.items()
        }
    shape = {"vocab_size": args.vocab_size, "seq_length": args.seq_length}
    shape |= {"chunk_length": args.chunk_length, "retrieved_length": args.retrieved_length}
    print(f"{'':8}{'GPT':>16}{'RETRO':>16}{'GFLOP a token: GPT':>20}{'RETRO':>9}")
    for name, settings in models.items():
        counts = [parameters(settings, architecture, **shape) for architecture in ("gpt", "retro")]
        flops = [
            flops_per_token(settings, architecture=architecture, neighbours=args.neighbours, **shape) / 1e9
            for architecture in ("gpt", "retro")
        ]
        print(f"{name:8}{counts[0]:16,}{counts[1]:16,}{flops[0]:20.3f}{flops[1]:9.3f}")


if __name__ == "__main__":
    main()
