"""Megatron-core RETRO checkpoints: import, export, and a check against reference dumps.

    python -m retro.interop.megatron import STATE.safetensors OUT_DIR --heads 16 --chunk-length 64
    python -m retro.interop.megatron export OUT_DIR STATE.safetensors --spec te
    python -m retro.interop.megatron check DUMP.safetensors ...

One whole state dict (tensor and pipeline parallel size 1), local or Transformer Engine names. A name too many or
too few is an error. `import` writes model.safetensors and model.json; facts that shapes do not tell come from
flags, else from STATE.json if there is one. `check` compares our forward and backward with a dump: parameters, inputs,
outputs, gradients.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from retro.base import command
from retro.base.artifacts import read_json, read_manifest, read_text, replacing, write_json, write_manifest
from retro.base.stage import UserError, above, whole
from retro.dataset.named import run_folder
from retro.interop.distributed import open_distributed
from retro.interop.infer import flatten, infer, refuse, zero_centred
from retro.interop.names import Spec, entries, from_megatron, one_from_megatron, pairs, to_megatron, to_ours
from retro.interop.parallel import open_ranks
from retro.interop.states import State, Writer, open_file, read_state
from retro.model.build import build_model
from retro.model.settings import ModelSettings
from retro.training.settings import ImportedModel, Recorded, described

TOLERANCE = 1e-5


class Difference(NamedTuple):
    """The largest absolute difference in one kind of tensor, and where it is."""

    what: str
    value: float
    where: str


def compare(dump: Path) -> list[Difference]:
    """Largest differences of logits, losses and gradients, as far as the dump has them.

    `dump` is a safetensors file with `param/`, `in/`, `out/` and optionally `grad/` keys; the .json beside it holds
    the arguments it was made with.
    """
    tensors = read_state(dump)
    facts = flatten(read_json(dump.with_suffix(".json")))

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    parameters, inputs, outputs, gradients = (part(f"{p}/") for p in ("param", "in", "out", "grad"))
    tokens, context = inputs.get("input_ids"), inputs.get("context_input_ids")  # (b, n), (b * l * k, r)
    if tokens is None or not parameters:
        raise UserError(f"{dump}: holds no param/ or no in/input_ids; wanted a reference dump")
    if context is not None:
        facts["retrieved_length"] = context.shape[1]
    shapes = {name: tuple(t.shape) for name, t in parameters.items()}
    inferred = infer(shapes, {"seq": tokens.shape[1]} | facts, str(dump))
    settings, architecture = inferred.settings, inferred.architecture
    settings = settings.model_copy(update={"encoder_dropout": 0.0})
    lengths = inferred.lengths | {"seq_length": max(inferred.lengths["seq_length"], tokens.shape[1])}
    for name in ("position_ids", "context_position_ids"):
        ids = inputs.get(name)
        if ids is not None and not torch.equal(ids, torch.arange(ids.shape[1]).expand_as(ids)):
            raise UserError(f"{dump}: in/{name} does not count from 0; only such positions are supported")
    neighbours = None
    if architecture == "retro":
        chunks = -(-tokens.shape[1] // lengths["chunk_length"])
        if context is None or context.shape[0] % (tokens.shape[0] * chunks):
            rows = 0 if context is None else context.shape[0]
            raise UserError(f"{dump}: {rows} context rows for {tokens.shape[0]} x {chunks} chunks, wanted a multiple")
        neighbours = context.view(tokens.shape[0], chunks, -1, context.shape[1])  # (b, l, k, r)

    with torch.device("meta"):
        model = build_model(settings, architecture=architecture, seed=None, **lengths)
    model.to_empty(device="cpu")
    centred = zero_centred(parameters, facts, str(dump))
    model.load_state_dict(from_megatron(parameters, settings, architecture, centred), strict=True)
    found = []
    if "logits" in outputs:
        found.append(_largest("logits", {"": model(tokens, neighbours).detach()}, {"": outputs["logits"]}))
    if "labels" in inputs:
        losses = model(tokens, neighbours, targets=inputs["labels"])  # (b, n)
        loss = losses.mean()
        loss.backward()
        for name, ours in (("token_loss", losses), ("loss", loss)):
            if name in outputs:
                found.append(_largest(name, {"": ours.detach()}, {"": outputs[name]}))
        wanted = {}
        for entry in entries(settings, architecture):
            theirs = gradients.get(entry.local, gradients.get(entry.te))
            if theirs is not None:
                wanted[entry.ours] = to_ours(theirs, entry)
        grads = {name: p.grad for name, p in model.named_parameters()}
        if wanted:
            found.append(_largest(f"gradients ({len(wanted)})", grads, wanted))
    return found


def _largest(what: str, ours: Mapping[str, Tensor | None], theirs: dict[str, Tensor]) -> Difference:
    differences = {}
    for name, expected in theirs.items():
        mine = ours[name]
        got = torch.zeros_like(expected) if mine is None else mine
        if got.shape != expected.shape:
            raise UserError(f"{what} {name}: shape {list(got.shape)}, the dump has {list(expected.shape)}")
        differences[name] = (got.double() - expected.double()).abs().max().item()
    where = max(differences, key=lambda name: differences[name] if differences[name] == differences[name] else 1e9)
    return Difference(what, differences[where], where)


STAGE = "retro.interop.megatron"
FACTS = {
    "heads": whole,
    "chunk_length": whole,
    "retrieved_length": whole,
    "seq_length": whole,
    "rotary_percent": above,
    "rotary_base": above,
    "norm_epsilon": above,
}
FORMS = ("gelu_tanh", "squared_relu", "encoder_residual", "layernorm_1p")


def load(path: Path, out: Path, given: dict[str, Any], tokens: int | None = None) -> None:
    """Import a state dict or a checkpoint folder into `out`, one tensor after the other.

    `given` are facts by Megatron's names. They win over the JSON beside `path`, which wins over the checkpoint's own
    arguments. `tokens` is the tokenizer's vocabulary: rows beyond it, with which Megatron pads its tables, are cut off.
    """
    state = open_state(path)
    beside = path.with_suffix(".json") if path.is_file() else path.with_name(f"{path.resolve().name}.json")
    facts = flatten(state.facts) | (flatten(read_json(beside)) if beside.exists() and beside != path else {})
    facts |= flatten({name: value for name, value in given.items() if value is not None})
    refuse(state.facts, str(path))
    found = infer(state.shapes, facts, str(path))
    where = pairs(state, found.settings, found.architecture)
    centred = zero_centred(state, facts, str(path))
    lengths = found.lengths | {"vocab_size": _kept(found.lengths["vocab_size"], tokens, path)}
    with torch.device("meta"):
        model = build_model(found.settings, architecture=found.architecture, seed=None, **found.lengths)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for entry, name in where:
        if state.shapes[name] != wanted[entry.ours]:
            found_shape, wanted_shape = list(state.shapes[name]), list(wanted[entry.ours])
            raise UserError(
                f"{path}: {entry.ours} comes out as {found_shape}, wanted {wanted_shape}; correct the facts given, or "
                "copy the checkpoint again"
            )
    for name in {"embedding.tokens.weight", "head.weight"} & set(wanted):
        wanted[name] = (lengths["vocab_size"], *wanted[name][1:])
    weights = out / "model.safetensors"
    with replacing(weights) as temporary, Writer(temporary, wanted) as writer:
        for entry, name in where:
            tensor = one_from_megatron(state[name], entry, centred)
            writer.put(entry.ours, tensor[: wanted[entry.ours][0]])
            del tensor  # before the next is read
    parameters = sum(torch.Size(shape).numel() for shape in wanted.values())
    write_manifest(
        out / "model.json",
        kind="model",
        stage=STAGE,
        files=[weights],
        inputs=state.files,
        settings=ImportedModel(
            name=state.path.stem,
            architecture=found.architecture,
            model=found.settings,
            recorded=Recorded(**lengths),
        ).facts(),
        counts={"parameters": parameters},
    )
    shape = f"{found.settings.layers} layers x {found.settings.width} x {found.settings.heads} heads"
    print(f"{out / 'model.json'}: {found.architecture}, {shape}, {parameters:,} parameters")


LATEST = "latest_checkpointed_iteration.txt"
INDEX = "model.safetensors.index.json"


def open_state(path: Path) -> State:
    """The tensors of a file, or of a checkpoint folder of Megatron's, or of the latest that its parent names.

    Raises UserError for a folder that holds no checkpoint.
    """
    if not path.is_dir():
        return open_file(path)
    if (path / LATEST).is_file():
        latest = read_text(path / LATEST).strip()
        path = path / (f"iter_{int(latest):07d}" if latest.isdecimal() else latest)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder, though {LATEST} names it; copy it, or name another")
    if (path / ".metadata").is_file():
        return open_distributed(path)
    if any(path.glob("mp_rank_*")):
        return open_ranks(path)
    for name in (INDEX, "model.safetensors"):
        if (path / name).is_file():
            return open_file(path / name)
    raise UserError(
        f"{path}: holds neither .metadata nor mp_rank_00 nor {INDEX}; name the folder of a checkpoint of Megatron's"
    )


def _kept(vocabulary: int, tokens: int | None, path: Path) -> int:
    """How many rows of the token table and the head are kept."""
    if tokens is not None and not 0 < tokens <= vocabulary:
        raise UserError(f"{path}: holds {vocabulary} tokens, --tokens wants {tokens} of them")
    return tokens or vocabulary


def save(folder: Path, state_path: Path, spec: Spec, layernorm_1p: bool = False) -> None:
    """Export the model in `folder` to Megatron's names, with the arguments it needs in a JSON beside it.

    `layernorm_1p`: for a Megatron that runs with `--apply-layernorm-1p`.
    """
    manifest = read_manifest(folder / "model.json", "model")
    model = described(manifest.settings, str(manifest.path))
    settings, architecture, lengths = model.model, model.architecture, model.recorded
    _expressible(settings, architecture, folder)
    state = to_megatron(read_state(manifest.file("model.safetensors")), settings, architecture, spec, layernorm_1p)
    with replacing(state_path) as temporary:
        save_file({name: t.contiguous() for name, t in sorted(state.items())}, temporary)
    args = {
        "num_layers": settings.layers,
        "hidden_size": settings.width,
        "num_attention_heads": settings.heads,
        "num_query_groups": settings.kv_head_count,
        "ffn_hidden_size": settings.ffn_dim,
        "seq_length": lengths.seq_length,
        "position_embedding_type": "rope" if settings.positions == "rope" else "learned_absolute",
        "rotary_percent": settings.rope_fraction,
        "rotary_base": settings.rope_base,
        "norm_epsilon": settings.norm_eps,
        "gelu_tanh": settings.activation == "gelu_tanh",
        "squared_relu": settings.activation == "squared_relu",
        "apply_layernorm_1p": layernorm_1p,
    }
    if architecture == "retro":
        args |= {
            "retro_chunk_length": lengths.chunk_length,
            "retro_retrieved_length": lengths.retrieved_length,
            "retro_encoder_layers": settings.encoder_layers,
            "encoder_residual": settings.encoder_residual,
        }
    write_json(state_path.with_suffix(".json"), {"args": args})
    print(f"{state_path}: {len(state)} tensors, {spec} spec")


def _expressible(s: ModelSettings, architecture: str, folder: Path) -> None:
    """Refuse a model that neither Megatron-core nor its legacy form has, or that its export here does not know."""
    decoder = ("head_dim", "rope_scaling", "norm_position", "parallel_residual", "qk_norm", "qkv_bias")
    theirs: dict[str, Any] = {name: ModelSettings.model_fields[name].default for name in decoder}
    retrieval = {
        "cca": "standard",
        "cca_positions": "none",
        "cca_null": False,
        "cca_gate": "none",
        "shared_embeddings": True,
        "encoder_positions": "learned" if s.positions == "learned" else "none",
        "encoder_cross_attention": (1,),
        "mask_padding": False,
    }
    theirs |= retrieval if architecture == "retro" else {}
    differing = [f"{name} is {getattr(s, name)!r}" for name, value in theirs.items() if getattr(s, name) != value]
    if architecture == "retro":
        if s.encoder_dim != s.width or s.encoder_ffn_dim != s.ffn_dim or s.encoder_head_count != s.heads:
            differing.append("the encoder has another shape than the decoder")
        if s.cca_head_count != s.heads or s.cca_kv_head_count != s.heads:
            differing.append("chunked cross-attention has other heads than self-attention")
    if differing:
        raise UserError(
            f"{folder}: Megatron-core has no such model: {'; '.join(differing)}. Only flavour megatron can be exported."
        )


def check(dumps: list[Path]) -> bool:
    """Print the largest differences for each dump; True if all are within 1e-5."""
    within = True
    for dump in dumps:
        for what, value, where in compare(dump):
            fine = value <= TOLERANCE
            within &= fine
            place = f" in {where}" if where else ""
            print(f"{dump}: {what:16} {value:.1e}{'' if fine else f'  ABOVE {TOLERANCE:.0e}'}{place}")
    return within


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    reading = commands.add_parser("import", help="a Megatron state dict becomes a model folder")
    reading.add_argument("state", type=Path, help=".safetensors, a torch file, or a checkpoint folder")
    reading.add_argument("out", type=Path, help="folder for model.safetensors and model.json")
    for name, kind in FACTS.items():
        reading.add_argument(f"--{name.replace('_', '-')}", type=kind)
    reading.add_argument(
        "--tokens", type=whole, help="vocabulary of the tokenizer; Megatron's padding beyond it is cut off"
    )
    reading.add_argument("--encoder-residual", choices=("normed", "raw"), help="raw: a legacy (non-core) model")
    reading.add_argument("--gelu-tanh", action="store_true", default=None, help="GELU in Megatron's fused form")
    reading.add_argument("--squared-relu", action="store_true", default=None, help="the MLPs' activation")
    reading.add_argument(
        "--layernorm-1p",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="norms hold distances from 1 (Megatron's --apply-layernorm-1p, InstructRetro), or do not",
    )
    writing = commands.add_parser("export", help="a model folder becomes a Megatron state dict")
    writing.add_argument("model", type=run_folder, help="a trained run, by name or folder: gpt-s1")
    writing.add_argument("state", type=Path, help=".safetensors to write; its arguments go to a .json beside it")
    writing.add_argument("--spec", choices=("local", "te"), default="te", help="whose parameter names")
    writing.add_argument("--layernorm-1p", action="store_true", help="store norms' distances from 1")
    checking = commands.add_parser("check", help="compare with reference dumps of Megatron-core")
    checking.add_argument("dumps", type=Path, nargs="+", help=".safetensors with its .json beside it")
    options = parser.parse_args()
    if options.command == "import":
        load(
            options.state,
            options.out,
            {name: getattr(options, name) for name in (*FACTS, *FORMS)},
            options.tokens,
        )
    elif options.command == "export":
        save(options.model, options.state, options.spec, options.layernorm_1p)
    elif not check(options.dumps):
        raise SystemExit(1)


if __name__ == "__main__":
    command.run(main)
