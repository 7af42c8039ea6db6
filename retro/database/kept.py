"""Vectors kept beside the results, so that no chunk is embedded twice by the same encoder, whatever dataset it is in.

`<folder>/<encoder>/<segment>.vectors`. A folder is one encoder's: all that decides the bits of a vector. A segment
holds some vectors by the 128-bit hash of their texts. It appears whole, by a rename, and never changes; jobs write
segments of their own, so no lock is needed. What is found is checked, vector by vector.

Files are read, not mapped: a file that another machine removed, or that was cut, is an error then and not the end of
the process. Whatever happens here, the embedding goes on: what cannot be read is embedded, what cannot be written is
not kept, and the log says so.
"""

import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from retro.base import provenance
from retro.base.artifacts import canonical, replacing
from retro.base.log import warn
from retro.database.encoders import Encoder
from retro.database.settings import EncoderSettings

MAGIC = b"retro vectors 1\n"
HEAD = struct.Struct("<16sQQ16s")  # magic, vectors, bytes of each, blake2b of the first halves of the hashes
SEGMENT = 1 << 26  # bytes of vectors, at most
SEGMENTS = 1000  # of an encoder, at most: a job reads the hashes of all
LEFT = 3600  # seconds after which an unfinished file is of a job that is dead
PROBE = ["The capital of Mongolia is Ulaanbaatar.", "a", " ".join(f"word {number}," for number in range(90))]
VERSIONS = ("numpy", "onnxruntime", "tokenizers")


def keys_of(texts: list[str]) -> np.ndarray:
    """The 128-bit hash of each text, uint64 [n, 2]."""
    digests = (blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def name_of(encoder: Encoder, settings: EncoderSettings) -> str:
    """Sixteen hex digits for all that decides the bits of a vector: weights, word pieces, pooling, how much is read,
    how vectors are stored, the code, versions, and what this machine makes of a few texts, as its processor may round
    otherwise.
    """
    facts = {
        "identity": encoder.identity,
        "engine": encoder.engine,
        "width": encoder.width,
        "max_word_pieces": settings.max_word_pieces,
        "template": settings.passage_template,
        "dtype": settings.dtype,
        "code": provenance.digest("retro.database.encoders"),
        "versions": {name: provenance.version(name) for name in (*VERSIONS, *encoder.engine.split()[:1])},
        "probe": hashlib.sha256(encoder.encode(PROBE).tobytes()).hexdigest(),
    }
    return hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]


class Broken(Exception):
    """A segment that does not hold what it should."""


def check_of(key: bytes, vector: bytes) -> int:
    """A checksum of a vector and the hash of its text, 64 bits."""
    return int.from_bytes(blake2b(key + vector, digest_size=8).digest(), "little")


class Segment:
    """A file of vectors of `row`, a dtype [width]. Raises `Broken` where it is not one, `OSError` where it cannot be
    read.
    """

    def __init__(self, path: Path, row: np.dtype):
        self.path, self.record = path, np.dtype([("rest", "<u8"), ("check", "<u8"), ("vector", row)])
        with open(path, "rb") as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                raise Broken("cut short")
            magic, count, size, digest = HEAD.unpack(head)
            if magic != MAGIC or size != row.itemsize:
                raise Broken("no vectors of this kind")
            self._begin = HEAD.size + 8 * count
            if os.fstat(file.fileno()).st_size != self._begin + count * self.record.itemsize:
                raise Broken("not of the size that it says")
            firsts = file.read(8 * count)
        if blake2b(firsts, digest_size=16).digest() != digest:
            raise Broken("its hashes changed")
        self.firsts = np.frombuffer(firsts, "<u8")  # ascending

    def places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For which keys uint64 [n, 2] there may be a vector, bool [n], and where, int64 [n]."""
        places = np.minimum(np.searchsorted(self.firsts, keys[:, 0]), len(self.firsts) - 1)
        return self.firsts[places] == keys[:, 0], places

    def read(self, keys: np.ndarray, into: np.ndarray) -> np.ndarray:
        """Fill rows of `into` [n, width]; bool [n], for which keys."""
        found, places = self.places(keys)
        with open(self.path, "rb") as file:
            for number in np.flatnonzero(found):
                place = self._begin + int(places[number]) * self.record.itemsize
                content = os.pread(file.fileno(), self.record.itemsize, place)
                if len(content) < self.record.itemsize:
                    raise Broken("cut short")
                record = np.frombuffer(content, self.record)[0]
                key = keys[number].tobytes()
                if int(record["check"]) != check_of(key[:8] + content[:8], content[16:]):
                    raise Broken("a vector changed")
                found[number] = record["rest"] == keys[number, 1]
                if found[number]:
                    into[number] = record["vector"]
        return found

    @classmethod
    def write(cls, folder: Path, keys: np.ndarray, vectors: np.ndarray) -> Path:
        """Write the vectors [n, width] of different keys uint64 [n, 2]; the file."""
        order = np.argsort(keys[:, 0], kind="stable")
        row = np.dtype((vectors.dtype, vectors.shape[1:]))
        records = np.empty(len(keys), [("rest", "<u8"), ("check", "<u8"), ("vector", row)])
        records["rest"], records["vector"] = keys[order, 1], vectors[order]
        for number, key in enumerate(keys[order]):
            records["check"][number] = check_of(key.tobytes(), records["vector"][number].tobytes())
        firsts = np.ascontiguousarray(keys[order, 0]).tobytes()
        digest = blake2b(firsts, digest_size=16).digest()
        path = folder / f"{digest.hex()}.vectors"
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(HEAD.pack(MAGIC, len(keys), row.itemsize, digest) + firsts)
            file.write(records.view(np.uint8).data)
        return path


class Kept:
    """The vectors of one encoder below `root`, of which at most `limit` bytes are kept for all encoders."""

    def __init__(self, root: Path, limit: int, name: str, row: np.dtype):
        self.root, self.limit, self.folder, self.row = root, limit, root / name, row
        self.taken = 0
        self._segments: dict[str, Segment] = {}
        self._open()

    def _open(self) -> None:
        """Read the hashes of segments that are not open yet."""
        try:
            paths = sorted(self.folder.glob("*.vectors")) if self.folder.is_dir() else []
        except OSError as error:
            warn(f"{self.folder}: cannot be read ({error.strerror}); everything is embedded.")
            return
        for path in paths:
            if path.name not in self._segments:
                with self._trusting(path):
                    self._segments[path.name] = Segment(path, self.row)

    @contextmanager
    def _trusting(self, path: Path) -> Iterator[None]:
        """A block in which a segment that is damaged, or cannot be read, is told of and not used any more."""
        try:
            yield
        except Broken as error:
            self._segments.pop(path.name, None)
            warn(f"{path}: {error}; it is not used.")
            with suppress(OSError):
                path.unlink()
        except OSError as error:
            self._segments.pop(path.name, None)
            if not isinstance(error, FileNotFoundError):  # another job may have removed it as the oldest
                warn(f"{path}: cannot be read ({error.strerror}); it is not used.")

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of keys uint64 [n, 2]: which were found, bool [n], and vectors [n, width], of which others are
        undefined.
        """
        found, vectors = np.zeros(len(keys), bool), np.empty(len(keys), self.row)
        for segment in list(self._segments.values()):
            open_ = np.flatnonzero(~found)
            if len(open_) and len(segment.firsts) and segment.places(keys[open_])[0].any():
                with self._trusting(segment.path):
                    there = np.empty(len(open_), self.row)
                    hit = segment.read(keys[open_], there)
                    vectors[open_[hit]], found[open_[hit]] = there[hit], True
                    with suppress(OSError):
                        os.utime(segment.path)  # the oldest go first
        self.taken += int(found.sum())
        return found, vectors

    def encode(self, texts: list[str], encoder: Encoder, advance: Callable[[int], object]) -> np.ndarray:
        """The vectors [n, width] of texts: those that are kept, and the others by the encoder, equal texts once."""
        keys = keys_of(texts)
        found, vectors = self.find(keys)
        missing = np.flatnonzero(~found)
        _, first, places = np.unique(keys[missing], axis=0, return_index=True, return_inverse=True)
        if len(first):
            made = encoder.encode([texts[missing[number]] for number in first], advance)
            vectors[missing] = made.astype(vectors.dtype)[places.reshape(-1)]
        advance(len(texts) - len(first))
        return vectors

    def add(self, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Keep the vectors of these blocks, keys [n, 2] and vectors [n, width], that are not kept yet, as far as
        they are not more than may be kept.
        """
        seen: set[int] = set()
        room = self.limit
        try:
            self._open()  # what other jobs have kept since
            for keys, vectors in gathered(self._new(blocks, seen), max(1, SEGMENT // self.row.itemsize)):
                size = HEAD.size + len(keys) * (self.row.itemsize + 24)
                room -= size
                if room < 0:
                    return
                self.folder.mkdir(parents=True, exist_ok=True)
                status = os.statvfs(self.folder)
                if status.f_bavail * status.f_frsize < 2 * size:
                    warn(f"{self.root}: {size / 1e6:,.0f} MB of vectors are not kept, as the disk is nearly full.")
                    return
                Segment.write(self.folder, keys, vectors)
                trim(self.root, self.folder, self.limit)
                self._open()
                seen.clear()  # it is in a segment now
        except OSError as error:
            warn(f"{self.root}: vectors are not kept ({error.strerror}).")

    def _new(
        self, blocks: Iterable[tuple[np.ndarray, np.ndarray]], seen: set[int]
    ) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Of each block what is in no segment and was not `seen` in a block before."""
        for keys, vectors in blocks:
            known = np.array([int(first) in seen for first in keys[:, 0]], bool)
            for segment in self._segments.values():
                known |= segment.places(keys)[0] if len(segment.firsts) else False
            _, first = np.unique(keys[:, 0], return_index=True)
            new = np.sort(first[~known[first]])
            seen.update(keys[new, 0].tolist())
            yield keys[new], np.asarray(vectors[new])


def gathered(blocks: Iterable[tuple[np.ndarray, np.ndarray]], most: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """The same rows in pieces of `most`, the last of what is left."""
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for block in blocks:
        held.append(block)
        while sum(len(keys) for keys, _ in held) >= most:
            keys, vectors = (np.concatenate(each) for each in zip(*held, strict=True))
            yield keys[:most], vectors[:most]
            held = [(keys[most:], vectors[most:])]
    keys, vectors = (np.concatenate(each) for each in zip(*held, strict=True)) if held else (np.empty(0), np.empty(0))
    if len(keys):
        yield keys, vectors


def trim(root: Path, folder: Path, limit: int) -> None:
    """Remove the oldest segments beyond `limit` bytes in all and `SEGMENTS` of `folder`, and what the dead left."""
    found = []
    for path in root.glob("*/*"):
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, path, status.st_size))
    found.sort(reverse=True)
    total, here = 0, 0
    for age, path, size in found:
        total, here = total + size, here + (path.parent == folder)
        unfinished = path.suffix != ".vectors" and age < time.time() - LEFT
        if unfinished or total > limit or (path.parent == folder and here > SEGMENTS):
            with suppress(OSError):
                path.unlink()
