"""Checkpoint folders laid out as Megatron-LM writes them, cut by hand from a whole state dict.

    python tests/interop/make_checkpoints.py FOLDER      # one of each kind, to look at

No file of Megatron's was at hand: names, cuts and nesting are those of its public code.
"""

import argparse
import enum
import functools
import json
import random
import re
import signal
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp

ROWS = re.compile(
    r"(linear_(qkv|q|kv|fc1)\.(weight|bias)|embedding\.word_embeddings\.weight|output_layer\.weight)$"
)  # column-parallel: each rank has some of the outputs
COLUMNS = re.compile(r"linear_(proj|fc2)\.weight$")  # row-parallel: each rank has some of the inputs


class ModelType(enum.Enum):
    """A class of Megatron's that its arguments hold."""

    encoder_or_decoder = 1


def arguments(**more):
    """Megatron's arguments, with an object among them that only Megatron can make."""
    module = sys.modules.setdefault("megatron.core.enums", types.ModuleType("megatron.core.enums"))
    ModelType.__module__, module.ModelType = module.__name__, ModelType
    for name in ("megatron", "megatron.core"):
        sys.modules.setdefault(name, types.ModuleType(name))
    plain = {"seed": 1234, "params_dtype": torch.bfloat16, "rampup_batch_size": None, "eval_iters": 10}
    plain |= {"exit_signal": signal.SIGTERM, "init_method": functools.partial(torch.nn.init.normal_, std=0.02)}
    return argparse.Namespace(**plain, model_type=ModelType.encoder_or_decoder, **more)


def cut(name, tensor, rank, ranks, gated):
    """What a tensor-parallel rank holds of a parameter."""
    if name.endswith(("linear_fc1.weight", "linear_fc1.bias")) and gated:
        gate, up = tensor.chunk(2)
        return torch.cat([gate.chunk(ranks)[rank], up.chunk(ranks)[rank]])
    if ROWS.search(name):
        return tensor.chunk(ranks)[rank]
    return tensor.chunk(ranks, dim=1)[rank] if COLUMNS.search(name) else tensor


def staged(whole, layers, stages, parts):
    """{(stage, part): parameters}, layers numbered from 0 in each; the last has a copy of a shared token table."""
    each = layers // (stages * parts)
    found = {(stage, part): {} for stage in range(stages) for part in range(parts)}
    for name, tensor in whole.items():
        layer = re.match(r"decoder\.layers\.(\d+)\.(.+)", name)
        if layer:
            at = int(layer[1])
            home = found[at // each % stages, at // each // stages]
            home[f"decoder.layers.{at % each}.{layer[2]}"] = tensor
        else:
            last = name.startswith(("decoder.final", "output_layer"))
            found[(stages - 1, parts - 1) if last else (0, 0)][name] = tensor
    if stages * parts > 1:
        found[stages - 1, parts - 1].setdefault("output_layer.weight", whole["embedding.word_embeddings.weight"])
    return found


def legacy(held, tied, newer):
    """The legacy model's nesting and names of what a rank holds (local spec)."""
    norm = "norm" if newer else "layernorm"
    names = [
        (r"self_attention\.linear_qkv", "self_attention.query_key_value"),
        (r"self_attention\.linear_proj", "self_attention.dense"),
        (r"cross_attention\.attn\.linear_q\b", "inter_attention.query"),
        (r"cross_attention\.attn\.linear_kv", "inter_attention.key_value"),
        (r"cross_attention\.attn\.linear_proj", "inter_attention.dense"),
        (r"mlp\.linear_fc1", "mlp.dense_h_to_4h"),
        (r"mlp\.linear_fc2", "mlp.dense_4h_to_h"),
        (r"cross_attention\.encoder\.", "retriever."),
        (r"input_layernorm", f"input_{norm}"),
        (r"final_layernorm", f"final_{norm}"),
    ]
    crosses = {name.split(".pre_cross_attn_layernorm")[0] for name in held if ".pre_cross_attn_layernorm" in name}
    model = {"language_model": {"embedding": {}, "encoder": {}}}
    language = model["language_model"]
    for name, tensor in held.items():
        where, part = name.rsplit(".", 1)
        if name.startswith("embedding."):
            language["embedding"].setdefault(where.removeprefix("embedding."), {})[part] = tensor
        elif where == "output_layer" and tied:
            model["word_embeddings_for_head"] = {part: tensor}
        elif where == "output_layer":
            language["output_layer"] = {part: tensor}
        else:
            layer, _, _ = name.partition(".pre_mlp_layernorm")
            mine = f"post_inter_attention_{norm}" if layer in crosses else f"post_attention_{norm}"
            new = re.sub(r"pre_mlp_layernorm(\.norm)?", mine, name)
            new = new.replace("pre_cross_attn_layernorm", f"post_attention_{norm}")
            for old, other in names:
                new = re.sub(old, other, new)
            language["encoder"][new.removeprefix("decoder.")] = tensor
    return model


def write_ranks(folder, whole, *, layers, ranks, stages=1, parts=1, names="core", **args):
    """A `torch` checkpoint; `names` are core, legacy or newer legacy."""
    gated = whole["decoder.layers.0.mlp.linear_fc1.weight"].shape[0] == (
        2 * whole["decoder.layers.0.mlp.linear_fc2.weight"].shape[1]
    )
    tied = "output_layer.weight" not in whole
    home = folder / "iter_0000010"
    for (stage, part), held in staged(whole, layers, stages, parts).items():
        for rank in range(ranks):
            mine = {name: cut(name, t, rank, ranks, gated).clone() for name, t in held.items()}
            model = mine if names == "core" else legacy(mine, tied, names == "newer")
            if names == "core":
                model = {**model, "decoder.layers.0.self_attention.linear_qkv._extra_state": None}
            path = home / (f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")) / "model_optim_rng.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = torch.load(path, weights_only=False) if path.exists() else {}
            content |= {f"model{part}" if parts > 1 else "model": model}
            told = {"tensor_model_parallel_size": ranks, "pipeline_model_parallel_size": stages} | args
            content |= {"args": arguments(**told), "checkpoint_version": 3.0, "iteration": 10}
            drawn = {"random_rng_state": random.getstate(), "np_rng_state": np.random.get_state()}
            content |= {"optimizer": {"state": torch.zeros(3)}, "rng_state": [drawn]}
            torch.save(content, path)
    (folder / "latest_checkpointed_iteration.txt").write_text("10")
    return home


def stacked(whole, layers):
    """A GPT's layers stacked along a first dimension."""
    first = {name: name.removeprefix("decoder.layers.0.") for name in whole if name.startswith("decoder.layers.0.")}
    found = {name: t for name, t in whole.items() if not name.startswith("decoder.layers.")}
    for name in first.values():
        found[f"decoder.layers.{name}"] = torch.stack([whole[f"decoder.layers.{i}.{name}"] for i in range(layers)])
    return found


def write_distributed(folder, whole, **args):
    """A `torch_dist` checkpoint, saved by PyTorch from one process."""
    home = folder / "iter_0000010"
    others = {"optimizer.state.exp_avg.decoder.layers.0.mlp.linear_fc1.weight": torch.zeros(4)}
    others |= {"decoder.layers.0.self_attention.linear_qkv._extra_state/shard_0_1": [1], "rng_state/shard_0.0_1.1": [2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.save({**whole, **others}, checkpoint_id=home, no_dist=True)
    write_beside(home, folder, **args)
    return home


def write_beside(home, folder, **args):
    """common.pt, metadata.json, and which is the latest."""
    told = {"args": arguments(**args), "checkpoint_version": 3.0, "iteration": 10, "opt_param_scheduler": {"lr": 1e-4}}
    torch.save(told, home / "common.pt")
    facts = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
    (home / "metadata.json").write_text(json.dumps(facts))
    (folder / "latest_checkpointed_iteration.txt").write_text("10")


def main():
    from retro.interop.names import to_megatron
    from tests.interop.dumps import variant

    folder = Path(sys.argv[1])
    settings, _, model, *_ = variant("base")
    whole = {name: t.detach() for name, t in to_megatron(model.state_dict(), settings, "retro", "local").items()}
    write_ranks(folder / "core", whole, layers=6, ranks=2, stages=2)
    write_ranks(folder / "legacy", whole, layers=6, ranks=2, names="legacy")
    write_distributed(folder / "distributed", whole)


if __name__ == "__main__":
    main()
