"""The language model's tokenizer, whatever it was made from, behind one small interface.

Three kinds of file: Hugging Face's tokenizer.json, GPT-2's vocab.json and merges.txt, a SentencePiece model.
They must be able to spell any text: byte-level, or with byte fallback. A SentencePiece model without it, and
tokenizers that change a text before they encode it, do for texts that they give back; for others only if
`dataset.tokenizer.lossy` allows it (`retro.corpus.documents.Spelling`). What a given file leaves to chance is switched
off.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
from tokenizers import Tokenizer as HuggingFace
from tokenizers import decoders, models, pre_tokenizers

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.corpus.settings import TOKENIZER_FILES

LONG = 1_000_000  # characters; longer texts are encoded in pieces, so that one document cannot fill the memory
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
SPELLS = (
    "Take a tokenizer that spells every text (byte-level; SentencePiece with byte fallback and without normalization), "
    "or set dataset.tokenizer.lossy to allow: bits per byte are then of the text as the tokenizer gives it back."
)
WAY_OUT = "Correct dataset.tokenizer in the config."


def use_threads(threads: int) -> None:
    """Encode on this many threads. Has an effect before the first batch only; the ids do not depend on it."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


class Tokenizer:
    """Text to ids and back.

    - `vocab_size`: one more than the largest id
    - `eod_id`: the special token that ends a document; `pad_id` is the same
    - `token_bytes`: int64 [V], bytes of UTF-8 that each token stands for, 0 for special tokens
    - `lossy`: whether ids may stand for another text than was encoded
    - `leading`: bytes that the tokenizer puts before a text, 1 for a space
    - `chance`: what the given file leaves to chance, switched off here
    """

    def __init__(self, engine: "_HuggingFaceEngine | _SentencePieceEngine", eod_id: int, lossy: bool = False):
        self._engine, self.lossy, self.chance = engine, lossy, engine.chance
        self.vocab_size, self.eod_id, self.pad_id = len(engine.token_bytes), eod_id, eod_id
        self.token_bytes = engine.token_bytes
        self.leading = int(self.token_bytes[self.encode_batch(["a"], unknown=True)[0]].sum()) - 1
        self.leading = max(0, self.leading)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Open the tokenizer that a manifest of kind `tokenizer` describes."""
        manifest = read_manifest(path, "tokenizer")
        settings = manifest.settings["tokenizer"]
        for name in TOKENIZER_FILES[settings["type"]]:
            manifest.file(name)
        return cls.open(manifest.folder, settings["type"], settings["eod"], settings.get("lossy") == "allow")

    @classmethod
    def open(cls, folder: str | Path, kind: str, eod: str, lossy: bool = False) -> "Tokenizer":
        """Open a tokenizer's files, `kind` a `TokenizerSettings.type`; `UserError` if they do not serve."""
        paths = [Path(folder) / name for name in TOKENIZER_FILES[kind]]
        try:
            engine = (_SentencePieceEngine if kind == "sentencepiece" else _HuggingFaceEngine)(paths)
        except UserError:
            raise
        except Exception as error:  # both libraries raise bare exceptions for whatever is wrong with a file
            names = " and ".join(map(str, paths))
            raise UserError(f"{names}: not a tokenizer of type {kind} ({error}). {WAY_OUT}") from None
        eod_id = engine.find_special(eod)
        if eod_id is None:
            known = ", ".join(map(repr, engine.special_tokens())) or "none"
            raise UserError(
                f"{paths[0]}: has no token {eod!r} to end documents with; its special tokens: {known}. "
                f"Name one in dataset.tokenizer.eod."
            )
        tokenizer = cls(engine, eod_id, lossy)
        if any(eod_id in ids for ids in tokenizer.encode_batch([eod, f" {eod}", f"a {eod} b"], unknown=True)):
            raise UserError(
                f"dataset.tokenizer.eod {eod!r}: text that contains it would end a document. Choose one that "
                f"no text can become, such as <|endoftext|>."
            )
        return tokenizer

    def encode_batch(self, texts: list[str], unknown: bool | None = None) -> list[np.ndarray]:
        """Ids of each text, int64, without EOD. Text that spells a special token is encoded as text.

        Raises `UserError` for characters that have no token, unless `unknown` (by default: `lossy`) lets them pass.
        """
        pieces, counts = [], []
        for text in texts:
            cut = self._engine.cut(text) if len(text) > LONG else [text]
            pieces.extend(cut)
            counts.append(len(cut))
        encoded = self._encode(pieces)
        found = []
        for count in counts:
            parts = [next(encoded) for _ in range(count)]
            found.append(parts[0] if count == 1 else np.concatenate(parts))
        if not (self.lossy if unknown is None else unknown):
            for text, ids in zip(texts, found, strict=True):
                if self.count_unknown(ids):
                    self.refuse_unknown(text)
        return found

    def count_unknown(self, ids: np.ndarray) -> int:
        """How many of the ids stand for characters that have no token."""
        return 0 if self._engine.unknown_id is None else int((ids == self._engine.unknown_id).sum())

    def refuse_unknown(self, text: str, where: str = "") -> NoReturn:
        """Raise `UserError` for a text with characters that have no token; `where` it stands, with a colon."""
        known = list(dict.fromkeys(text[:LONG]))
        encoded = self.encode_batch(known, unknown=True)
        missing = [character for character, ids in zip(known, encoded, strict=True) if self.count_unknown(ids)]
        characters = " ".join(missing[:10]) or "some characters"
        raise UserError(f"{where}the tokenizer has no token for {characters} of {text[:40]!r}. {SPELLS}")

    def _encode(self, pieces: list[str]) -> Iterator[np.ndarray]:
        """Ids of each piece, some 4 * LONG characters at a time: the library takes 40 bytes for each."""
        start = size = 0
        for end, piece in enumerate(pieces, 1):
            size += len(piece)
            if size >= 4 * LONG or end == len(pieces):
                yield from self._engine.encode(pieces[start:end])
                start, size = end, 0

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """Text of ids: special tokens dropped, invalid UTF-8 replaced by U+FFFD."""
        return self._engine.decode([int(token) for token in ids])


class _HuggingFaceEngine:
    """tokenizer.json, or vocab.json and merges.txt."""

    def __init__(self, paths: list[Path]):
        self.path = paths[0]
        if len(paths) == 2:
            self.tokenizer = HuggingFace(models.BPE.from_file(*map(str, paths)))
            self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            self.tokenizer.decoder = decoders.ByteLevel()
        else:
            self.tokenizer = HuggingFace.from_file(str(paths[0]))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.chance = self._leave_nothing_to_chance()
        self.tokenizer.encode_special_tokens = True  # the library's word for: as if they were ordinary text
        facts = json.loads(self.tokenizer.to_str())
        self._long_cut = self._cuts_at_line_breaks(facts)
        self.vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self._check(facts)
        self._measure()
        unknown = facts["model"].get("unk_id", self.vocabulary.get(facts["model"].get("unk_token")))
        self.unknown_id = unknown if isinstance(unknown, int) else None

    def _leave_nothing_to_chance(self) -> str:
        """Switch off what makes a model encode the same text in several ways; what that was."""
        model, found = self.tokenizer.model, []
        for name in ("dropout", "alpha", "nbest_size"):
            if value := getattr(model, name, None):
                setattr(model, name, None)
                found.append(f"{name} {value:g}")
        return ", ".join(found)

    def _check(self, facts: dict) -> None:
        """Refuse what cannot spell every text: its bits per byte would mean nothing."""
        self.byte_level = '"ByteLevel"' in json.dumps([facts["pre_tokenizer"], facts["decoder"]])
        if self.byte_level:
            missing = [symbol for symbol in pre_tokenizers.ByteLevel.alphabet() if symbol not in self.vocabulary]
        elif facts["model"].get("byte_fallback"):
            missing = [name for name in (f"<0x{byte:02X}>" for byte in range(256)) if name not in self.vocabulary]
        else:
            raise UserError(
                f"{self.path}: neither byte-level nor byte fallback, so it cannot spell all text. {WAY_OUT}"
            )
        if missing:
            raise UserError(f"{self.path}: {len(missing)} of the 256 bytes have no token. {WAY_OUT}")

    def _measure(self) -> None:
        added = self.tokenizer.get_added_tokens_decoder()
        self.token_bytes = np.zeros(max(self.vocabulary.values()) + 1, np.int64)
        for token, number in self.vocabulary.items():
            if number in added:
                size = 0 if added[number].special else len(token.encode())
            elif self.byte_level:
                size = len(token)  # each character of a byte-level token stands for a byte
            else:
                size = 1 if BYTE_TOKEN.fullmatch(token) else len(token.replace("▁", " ").encode())
            self.token_bytes[number] = size

    @staticmethod
    def _cuts_at_line_breaks(facts: dict) -> bool:
        """Whether GPT-2's splitting rule, and nothing else, decides where tokens may not join."""
        rule = facts["pre_tokenizer"] or {}
        plain = rule.get("type") == "ByteLevel" and rule["use_regex"] and not rule["add_prefix_space"]
        return plain and facts["normalizer"] is None and not any(not t["special"] for t in facts["added_tokens"])

    def cut(self, text: str) -> list[str]:
        """Pieces of about LONG characters whose ids, joined, are those of the text; or the text itself.

        GPT-2's rule makes a single line break between two visible characters a token of its own.
        """
        pieces, start = [], 0
        while self._long_cut and (found := LINE_BREAK.search(text, start + LONG)):
            pieces.append(text[start : found.end()])
            start = found.end()
        return [*pieces, text[start:]]

    def find_special(self, token: str) -> int | None:
        number = self.vocabulary.get(token)
        if number is not None:
            self.tokenizer.add_special_tokens([token])  # GPT-2's vocabulary holds it as a word like others
            self.token_bytes[number] = 0
        return number

    def special_tokens(self) -> list[str]:
        added = self.tokenizer.get_added_tokens_decoder()
        return [added[number].content for number in sorted(added) if added[number].special]

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(item.ids, np.int64) for item in encoded]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


LINE_BREAK = re.compile(r"(?<=\S)\n(?=\S)")


class _SentencePieceEngine:
    """A SentencePiece .model."""

    chance = ""  # it samples only where it is asked to

    def __init__(self, paths: list[Path]):
        import sentencepiece  # here, so that its version is recorded where it is used only

        self.model = model = sentencepiece.SentencePieceProcessor(model_file=str(paths[0]))
        self.unknown_id = model.unk_id()
        self.special = np.array(
            [model.is_control(i) or model.is_unknown(i) or model.is_unused(i) for i in range(len(model))],
            bool,
        )
        self.token_bytes = np.array(
            [
                0
                if self.special[i]
                else 1
                if model.is_byte(i)
                else len(model.id_to_piece(i).replace("▁", " ").encode())
                for i in range(len(model))
            ],
            np.int64,
        )

    def cut(self, text: str) -> list[str]:
        return [text]

    def find_special(self, token: str) -> int | None:
        number = self.model.piece_to_id(token)
        if self.model.id_to_piece(number) != token or not self.model.is_control(number):
            number = self.model.eos_id()
        return number if number >= 0 else None

    def special_tokens(self) -> list[str]:
        return [self.model.id_to_piece(i) for i in range(len(self.model)) if self.model.is_control(i)]

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        threads = int(os.environ.get("RAYON_NUM_THREADS", "1"))
        encoded = self.model.encode(texts, num_threads=threads, enable_sampling=False)
        return [np.array(ids, np.int64) for ids in encoded]

    def decode(self, ids: list[int]) -> str:
        return self.model.decode([token for token in ids if not self.special[token]])
