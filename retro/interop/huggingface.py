"""Trained models as folders that Hugging Face transformers loads.

    python -m retro.interop.huggingface export --run results/open-book/runs/retro-s1 --output FOLDER

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)

A GPT is written as a stock architecture where one computes the same (Llama, Arcee, GPT-NeoX, GPT-2), and then needs no
trust_remote_code. Every other model brings the modules that compute it. Of one that was fitted to a folder of Hugging
Face's the base lies beside the retrieval half, the bytes that it was.
"""

import argparse
import re
import shutil
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
from retro.interop.sentencepieces import to_tokenizers
from retro.interop.states import State, Writer, open_file, open_files
from retro.model.exchange import CUT, found_as, from_theirs, to_theirs
from retro.model.families import CLASSES, stock, stock_config, why_not
from retro.model.settings import ModelSettings
from retro.training import foreign
from retro.training.settings import ImportedModel, TrainedRun, described
from retro.training.weights import retrieves

ROOT = Path(__file__).resolve().parents[1]

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
        config |= {"architecture": architecture, "model": resolved(settings), **lengths}
        config |= {"tie_word_embeddings": False, "use_cache": False}
        copy_modules(output)
        if begun := unchanged(model, weights):
            config["base"] = write_apart(output, weights, *begun)
    ends = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    if "base" not in config:
        write_weights(output, weights, kind, settings, shard_size)
    words.save_pretrained(str(output))
    write_json(output / "generation_config.json", {**ends, "use_cache": bool(kind)})
    write_json(output / "config.json", {**config, **ends, "dtype": "float32"})
    write_text(output / "README.md", card(manifest, model, read_manifest(tokenizer, "tokenizer"), kind))
    if kind:
        return f"{architecture}, as {CLASSES[kind]}"
    why = f" ({why_not(settings)})" if architecture == "gpt" else ""
    apart = ", and its base as it came in base" if "base" in config else ""
    return f"{architecture}, with its modules{why}{apart}: load it with trust_remote_code=True"


def unchanged(model: TrainedRun | ImportedModel, weights: State) -> tuple[Path, str] | None:
    """The config.json of Hugging Face's that a model was fitted to, directly or not, with its model_type.

    None where it was not, or where the folder no longer holds what lies in the model, bit for bit.
    """
    while isinstance(model, TrainedRun) and model.start and model.freeze == "base":
        start = Path(model.start)
        if not start.is_file():
            return None
        if foreign.is_foreign(model.start):
            kind, state = foreign.facts(start)["model_type"], open_files(foreign.files(start)[1:])
            return (start, kind) if _same(weights, state, kind, model.model) else None
        model = described(read_manifest(start, "model").settings, str(start))
    return None


def _same(weights: State, theirs: State, kind: str, settings: ModelSettings) -> bool:
    def read(name: str) -> Tensor:
        return theirs[found_as(kind, name, theirs) or name].float()

    for name in (name for name in weights if not retrieves(name)):
        found = from_theirs(kind, name, read, settings)
        ours = weights[name]
        if not torch.equal(found[: len(ours)] if name in CUT else found, ours):
            return False
    return True


def write_apart(output: Path, weights: State, start: Path, kind: str) -> dict[str, Any]:
    """The base as it lay, in a folder of its own that transformers loads alone, and the retrieval half beside it.

    Returns what config.json says of the base.
    """
    files = foreign.files(start)
    (output / "base").mkdir()
    for path in files:
        shutil.copyfile(path, output / "base" / path.name)
    shapes = {name: shape for name, shape in weights.shapes.items() if retrieves(name)}
    with (
        replacing(output / "retrieval.safetensors") as temporary,
        Writer(temporary, shapes, {"format": "pt"}) as writer,
    ):
        for name in shapes:
            writer.put(name, weights[name])
    return {"model_type": kind, "files": [path.name for path in files if path.suffix == ".safetensors"]}


def write_weights(output: Path, weights: State, kind: str | None, settings: ModelSettings, shard_size: int) -> None:
    """Write the parameters, one after the other, under the names and layouts of `kind` (None: ours)."""

    def theirs(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return dict(to_theirs(kind, name, tensor, settings)) if kind else {f"retro.{name}": tensor}

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


PLAIN = '''"""What the model is made of, as config.json has it: checked when it was written, plain values here."""

from types import SimpleNamespace
from typing import Any


class RopeScaling(SimpleNamespace):
    """How rope was stretched."""


class ModelSettings(SimpleNamespace):
    """Every setting by its name, and what follows from them."""

    def __init__(self, **values: Any) -> None:
        scaling = values.get("rope_scaling")
        super().__init__(**values | {"rope_scaling": scaling and RopeScaling(**scaling)})
'''


def resolved(settings: ModelSettings) -> dict[str, Any]:
    """Every setting, and what follows from them, for config.json: what reads it needs no pydantic."""
    kind = type(settings)
    follows = [name for name, value in vars(kind).items() if isinstance(value, property)]
    found = {name: getattr(settings, name) for name in [*kind.model_fields, *follows]}
    scaling = settings.rope_scaling
    return found | {"rope_scaling": None if scaling is None else scaling.model_dump(mode="json")}


def copy_modules(output: Path) -> None:
    """Copy modeling_retro.py and every module of ours that it needs, their imports made relative, into `output`.

    The settings are plain values there, without the checks of ours.
    """
    left, done = [ROOT / "interop/modeling_retro.py"], set()
    while left:
        path = left.pop()
        if path in done:
            continue
        done.add(path)
        text = PLAIN if path.name == "settings.py" else path.read_text(encoding="utf-8")
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
