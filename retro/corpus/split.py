"""Which split a document belongs to: a function of seed and group (or id), so adding some moves none."""

from hashlib import blake2b

from retro.corpus.settings import SplitSettings
from retro.database.tables import BOOK, TEST, TRAIN, VALID


def key_hash(key: str) -> int:
    """64-bit hash of a group or id, as stored in DOCUMENT.group: blake2b, little-endian."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def fraction(key: str, seed: int) -> float:
    """A number in [0, 1) that looks drawn at random, always the same for a key and a seed."""
    digest = blake2b(key.encode(), digest_size=8, key=f"split {seed}".encode()).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def split_of(group: str, document: str, train: bool, settings: SplitSettings, seed: int) -> int:
    """Index into SPLITS. A group (or id) falls into the same split in every source; `train: false` is book.

    Test is cut from one end and validation from the other: changing one share leaves the other as it was.
    """
    if not train:
        return BOOK
    where = fraction(group if settings.by == "group" else document, seed)
    if where < settings.test:
        return TEST
    return VALID if where >= 1 - settings.valid else TRAIN
