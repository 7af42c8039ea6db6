"""What a model's folder holds: weights, word pieces, and how its states are pooled.

The folder is one that `save_pretrained` of transformers wrote, or one of Sentence-Transformers: a transformer, a
pooling and perhaps a Normalize module.
"""

import hashlib
import json
import re
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer

from retro.base.artifacts import canonical, read_json, sha256
from retro.base.stage import UserError

PREFIX = re.compile(r"(bert|(question|ctx)_encoder\.bert_model)\.")
POOLINGS = {"mean": ["pooling_mode_mean_tokens", "mean"], "cls": ["pooling_mode_cls_token", "cls"]}
POOLINGS |= {"last": ["pooling_mode_lasttoken", "lasttoken"]}
BERTS = ("bert", "dpr")  # model types that are BERTs
SHIFTED = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")  # positions begin after the padding's


def bare(name: str) -> str:
    """A weight's name without what a model with a BERT inside puts before it."""
    return PREFIX.sub("", name, count=1)


def identity_at(path: str, pooling: str | None = None) -> str:
    """`Encoder.identity` of the model at `path`, as it is now; `pooling` stands for the folder's own."""
    return identity_of(*parts(path, pooling))


def identity_of_given(width: int) -> str:
    """The same of vectors of so many dimensions that are given: what they are, each source's manifest says."""
    return hashlib.sha256(canonical({"given": width}).encode()).hexdigest()


def identity_of(folder: Path, pooling: str) -> str:
    """sha256 over what a transformer's vectors depend on: weights, config and word pieces of its folder, pooling."""
    files = ["config.json", *weight_files(folder), *_word_piece_files(folder)]
    read = {name: sha256(folder / name) for name in files if (folder / name).is_file()}
    return hashlib.sha256(canonical({"pooling": pooling, "files": read}).encode()).hexdigest()


def weight_files(folder: Path) -> list[str]:
    """The files of the weights: one, or those that an index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    return sorted({index.name, *read_json(index)["weight_map"].values()})


def longest_of(config: dict, wanted: int) -> int:
    """How many word pieces a model takes, at most `wanted`."""
    places = config.get("max_position_embeddings", wanted)
    if config.get("model_type") in SHIFTED:
        places -= config.get("pad_token_id", 1) + 1
    return min(wanted, places)


def parts(path: str, asked: str | None = None) -> tuple[Path, str]:
    """The folder of the transformer in an encoder's folder, and its pooling: the one that is asked for, or else what
    the folder says, or else the first state for a DPR and the mean for others.
    """
    folder, pooling = Path(path), asked or ""
    if not folder.is_dir():
        raise UserError(f"dataset.encoder.path {path}: no such folder. Put the model there: none is fetched.")
    if (folder / "modules.json").is_file():
        folder, pooling = _sentence_transformer(folder, asked)
    if not (folder / weight_files(folder)[0]).is_file():
        raise UserError(
            f"{folder}: has no model.safetensors. Pickled weights (pytorch_model.bin) are not read: save "
            f"the model again with save_pretrained of a current transformers."
        )
    return folder, pooling or ("cls" if _is_dpr(folder / "config.json") else "mean")


def _is_dpr(path: Path) -> bool:
    """Whether a config.json says so; what cannot be read is told of where the model is opened."""
    try:
        return json.loads(path.read_bytes()).get("model_type") == "dpr"
    except (OSError, ValueError, AttributeError):
        return False


def _sentence_transformer(folder: Path, asked: str | None) -> tuple[Path, str]:
    """The folder of the transformer module and a pooling, from modules.json unless one is asked for."""
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in read_json(folder / "modules.json")}
    other = set(modules) - {"Transformer", "Pooling", "Normalize"}
    if other or "Transformer" not in modules or "Pooling" not in modules:
        raise UserError(
            f"{folder / 'modules.json'}: modules {sorted(modules)}; supported are Transformer, Pooling and Normalize."
        )
    if asked:
        return folder / modules["Transformer"], asked
    path = folder / modules["Pooling"] / "config.json"
    facts = read_json(path)
    modes = [key for key, value in facts.items() if key.startswith("pooling_mode") and value is True]
    modes += [str(value) for key, value in facts.items() if key == "pooling_mode" and isinstance(value, str)]
    for pooling, names in POOLINGS.items():
        if len(modes) == 1 and modes[0] in names:
            return folder / modules["Transformer"], pooling
    raise UserError(f"{path}: pooling {modes}; supported are mean, cls and lasttoken, one of them.")


def _word_piece_files(folder: Path) -> list[str]:
    """The files that the word pieces are read from, where they are there."""
    if (folder / "tokenizer.json").is_file():
        return ["tokenizer.json"]
    return ["vocab.txt", "tokenizer_config.json"]


def word_pieces(folder: Path, longest: int) -> Tokenizer:
    """The folder's word-piece tokenizer, cutting at `longest` pieces, not padding; special tokens in a text
    are taken as text."""
    files = _word_piece_files(folder)
    if files == ["tokenizer.json"]:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    elif (folder / "vocab.txt").is_file():
        facts = {}
        if (folder / "tokenizer_config.json").is_file():
            facts = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        lower = facts.get("do_lower_case", True)
        tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)._tokenizer
    else:
        raise UserError(f"{folder}: has neither tokenizer.json nor vocab.txt. Save the tokenizer beside the model.")
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    tokenizer.encode_special_tokens = True
    return tokenizer
