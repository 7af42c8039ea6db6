"""Token stores in Megatron's MMIDIDX format: `<prefix>.bin` holds ids, `<prefix>.idx` where documents begin.

The index, little-endian: magic, version u64, dtype code u8, sequences u64, entries of the document table
u64, then the length of each sequence (int32), its byte position in the .bin (int64), and the document table
(int64): the number of the first sequence of each document, and the number of sequences at its end. Corpora
made by Megatron-LM and NeMo open here, also those of several sequences a document, and ours open there.
"""

import os
import struct
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from retro.base.artifacts import replacing
from retro.base.stage import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
WAY_OUT = "Copy it again from where it was made, or delete it and run snakemake to rebuild it."


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, else int32."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<i4")


def _map(path: Path, dtype: np.dtype, count: int, offset: int = 0) -> np.ndarray:
    """Map `count` numbers read-only; no numbers, which cannot be mapped, are an empty array."""
    if count == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))


class TokenStore:
    """A store opened for reading.

    - `tokens`: all ids, memory-mapped, 1-D, of the stored dtype
    - `offsets`: int64 [documents + 1], position in `tokens` of each document's first token, and the total
    - `sequences`: how many sequences the documents are stored as (ours: one a document)

    Raises `UserError` if a file is missing, is not of this format, or does not fit the other.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        self.index_path, self.tokens_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        for path in (self.index_path, self.tokens_path):
            if not path.is_file():
                raise UserError(f"{path}: no such file. A token store is a pair of files, .bin and .idx. {WAY_OUT}")
        dtype, lengths, pointers, table = self._read_index()
        size = dtype.itemsize
        ends = np.cumsum(lengths, dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        if len(lengths) and (lengths.min() < 0 or not np.array_equal(pointers, (ends - lengths) * size)):
            raise self._broken("its sequences do not follow each other without gaps")
        if len(table) == 0 or table[0] != 0 or table[-1] != len(lengths) or (np.diff(table) < 0).any():
            raise self._broken(f"its document table does not run from 0 up to {len(lengths)}, the sequences")
        found = self.tokens_path.stat().st_size
        if found != total * size:
            raise UserError(
                f"{self.tokens_path}: {found} bytes, but {self.index_path.name} tells of {total} tokens of "
                f"{size} bytes, {total * size} in all. {WAY_OUT}"
            )
        self.sequences = len(lengths)
        self.offsets = np.concatenate([np.zeros(1, np.int64), ends])[table]
        self.tokens = _map(self.tokens_path, dtype, total)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def __getitem__(self, document: int) -> np.ndarray:
        """The ids of one document, mapped."""
        document = range(len(self))[document]
        return self.tokens[self.offsets[document] : self.offsets[document + 1]]

    def _read_index(self) -> tuple[np.dtype, np.ndarray, np.ndarray, np.ndarray]:
        """dtype, lengths int32 [s], pointers int64 [s], document table int64 [d + 1]."""
        found = self.index_path.stat().st_size
        with open(self.index_path, "rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size or header[:9] != MAGIC:
            raise self._broken(f"does not begin with {MAGIC!r}: not an MMIDIDX index")
        _, version, code, sequences, entries = HEADER.unpack(header)
        if version != VERSION:
            raise self._broken(f"version {version}, wanted {VERSION}")
        if code not in DTYPES:
            raise self._broken(f"dtype code {code}, wanted one of {sorted(DTYPES)}")
        wanted = HEADER.size + 12 * sequences + 8 * entries
        if found != wanted:
            raise self._broken(
                f"{found} bytes, but {sequences} sequences and a document table of {entries} are {wanted}"
            )
        at = HEADER.size
        lengths = _map(self.index_path, np.dtype("<i4"), sequences, at)
        pointers = _map(self.index_path, np.dtype("<i8"), sequences, at + 4 * sequences)
        table = _map(self.index_path, np.dtype("<i8"), entries, at + 12 * sequences)
        return DTYPES[code], lengths, pointers, table

    def _broken(self, what: str) -> UserError:
        return UserError(f"{self.index_path}: {what}. {WAY_OUT}")


class TokenWriter:
    """Writes a store document by document; nothing appears under its name before `finish`.

    A context manager: what was not finished is removed at its end. Holds four bytes a document in memory.
    """

    def __init__(self, prefix: str | Path, dtype: Any):
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if self.dtype not in CODES:
            raise ValueError(f"MMIDIDX has no code for dtype {dtype}")
        self.index_path, self.tokens_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        self.tokens_path.parent.mkdir(parents=True, exist_ok=True)
        # The same name in every process, so that a run after a kill overwrites what the killed one left.
        self._temporary = self.tokens_path.with_name(f".{self.tokens_path.name}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by finish or __exit__)
        self._lengths = array("i")

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, ids: Any) -> None:
        """Append one document. Raises `ValueError` for an id the dtype cannot hold."""
        ids = np.asarray(ids)
        if ids.ndim != 1:
            raise ValueError(f"a document is 1-D, found shape {ids.shape}")
        if len(ids) > np.iinfo(np.int32).max:
            raise UserError(
                f"document {len(self._lengths)} has {len(ids)} tokens; the format ends at 2^31 - 1. Split the document."
            )
        if self.dtype.kind in "iu" and len(ids):
            kept, low, high = np.iinfo(self.dtype), ids.min(), ids.max()
            if low < kept.min or high > kept.max:
                raise ValueError(f"ids {low} .. {high} do not fit {self.dtype}")
        self._file.write(ids.astype(self.dtype, copy=False).tobytes())
        self._lengths.append(len(ids))

    def finish(self) -> None:
        """Make both files appear, the index last."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        lengths = np.frombuffer(self._lengths, np.int32).astype("<i4") if self._lengths else np.empty(0, "<i4")
        ends = np.cumsum(lengths, dtype="<i8")
        self.index_path.unlink(missing_ok=True)  # an old index must not be seen beside new tokens
        os.replace(self._temporary, self.tokens_path)
        with replacing(self.index_path) as temporary, open(temporary, "wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, CODES[self.dtype], len(lengths), len(lengths) + 1))
            file.write(lengths.tobytes())
            file.write(((ends - lengths) * self.dtype.itemsize).astype("<i8").tobytes())
            file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
