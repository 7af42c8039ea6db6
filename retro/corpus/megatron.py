"""Documents of a corpus that is tokens already: pairs of files, .bin and .idx, of Megatron-LM or NeMo."""

import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from retro.base.artifacts import release
from retro.base.stage import UserError
from retro.corpus.files import SourceFile
from retro.corpus.mmididx import TokenStore
from retro.corpus.readers import RECORDS, Document, Malformed, Reader, Sharded
from retro.corpus.readings import Readings
from retro.corpus.records import NamedFields
from retro.corpus.settings import SourceSettings
from retro.corpus.tokenizers import Tokenizer

WHOSE = "Name the tokenizer that made this corpus in dataset.tokenizer."


def find(paths: str | list[str], source: str) -> list[Path]:
    """Prefixes of the stores that a source names, each once, a pattern's and a folder's in sorted order.

    A path is a prefix (with or without .bin or .idx), a folder, or a pattern such as `corpus/part_*`. Raises
    `UserError` for one that names no store, or half of one.
    """
    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, str) else paths:
        stem = given.removesuffix(".idx").removesuffix(".bin")
        if os.path.isdir(given):
            indexes = sorted(Path(given, name) for name in listed(given, source) if name.endswith(".idx"))
        elif glob.has_magic(given):
            for folder in filter(os.path.isdir, glob.glob(os.path.dirname(stem) or ".")):
                listed(folder, source)  # glob says nothing of what it may not list
            indexes = [Path(path) for path in sorted(glob.glob(f"{stem}.idx"))]
        else:
            indexes = [Path(f"{stem}.idx")]
        prefixes = [path.with_name(path.name.removesuffix(".idx")) for path in indexes]
        for path in (Path(f"{prefix}{end}") for prefix in prefixes for end in (".idx", ".bin")):
            if not path.is_file():
                raise UserError(
                    f"source {source}: no such file: {path} (working folder {os.getcwd()}). A corpus of type megatron "
                    f"is pairs of files, .bin and .idx: name what they have in common, a pattern or their folder."
                )
        if not prefixes:
            raise UserError(
                f"source {source}: {given} names no .idx file (working folder {os.getcwd()}). Name a folder or "
                "pattern of pairs."
            )
        found |= dict.fromkeys(prefixes)
    if not found:
        raise UserError(f"source {source}: its list of paths is empty. Name at least one.")
    return list(found)


def listed(folder: str, source: str) -> list[str]:
    """Names in a folder."""
    try:
        return os.listdir(folder)
    except OSError as error:
        raise UserError(
            f"source {source}: {folder}: cannot be listed ({error.strerror}). Correct the path or its permissions."
        ) from None


class MegatronReader(Sharded):
    """Iterates over the documents of token stores, as `Reader` does over text: `ids` in place of text.

    A document is `<store>-<number>`, and a group of its own; stores of equal names in several folders are called by
    their paths below the folder that these have in common, wherever that is. The EOD at its end is taken off (every
    document gets one when it is stored again) and `without_eod` counts those that had none. Raises `UserError` for a
    document that the tokenizer cannot have made: ids that are not its own, or EOD inside.
    """

    filtered = 0

    def __init__(
        self,
        source: SourceSettings,
        name: str,
        on_error: str,
        note: Callable[[dict], None] | None,
        tokenizer: Tokenizer,
        shard: tuple[int, int] | None,
    ):
        super().__init__(shard)
        self.source, self.name, self.on_error, self.tokenizer = source, name, on_error, tokenizer
        self._note = note or (lambda facts: None)
        self.prefixes = find(source.path, name)
        self.ignored: list[SourceFile] = []
        ends = (".idx", ".bin")
        paths = [Path(f"{prefix}{end}") for prefix in self.prefixes for end in ends]
        self.files = [SourceFile(path, path.name, "megatron", path.stat().st_size) for path in paths]
        self.bytes = sum(file.bytes for file in self.files)
        self.done = self.skipped = self.without_eod = 0
        self.again: list[Path] = []
        self.fields = NamedFields(source, name)
        self.readings = Readings()

    def __iter__(self) -> Iterator[Document]:
        names = [prefix.name for prefix in self.prefixes]
        if len(set(names)) < len(names):
            within = os.path.commonpath([os.path.abspath(prefix.parent) for prefix in self.prefixes])
            names = [Path(os.path.relpath(prefix, within)).as_posix() for prefix in self.prefixes]
        for prefix, name, index in zip(self.prefixes, names, self.files[::2], strict=True):
            readings = [self.readings.open(Path(f"{prefix}{end}")) for end in (".idx", ".bin")]
            store, start = TokenStore(prefix), self.done
            for number in range(len(store)):
                mine = self.mine()
                self.records += 1
                if not mine:
                    continue
                if number % RECORDS == 0:
                    release(store.tokens)
                try:
                    ids = self._ids(index, number, store[number])
                except Malformed as error:
                    if self.on_error == "stop":
                        raise
                    self.skipped += 1
                    self._note(error.facts)
                    continue
                self.done = start + int(store.offsets[number + 1]) * store.tokens.itemsize
                size = int(self.tokenizer.token_bytes[ids].sum())
                document = f"{name}-{number}"
                yield Document(document, "", document, document, size, str(prefix), number + 1, ids)
            self.done = start + index.bytes + store.tokens.nbytes
            for reading in readings:
                reading.check()

    def _ids(self, index: SourceFile, number: int, stored: np.ndarray) -> np.ndarray:
        """A document's ids, int64, without EOD."""
        ids = stored.astype(np.int64)
        wrong = (ids < 0) | (ids >= self.tokenizer.vocab_size)
        if stored.dtype.kind == "f":
            wrong |= ids != stored
        if wrong.any():
            raise UserError(
                f"{index.path}, document {number}: id {stored[wrong][0]}, but the vocabulary of the given tokenizer "
                f"has {self.tokenizer.vocab_size} tokens. {WHOSE}"
            )
        ends = len(ids) > 0 and ids[-1] == self.tokenizer.eod_id
        self.without_eod += not ends
        ids = ids[:-1] if ends else ids
        inside = np.flatnonzero(ids == self.tokenizer.eod_id)
        if len(inside):
            reason = f"token {inside[0]} of the document is EOD (id {self.tokenizer.eod_id}), and more follows. {WHOSE}"
            raise Malformed(index, number, reason)
        return ids


def open_reader(
    source: SourceSettings,
    name: str,
    on_error: str,
    note: Callable[[dict], None] | None,
    tokenizer: Tokenizer,
    shard: tuple[int, int] | None = None,
) -> Reader | MegatronReader:
    """The reader of a source, or of a shard of it: of text, or of tokens that `tokenizer` made."""
    if source.type == "megatron":
        return MegatronReader(source, name, on_error, note, tokenizer, shard)
    return Reader(source, name, on_error, note, shard)


def filled(document: Document) -> bool:
    """Whether a document is stored: an empty one is only counted."""
    return bool(len(document.ids) if document.ids is not None else document.text.strip())


def encode(documents: list[Document], tokenizer: Tokenizer) -> tuple[list[Document], list[np.ndarray]]:
    """The documents that are not empty, and the ids (int64, without EOD) of each."""
    full = [each for each in documents if filled(each)]
    given = [each.ids for each in full if each.ids is not None]  # of all or of none
    if given:
        return full, given
    return full, tokenizer.encode_batch([each.text for each in full], unknown=True)


def unended(reader: Reader | MegatronReader) -> dict[str, int]:
    """For the manifest: how many documents of a token corpus had no EOD and were given one."""
    return {"without_eod": reader.without_eod} if isinstance(reader, MegatronReader) else {}
