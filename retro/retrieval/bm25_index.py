"""Stage: a BM25 index over the database's texts; its n-th chunk is the database's n-th."""

import argparse
import sys
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from retro import errors, progress
from retro.arguments import given
from retro.artifacts import read_manifest, write_manifest
from retro.corpus.tokenizers import Tokenizer
from retro.database.settings import read_section
from retro.database.store import open_store, texts
from retro.errors import UserError
from retro.retrieval.bm25 import FILES, build
from retro.retrieval.settings import IndexSettings

STAGE = "retro.retrieval.bm25_index"
BLOCK = 4096  # chunks decoded at a time
BYTES = 40  # memory a token of the database, at most, while bm25s builds (docs/scale.md says what was measured)


def check(chunks: int, length: int, memory: int) -> None:
    """Refuse a database of `chunks` of `length` tokens for which `memory`, in MB, is too little."""
    needed = -(-chunks * length * BYTES // 1_000_000)
    if needed > memory:
        raise UserError(
            f"bm25: to index {chunks:,} chunks of {length} tokens takes up to {needed:,} MB of memory, the job has "
            f"{memory:,}. Give it more (snakemake --set-resources words:mem_mb={needed} "
            f"retrieval_words:mem_mb={needed}), or take retriever: dense, whose memory does not grow with the database."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: index")
    parser.add_argument("--database", required=True, type=Path, help="manifest of the database")
    parser.add_argument("--tokenizer", required=True, type=Path, help="manifest of the tokenizer")
    parser.add_argument("--tokens", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--chunks", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--memory", type=int, help="MB that the job may use")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    options = parser.parse_args()
    settings, folder = read_section(IndexSettings, options.settings["index"], "index"), options.output.parent
    tokenizer = Tokenizer.load(options.tokenizer)
    store = open_store(options.tokens, options.chunks, tokenizer)
    database = read_manifest(options.database, "database").array("database.npy")
    if options.memory is not None:
        check(len(database), store.length, options.memory)
    folder.mkdir(parents=True, exist_ok=True)

    def decoded():
        with progress.bar(len(database), "bm25", "chunk") as shown:
            for start in range(0, len(database), BLOCK):
                part = database[start : start + BLOCK]
                yield from texts(store, tokenizer, part)
                shown.update(len(part))

    with TemporaryDirectory(dir=folder, prefix=".bm25.") as temporary:
        count = build(decoded(), Path(temporary), settings.bm25_k1, settings.bm25_b)
        for name in FILES:
            (Path(temporary) / name).replace(folder / name)
    write_manifest(
        options.output,
        kind="index",
        stage=STAGE,
        files=[folder / name for name in FILES],
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
    size = sum((folder / name).stat().st_size for name in FILES) / 1e6
    print(f"{folder}: BM25, {len(database)} chunks, {count} different words, {size:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
