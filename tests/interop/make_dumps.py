"""Make the reference dumps in `tests/interop/megatron` with Megatron-core's own RETRO: fp32, CPU, its local layers.

    python tests/interop/make_dumps.py        # where megatron-core 0.16.0rc0 is installed (pip install --no-deps)

Not part of the tests: they read the files. Weights are its initial ones, made larger and noisy, so that a lost bias or
branch shows. `python -m retro.interop.megatron check tests/interop/megatron/*.safetensors` compares ours with them.
"""

import contextlib
import json
import os
from pathlib import Path

import megatron.core
import torch
from megatron.core import parallel_state
from megatron.core.models.retro import RetroConfig, RetroModel, config, get_retro_decoder_block_spec
from megatron.core.tensor_parallel import random as tracked
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "megatron"
SHAPE = {"layers": 6, "hidden": 8, "heads": 2, "vocab": 32, "chunk": 4, "seq": 16, "batch": 2}
COUNTS = {"neighbors": 2, "retrieved": 2, "encoder_layers": 2}
OPTIONS = {"rope": False, "rotary_percent": 1.0, "swiglu": False, "no_bias": False, "untie": False, "rmsnorm": False}
OPTIONS |= {"final_norm": False, "gelu_tanh": False}
MODERN = {"rope": True, "rotary_percent": 0.5, "swiglu": True, "no_bias": True, "untie": True}
THREES = {"neighbors": 3, "retrieved": 3, "encoder_layers": 3}
CASES = {
    "base": {},
    "ragged": {"ns": 13},
    "shorter": {"ns": 3},
    "threes": THREES,
    "deep": {"layers": 18},
    "modern": MODERN,
    "modern-ragged": {**MODERN, "rmsnorm": True, "ns": 14},
    "final-norm": {"final_norm": True},
    "rmsnorm": {"rmsnorm": True, "gelu_tanh": True},
    "all": {**MODERN, **THREES, "layers": 9, "final_norm": True, "ns": 10},
}


class Untracked(tracked.CudaRNGStatesTracker):
    """Random states of one process without a GPU: torch's own."""

    def fork(self, *_, **__):
        return contextlib.nullcontext()


def make(name: str, changed: dict) -> None:
    """Write a case's tensors and facts."""
    args = {**SHAPE, **COUNTS, **OPTIONS, **changed}
    ns, layers, width, seq = args.pop("ns", args["seq"]), args["layers"], args["hidden"], args["seq"]
    settings = RetroConfig(
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=args["heads"],
        ffn_hidden_size=24 if args["swiglu"] else 4 * width,
        gated_linear_unit=args["swiglu"],
        activation_func=torch.nn.functional.silu if args["swiglu"] else torch.nn.functional.gelu,
        bias_activation_fusion=args["gelu_tanh"],
        add_bias_linear=not args["no_bias"],
        normalization="RMSNorm" if args["rmsnorm"] else "LayerNorm",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        retro_encoder_hidden_dropout=0.0,
        retro_encoder_attention_dropout=0.0,
        retro_chunk_length=args["chunk"],
        retro_encoder_num_layers=args["encoder_layers"],
        retro_num_neighbors=args["neighbors"],
        retro_num_retrieved_chunks=args["retrieved"],
        retro_split_preprocessing="98,2,0",
        use_cpu_initialization=True,
    )
    spec = get_retro_decoder_block_spec(settings, use_transformer_engine=False)
    if args["final_norm"]:
        spec = TransformerBlockSubmodules(layer_specs=spec.layer_specs, layer_norm=WrappedTorchNorm)
    torch.manual_seed(1)
    model = RetroModel(
        config=settings,
        transformer_layer_spec=spec,
        vocab_size=args["vocab"],
        max_sequence_length=seq,
        share_embeddings_and_output_weights=not args["untie"],
        position_embedding_type="rope" if args["rope"] else "learned_absolute",
        rotary_percent=args["rotary_percent"],
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(4 * parameter + noise if parameter.dim() > 1 else parameter + noise)
    chunks, length = -(-ns // args["chunk"]), args["chunk"] * args["retrieved"]
    rows = args["batch"] * chunks * args["neighbors"]
    inputs = {
        "input_ids": torch.randint(args["vocab"], (args["batch"], ns), generator=generator),
        "labels": torch.randint(args["vocab"], (args["batch"], ns), generator=generator),
        "position_ids": torch.arange(ns).repeat(args["batch"], 1),
        "context_input_ids": torch.randint(args["vocab"], (rows, length), generator=generator),
        "context_position_ids": torch.arange(length).repeat(rows, 1),
    }
    seen = {key: value for key, value in inputs.items() if key != "labels"}
    seen["attention_mask"] = torch.ones(1, 1, ns, ns, dtype=torch.bool).triu(1)  # True: hidden
    logits, losses = model(**seen), model(**seen, labels=inputs["labels"])
    losses.mean().backward()
    found = {"logits": logits, "token_loss": losses, "loss": losses.mean()}
    tensors = {f"in/{key}": value for key, value in inputs.items()}
    tensors |= {f"out/{key}": value.detach() for key, value in found.items()}
    for key, parameter in model.named_parameters():
        tensors |= {f"param/{key}": parameter.detach(), f"grad/{key}": parameter.grad}
    FOLDER.mkdir(exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, FOLDER / f"{name}.safetensors")
    facts = {"megatron_core": megatron.core.__version__, "torch": torch.__version__, "args": args, "ns": ns}
    (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, loss {losses.mean().item():.4f}")


def main() -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29581", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    torch.cuda.current_device = lambda: "cpu"  # it asks without having one
    config.is_te_min_version = lambda *_: False  # as without Transformer Engine, which it otherwise trips over
    tracked._CUDA_RNG_STATE_TRACKER, tracked._CUDA_RNG_STATE_TRACKER_INITIALIZED = Untracked(), True
    tracked.initialize_rng_tracker = lambda *_, **__: None
    for name, changed in CASES.items():
        make(name, changed)


if __name__ == "__main__":
    main()
