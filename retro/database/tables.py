"""The chunk table: one row a chunk, one table a source.

A *global row* numbers the chunks of all sources, in config order: the database and the splits are lists of
global rows, and a neighbour id is a position in the database's list.
"""

from typing import Literal, get_args

import numpy as np

Split = Literal["train", "valid", "test"]  # what has a list of chunks, and neighbours
HeldOut = Literal["valid", "test"]  # what can be evaluated
LISTED: tuple[str, ...] = get_args(Split)
HELD_OUT: tuple[str, ...] = get_args(HeldOut)
SPLITS = (*LISTED, "book")  # book: a source that is never trained on (train: false)
TRAIN, VALID, TEST, BOOK = range(len(SPLITS))
CHUNK = np.dtype(
    [
        ("start", "<i8"),  # position of the chunk's first token in its source's token store
        ("document", "<i4"),  # number of its document in the source
        ("length", "<u2"),  # tokens, 1 .. chunk_length
        ("split", "u1"),  # index into SPLITS
        ("group", "<u8"),  # 64-bit hash of the document's group
        ("text", "<u8"),  # 64-bit hash of the chunk's tokens, for exact-text exclusion
        ("bytes", "<u4"),  # UTF-8 bytes the chunk's tokens stand for; a document's chunks sum to its text
    ]
)
DOCUMENT = np.dtype(
    [
        ("group", "<u8"),  # 64-bit hash of the group (blake2b, little-endian)
        ("bytes", "<i8"),  # UTF-8 bytes of the text
        ("split", "u1"),  # index into SPLITS
        ("offset", "<i8"),  # byte offset of its line in documents.jsonl
    ]
)
