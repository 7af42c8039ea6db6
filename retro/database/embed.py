"""Stage: turn every chunk of a source into a unit vector.

A chunk's tokens are decoded to text, special tokens dropped, and the text is embedded. Work goes block by
block; a killed job goes on after its last finished block, if what the blocks were made from is still the
same. Several jobs can share the work (`retro.base.shards`). Vectors that this encoder gave before, for whatever
dataset, are taken from those that are kept (`retro.database.kept`); what is made does not depend on them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from retro.base import log, provenance, shards, stage
from retro.base.artifacts import growing_array, open_array, read_manifest, release, sha256, write_manifest
from retro.base.log import say
from retro.base.shards import Blocks
from retro.base.stage import UserError, finite, given, read_section, whole
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.encoders import Encoder, GivenEncoder, asking_identity, open_encoder, settings_of
from retro.database.kept import Kept, keys_of, name_of
from retro.database.settings import EncoderSettings

STAGE = "retro.database.embed"
BLOCK = 2048  # chunks; half a minute or so of work on two cores


def texts_of(store: TokenStore, table: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The text of each chunk of a piece of a chunk table; characters cut by a chunk's border are replaced."""
    return [
        tokenizer.decode(store.tokens[start : start + length])
        for start, length in zip(table["start"].tolist(), table["length"].tolist(), strict=True)
    ]


COMPARED, NEAREST = 1024, 10  # chunks whose vectors are compared with float32's, neighbours of each


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """How many of each row's `NEAREST` others by unit vectors `exact` [n, d] are among those by `found`, as a share."""

    def nearest(vectors: np.ndarray) -> np.ndarray:
        whole = np.round(vectors.astype(np.float64) * 2**25)  # products of such are exact, in whatever order summed
        scores = whole @ whole.T
        np.fill_diagonal(scores, -np.inf)
        return np.argsort(-scores, axis=1, kind="stable")[:, : min(NEAREST, len(vectors) - 1)]

    pairs = zip(nearest(found), nearest(exact), strict=True)
    return float(np.mean([np.isin(wanted, there).mean() for there, wanted in pairs]))


def compared(options: argparse.Namespace, texts: "Texts", stored: np.ndarray) -> dict[str, float]:
    """How far vectors `stored` [chunks, d], which a CPU computed in bfloat16, find the neighbours that float32 finds,
    among some chunks that depend on their number alone.
    """
    count = min(len(stored), COMPARED)
    if count < 2:
        return {}
    rows = np.sort(np.random.default_rng(0).choice(len(stored), count, replace=False))
    settings = read_section(EncoderSettings, options.settings["encoder"], "encoder")
    exact = open_encoder(settings.model_copy(update={"cpu_dtype": "float32", "gpu_dtype": "float32"}), options.threads)
    made = exact.encode([texts(row, row + 1)[0] for row in rows.tolist()])
    share = round(recall(stored[rows].astype(np.float32), made), 4)
    say(f"{options.output.parent}: bfloat16 finds {share:.2%} of the neighbours of float32, among {count} chunks")
    return {"compared": count, f"recall@{NEAREST}": share}


class Texts:
    """The texts of the chunks of a chunk `table`, by their rows."""

    def __init__(self, options: argparse.Namespace, table: np.ndarray):
        self.table, self._tokenizer = table, Tokenizer.load(options.tokenizer)
        self._store = TokenStore(read_manifest(options.tokens, "tokens").file("tokens.bin").with_suffix(""))

    def __call__(self, start: int, stop: int) -> list[str]:
        found = texts_of(self._store, self.table[start:stop], self._tokenizer)
        release(self._store.tokens, self.table)
        return found


def compute_blocks(
    options: argparse.Namespace, table: np.ndarray, blocks: Blocks, encoder: Encoder, texts: Texts, kept: Kept | None
) -> None:
    """Embed what is not finished of the job's own blocks of the chunk `table`, and is not kept."""
    wanted = shards.bounds(len(table), options.block, options.shard)
    with log.bar(sum(stop - start for start, stop in wanted), "embed", "chunk") as shown:

        def embed(start: int, stop: int) -> np.ndarray:
            if isinstance(encoder, GivenEncoder):
                shown.update(stop - start)
                return encoder.rows(options.chunks.parent.name, len(table), start, stop)
            here = texts(start, stop)
            vectors = kept.encode(here, encoder, shown.update) if kept else encoder.encode(here, shown.update)
            if not np.isfinite(vectors).all():
                raise UserError(
                    f"{options.output.parent}: the encoder gave NaN or infinity from chunk {start} on. Set "
                    "dataset.encoder.gpu_dtype: float32, or take another encoder."
                )
            return vectors

        shards.compute(blocks, wanted, embed, shown)
    if kept and kept.taken:
        say(f"{options.output.parent}: {kept.taken} chunks were embedded before, taken from {kept.folder}")


def finish(options: argparse.Namespace, blocks: shards.Joined, rows: int, texts: Texts) -> None:
    """Write the array and its manifest."""
    path, (width,) = options.output.parent / "embeddings.npy", blocks.row_shape
    with growing_array(path, (rows, width), blocks.dtype) as embeddings:
        for start, found in blocks:
            embeddings[start : start + len(found)] = found
            release(embeddings)
    low = settings_of(blocks.made_from["encoder"]).cpu_dtype == "bfloat16"
    against = compared(options, texts, open_array(path)) if low else {}
    write_manifest(
        options.output,
        kind="embeddings",
        stage=STAGE,
        files=[path],
        inputs=[options.tokenizer, options.tokens, options.chunks],
        settings={**options.settings, "encoder": blocks.made_from["encoder"]},
        counts={"chunks": rows, "width": width, **against},  # threads and shards change no byte: not recorded
    )
    print(f"{options.output.parent}: {rows} vectors of {width} dimensions", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: encoder, chunk_length")
    parser.add_argument("--tokenizer", required=True, type=Path, help="manifest of the tokenizer")
    parser.add_argument("--tokens", required=True, type=Path, help="manifest of the token store")
    parser.add_argument("--chunks", required=True, type=Path, help="manifest of the chunk table")
    parser.add_argument("--blocks", type=Path, help="folder for finished blocks; default: beside the output")
    parser.add_argument("--block", type=whole, default=BLOCK, help="chunks a block")
    parser.add_argument("--shard", type=shards.shard_name, help="do this part only, --output is its note")
    parser.add_argument("--shards", nargs="*", type=Path, help="notes of all shards: join them, embed nothing")
    parser.add_argument("--keep", type=Path, help="folder of vectors that were computed before, and are kept")
    parser.add_argument("--keep-gb", type=finite, default=10, help="how much is kept there, the newest; 0: nothing")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    settings = read_section(EncoderSettings, options.settings["encoder"], "encoder")
    chunks = read_manifest(options.chunks, "chunks")
    if chunks.settings["chunk_length"] != options.settings["chunk_length"]:
        raise UserError(
            f"{options.chunks}: chunks of {chunks.settings['chunk_length']} tokens, wanted "
            f"{options.settings['chunk_length']}. Run snakemake: it cuts them again."
        )
    table = chunks.array("chunks.npy")
    texts, kept = Texts(options, table), None
    if options.shards:
        joined = shards.Joined(options.shards, len(table))
        finish(options, joined, len(table), texts)
        joined.remove()
        return
    encoder = open_encoder(settings, options.threads)
    vectors = encoder.of(options.chunks.parent.name) if isinstance(encoder, GivenEncoder) else None
    print(
        f"{options.output.parent}: {len(table)} chunks with encoder {settings.type} ({encoder.width} "
        f"dimensions, {encoder.engine}, sha256 {encoder.identity[:16]}…), {options.threads} threads",
        file=sys.stderr,
    )
    made_from = {
        "encoder": {**settings.facts(), "identity": encoder.identity, "engine": encoder.engine}
        | asking_identity(settings)
        | ({"vectors": sha256(vectors)} if vectors else {}),
        "inputs": [sha256(path) for path in (options.tokenizer, options.tokens, options.chunks)],
        "code": provenance.digest(STAGE),
        "versions": provenance.versions(),
    }
    folder = options.output.with_suffix("") if options.shard else options.blocks or options.output.parent / "blocks"
    if options.keep and options.keep_gb and encoder.lasting:
        row = np.dtype((np.dtype(settings.dtype), (encoder.width,)))
        kept = Kept(options.keep, int(options.keep_gb * 1e9), name_of(encoder, settings), row)
    with Blocks(folder, made_from, (encoder.width,), settings.dtype) as blocks:
        compute_blocks(options, table, blocks, encoder, texts, kept)
        own = shards.Alone(blocks, made_from, shards.bounds(len(table), options.block, options.shard))
        if options.shard:
            shards.write_note(options.output, options.shard, blocks, made_from, options.block)
        else:
            finish(options, own, len(table), texts)
        if kept:  # last: what is asked for has the disk first
            kept.add((keys_of(texts(start, start + len(found))), found) for start, found in own)
        if not options.shard:
            own.remove()


if __name__ == "__main__":
    stage.run(main)
