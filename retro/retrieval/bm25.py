"""Stage: a BM25 index over the database's texts, and its search, by the library bm25s (Robertson and Zaragoza 2009).

Words are runs of letters, marks and digits, NFKC-normalised and case-folded; characters of scripts written
without spaces are words of their own. The index holds the score of every word in every chunk, so a search
adds up rows of it, in the order of the query's words: equal inputs give equal scores, whatever the threads.
A word that comes twice in a query counts twice, as in Lucene. The n-th chunk of the index is the database's n-th.
"""

import argparse
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import regex

from retro.base import log, stage
from retro.base.artifacts import read_manifest, write_manifest
from retro.base.names import BM25_FILES
from retro.base.stage import UserError, given, read_section, whole
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.store import open_store, texts
from retro.retrieval.exclusion import Barred
from retro.retrieval.settings import IndexSettings

ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORDS = regex.compile(rf"(?V1)[{ALONE}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{ALONE}]]+")
QUERIES = 256  # queries whose excluded chunks are looked up at once


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def build(texts: Iterable[str], folder: Path, k1: float, b: float) -> int:
    """Index `texts` into `folder` as the files `BM25_FILES`; returns the number of different words.

    Needs about 20 bytes a word of text while it works, and 8 on disk for each different word of a chunk.
    """
    import bm25s

    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
    if not vocabulary:  # chunks of nothing but punctuation: no query shares a word with them
        vocabulary[""] = 0
        ids[0] = [0]
    index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy", csc_backend="numpy")
    index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    index.save(folder, show_progress=False)
    return len(vocabulary)


class Bm25Search:
    """Search of a memory-mapped index by text; as exact as float32 sums are."""

    def __init__(self, folder: Path, threads: int = 1):
        import bm25s

        self._index = bm25s.BM25.load(folder, mmap=True, load_vocab=True, load_corpus=False)
        self._index.scores = {
            key: value.view(np.ndarray) if isinstance(value, np.ndarray) else value
            for key, value in self._index.scores.items()
        }
        self._threads = threads

    def __len__(self) -> int:
        return int(self._index.scores["num_docs"])

    def scores(self, text: str) -> np.ndarray:
        """float32 [N]: the score of every database chunk, 0 where it shares no word with `text`."""
        known = self._index.get_tokens_ids(words(text))
        return self._index.get_scores_from_ids(known) if known else np.zeros(len(self), np.float32)

    def search(
        self, texts: list[str], k: int, barred: Barred, advance: Callable[[int], object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 and scores float64 [q, k], best first, ties by id; −1 and −∞ for holes, which there are
        only where fewer than k chunks are admissible.
        """
        ids, scores = np.full((len(texts), k), -1, np.int64), np.full((len(texts), k), -np.inf)

        def work(start: int) -> int:
            excluded = barred[start : start + QUERIES]
            rows, positions = excluded.within(0, len(self))
            order = np.argsort(rows, kind="stable")
            rows, positions = rows[order], positions[order]
            for row, text in enumerate(texts[start : start + QUERIES]):
                found = self.scores(text)
                found[positions[slice(*np.searchsorted(rows, [row, row + 1]))]] = -np.inf
                found[excluded.later(row)] = -np.inf
                chosen = first(found, k)
                ids[start + row, : len(chosen)], scores[start + row, : len(chosen)] = chosen, found[chosen]
            return min(QUERIES, len(texts) - start)

        with ThreadPoolExecutor(self._threads) as pool:
            for done in pool.map(work, range(0, len(texts), QUERIES)):
                if advance:
                    advance(done)
        return ids, scores

    def score(self, texts: list[str], ids: np.ndarray) -> np.ndarray:
        """float64 [q, n]: the score that each text gives its own chunks `ids` int64 [q, n]; −∞ for −1."""
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(lambda text, row: self.scores(text)[row], texts, ids))
        return np.where(ids < 0, -np.inf, np.array(found, np.float64).reshape(ids.shape))


def first(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k highest of float32 `scores` [N] that are not −∞: highest first, ties by place."""
    if k < len(scores):
        bound = max(np.partition(scores, len(scores) - k)[len(scores) - k], np.finfo(np.float32).min)
        above, level = np.flatnonzero(scores > bound), np.flatnonzero(scores == bound)
        places = np.sort(np.concatenate([above, level[: k - len(above)]]))
    else:
        places = np.flatnonzero(scores > -np.inf)
    return places[np.argsort(-scores[places], kind="stable")]


STAGE = "retro.retrieval.bm25"
BLOCK = 4096  # chunks decoded at a time
BYTES = 40  # memory a token of the database, at most, while bm25s builds (docs/scale.md says what was measured)


def check(chunks: int, length: int, memory: int) -> None:
    """Refuse a database of `chunks` of `length` tokens for which `memory`, in MB, is too little."""
    needed = -(-chunks * length * BYTES // 1_000_000)
    if needed > memory:
        raise UserError(
            f"bm25: to index {chunks:,} chunks of {length} tokens takes up to {needed:,} MB of memory, the job has "
            f"{memory:,}. Give it more (snakemake --set-resources bm25_index:mem_mb={needed}), or take retriever: "
            "dense, whose memory does not grow with the database."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: index")
    parser.add_argument("--database", required=True, type=Path, help="manifest of the database")
    parser.add_argument("--tokenizer", required=True, type=Path, help="manifest of the tokenizer")
    parser.add_argument("--tokens", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--chunks", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--memory", type=whole, help="MB that the job may use")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    options = parser.parse_args()
    settings, folder = read_section(IndexSettings, options.settings["index"], "index"), options.output.parent
    tokenizer = Tokenizer.load(options.tokenizer)
    store = open_store(options.tokens, options.chunks, tokenizer)
    database = read_manifest(options.database, "database").array("database.npy")
    if options.memory is not None:
        check(len(database), store.length, options.memory)
    folder.mkdir(parents=True, exist_ok=True)

    def decoded() -> Iterator[str]:
        with log.bar(len(database), "bm25", "chunk") as shown:
            for start in range(0, len(database), BLOCK):
                part = database[start : start + BLOCK]
                yield from texts(store, tokenizer, part)
                shown.update(len(part))

    with TemporaryDirectory(dir=folder, prefix=".bm25.") as temporary:
        count = build(decoded(), Path(temporary), settings.bm25_k1, settings.bm25_b)
        for name in BM25_FILES:
            (Path(temporary) / name).replace(folder / name)
    write_manifest(
        options.output,
        kind="index",
        stage=STAGE,
        files=[folder / name for name in BM25_FILES],
        inputs=[options.database, options.tokenizer, *options.tokens, *options.chunks],
        settings={
            **options.settings,
            "factory": f"BM25 (k1 {settings.bm25_k1}, b {settings.bm25_b})",
            "why": "named in the config",
            "exact": True,
            "bm25s": metadata.version("bm25s"),
        },
        counts={"vectors": len(database), "words": count},
    )
    size = sum((folder / name).stat().st_size for name in BM25_FILES) / 1e6
    print(f"{folder}: BM25, {len(database)} chunks, {count} different words, {size:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
