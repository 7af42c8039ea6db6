"""Trained models as folders that Hugging Face transformers loads.

    python -m retro.interop.huggingface export --run results/open-book/runs/retro-s1 --output FOLDER

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)

A GPT is written as a stock architecture where one computes the same (Llama, Arcee, GPT-NeoX, GPT-2), and then needs no
trust_remote_code. Every other model brings the modules that compute it.
"""

import argparse
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from retro.base import command
from retro.base.artifacts import read_manifest, replacing, write_json, write_text
from retro.base.stage import UserError, whole
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.named import run_folder
from retro.interop.card import card
from retro.interop.names import Entry, to_theirs
from retro.interop.sentencepieces import to_tokenizers
from retro.interop.states import State, Writer, open_file
from retro.model.settings import ModelSettings
from retro.training.settings import ImportedModel, TrainedRun, described

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "squared_relu": "relu2", "swiglu": "silu"}


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


def stock_config(kind: str, s: ModelSettings, vocab_size: int, positions: int) -> dict[str, Any]:
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


def stock_state(kind: str, ours: dict[str, Tensor], s: ModelSettings) -> dict[str, Tensor]:
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


ROOT = Path(__file__).resolve().parents[1]
CLASSES = {
    "arcee": "ArceeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
}


SHARD_SIZE = 4_000_000_000


def export(run: Path, output: Path, tokenizer: Path | None = None, shard_size: int = SHARD_SIZE) -> str:
    """Write the model in the folder `run`, with its tokenizer, to the folder `output`; return what it became.

    Weights are in one file, or, above `shard_size` bytes, in several with an index.

    Raises UserError if `output` holds something, or the model or its tokenizer cannot be read.
    """
    manifest = read_manifest(run / "model.json", "model")
    manifest.check()
    tokenizer = tokenizer or run / "../../tokenizer/manifest.json"
    if not tokenizer.exists():
        raise UserError(f"{tokenizer}: no such tokenizer; name its manifest.json with --tokenizer")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: holds files already; name an empty or new folder")
    model = described(manifest.settings, str(manifest.path))
    words = read_tokenizer(tokenizer, model)
    settings, architecture, recorded = model.model, model.architecture, model.recorded
    weights = open_file(manifest.file("model.safetensors"))
    kind = stock(settings) if architecture == "gpt" else None
    lengths = recorded.lengths
    if kind:
        config: dict[str, Any] = {"model_type": kind, "architectures": [CLASSES[kind]]}
        config |= stock_config(kind, settings, recorded.vocab_size, recorded.seq_length)
    else:
        auto = {
            "AutoConfig": "modeling_retro.RetroConfig",
            "AutoModelForCausalLM": "modeling_retro.RetroForCausalLM",
        }
        config = {"model_type": "retro", "architectures": ["RetroForCausalLM"], "auto_map": auto}
        config |= {"architecture": architecture, "model": settings.model_dump(mode="json"), **lengths}
        config |= {"tie_word_embeddings": False, "use_cache": False}
        copy_modules(output)
    ends = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    write_weights(output, weights, kind, settings, shard_size)
    words.save_pretrained(str(output))
    write_json(output / "generation_config.json", {**ends, "use_cache": bool(kind)})
    write_json(output / "config.json", {**config, **ends, "dtype": "float32"})
    write_text(output / "README.md", card(manifest, model, read_manifest(tokenizer, "tokenizer"), kind))
    if kind:
        return f"{architecture}, as {CLASSES[kind]}"
    why = f" ({why_not(settings)})" if architecture == "gpt" else ""
    return f"{architecture}, with its modules{why}: load it with trust_remote_code=True"


def write_weights(output: Path, weights: State, kind: str | None, settings: ModelSettings, shard_size: int) -> None:
    """Write the parameters, one after the other, under the names and layouts of `kind` (None: ours)."""

    def theirs(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return stock_state(kind, {name: tensor}, settings) if kind else {f"retro.{name}": tensor}

    to_come: dict[str, Tensor] = {}  # without values
    for name, shape in weights.shapes.items():
        to_come |= theirs(name, torch.empty(shape, device="meta"))
    split = split_torch_state_dict_into_shards(dict(sorted(to_come.items())), max_shard_size=shard_size)
    with ExitStack() as stack:
        writers = {}
        for file, names in split.filename_to_tensors.items():
            temporary = stack.enter_context(replacing(output / file))
            shapes = {name: tuple(to_come[name].shape) for name in names}
            writers[file] = stack.enter_context(Writer(temporary, shapes, {"format": "pt"}))
        for name in weights:
            for new, tensor in theirs(name, weights[name]).items():
                writers[split.tensor_to_filename[new]].put(new, tensor)
            del tensor  # before the next is read
    if split.is_sharded:
        facts = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(output / "model.safetensors.index.json", facts)


def read_tokenizer(path: Path, model: TrainedRun | ImportedModel) -> Any:
    """The tokenizer as transformers' PreTrainedTokenizerFast."""
    from transformers import PreTrainedTokenizerFast

    facts, recorded = read_manifest(path, "tokenizer"), model.recorded
    if facts.counts["vocab_size"] != recorded.vocab_size:
        raise UserError(
            f"{path}: has {facts.counts['vocab_size']} tokens, the model {recorded.vocab_size}; name the one "
            "it was trained with"
        )
    ours = Tokenizer.load(path)
    theirs = getattr(ours._engine, "tokenizer", None)
    if theirs is None:
        theirs = to_tokenizers(facts.file("tokenizer.model"), ours)
    eod = theirs.id_to_token(facts.counts["eod_id"])
    pad = theirs.id_to_token(facts.counts["pad_id"])
    return PreTrainedTokenizerFast(
        tokenizer_object=theirs, eos_token=eod, pad_token=pad, model_max_length=recorded.seq_length
    )


def copy_modules(output: Path) -> None:
    """Copy modeling_retro.py and every module of ours that it needs, their imports made relative, into `output`."""
    left, done = [ROOT / "interop/modeling_retro.py"], set()
    while left:
        path = left.pop()
        if path in done:
            continue
        done.add(path)
        text = path.read_text(encoding="utf-8")
        left += [ROOT / f"model/{name}.py" for name in re.findall(r"^from retro\.model\.(\w+) import", text, re.M)]
        text = re.sub(r"^from retro\.model\.(\w+) import", r"from .\1 import", text, flags=re.M)
        if re.search(r"^\s*(from|import) retro\b", text, re.M):
            raise AssertionError(f"{path} imports more of the package than retro.model")
        write_text(output / path.name, text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("export", help="write a folder for transformers")
    writing.add_argument("--run", required=True, type=run_folder, help="a trained run, by name or folder: retro-s1")
    writing.add_argument("--output", required=True, type=Path, help="a new folder")
    writing.add_argument("--tokenizer", type=Path, help="the tokenizer's manifest.json; default: the dataset's")
    writing.add_argument(
        "--shard-size",
        type=whole,
        default=SHARD_SIZE,
        help="bytes of weights in one file at most (default: %(default)s)",
    )
    options = parser.parse_args()
    print(f"{options.output}: {export(options.run, options.output, options.tokenizer, options.shard_size)}")


if __name__ == "__main__":
    command.run(main)
