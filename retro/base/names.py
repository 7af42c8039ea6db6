"""What things are called everywhere: splits, columns of tables, runs, and the folders of artifacts.

A *global row* numbers the chunks of all sources, in config order: the database and the splits are lists of
global rows, and a neighbour id is a position in the database's list.

Paths lie below a dataset's folder D; Snakemake's rules take these patterns as they are. `{retrieval}` is empty for the
dataset's own retrieval and `retrievals/<name>/` for one that the config names, so that both are laid out the same. What
a name may be, and which words are taken: `retro.config.checks`.
"""

import re
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
UNDATED = int(np.iinfo(np.int64).min)


def dated(table: np.dtype) -> np.dtype:
    """The columns of CHUNK or DOCUMENT, and `date`, where a source's fields name one: the last second of the
    document's, from 1970, UTC (`retro.corpus.dates`), or UNDATED.
    """
    return np.dtype([*table.descr, ("date", "<i8")])


def dates_of(table: np.ndarray) -> np.ndarray:
    """int64: the date of each row of a chunk table, or of documents.npy; UNDATED where there are none."""
    dates = "date" in (table.dtype.names or ())
    return np.array(table["date"]) if dates else np.full(table.shape, UNDATED, np.int64)


ALL = "all"  # the source of rows over all sources; the seed of rows over all seeds
WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME = f"^{WORD}$"  # of whatever the config names
SEEDED = re.compile(r"(?P<run>.+)-s\d+")


def seeded(run: str, seed: int) -> str:
    """What a run of the config is called when it is trained with a seed: its folder, `retro-s1`."""
    return f"{run}-s{seed}"


def unseeded(name: str) -> str:
    """What the run is called in the config; a name without a seed is that already."""
    found = SEEDED.fullmatch(name)
    return found["run"] if found else name


def tuned(name: str, tuning: str) -> str:
    """What a trained run is called when it was fine-tuned, `retro-s1-qa`; `tuning` is the config's qa.name."""
    return f"{name}-{tuning}"


def untuned(name: str, tuning: str) -> str:
    """What the run is called that was fine-tuned."""
    return name.removesuffix(f"-{tuning}")


TOKENIZER = "tokenizer"
TOKENS = "tokens/{source}"
DUPLICATES = "duplicates"
CHUNKS = "chunks/{source}"
DATABASE = "database"
EMBEDDINGS = "{retrieval}embeddings/{source}"
INDEX = "{retrieval}index"
BM25 = "{retrieval}bm25"
NEIGHBOURS = "{retrieval}neighbours/{split}"
CANDIDATES = "{retrieval}candidates/{split}"
SUBSAMPLED = "{retrieval}fractions/{fraction}/{split}"  # named by its condition: retro.evaluation.conditions
RUN = "runs/{run}"
LOSSES = "runs/{run}/evaluation/{split}/{mode}"
MIXED = "runs/{run}/evaluation/{split}/{mixed}"  # losses, too, of the conditions that end in +copy
KNN = "runs/{run}/evaluation/{split}/{knn}"  # and of those that end in +knn
OVERLAP = "overlap/{split}"
# The recorded config, and what of it a training reads: without retrieval, and with it. A training is made from no more
# than that, so that what it does not read, another book or the neighbours of the test split, trains nothing again.
CUTS = ("", "-gpt", "-retro")
RECORDED = "config{cut}.json"
EXPERIMENT = "experiments/{experiment}"
ANSWERS = "{answering}.{retrieved}.jsonl"  # in the folder of the config's qa.name
FIGURES = "figures"
PARTS = "parts"  # sections of the report
VALIDATED = "validate/{stage}.json"
# Of a BM25 index, as the library bm25s writes it.
BM25_FILES = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "vocab.index.json",
    "params.index.json",
)


def prefix(retrieval: str) -> str:
    """What stands for {retrieval}: nothing for the dataset's own, which is called ''."""
    return f"retrievals/{retrieval}/" if retrieval else ""


def retrieval(prefix: str) -> str:
    """The name of the retrieval with this prefix."""
    return prefix.removeprefix("retrievals/").removesuffix("/")
