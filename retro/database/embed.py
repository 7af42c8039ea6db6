"""Stage: turn every chunk of a source into a unit vector.

A chunk's tokens are decoded to text, special tokens dropped, and the text is embedded. Work goes block by
block; a killed job goes on after its last finished block, if what the blocks were made from is still the
same.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from retro import errors, progress, provenance
from retro.artifacts import growing_array, read_manifest, sha256, write_manifest
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.blocks import Blocks
from retro.database.encoders import open_encoder
from retro.database.settings import EncoderSettings, read_section
from retro.errors import UserError

STAGE = "retro.database.embed"
BLOCK = 2048  # chunks; half a minute or so of work on two cores


def texts_of(store: TokenStore, table: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The text of each chunk of a piece of a chunk table; characters cut by a chunk's border are replaced."""
    return [
        tokenizer.decode(store.tokens[start : start + length])
        for start, length in zip(table["start"].tolist(), table["length"].tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: encoder, chunk_length")
    parser.add_argument("--tokenizer", required=True, type=Path, help="manifest of the tokenizer")
    parser.add_argument("--tokens", required=True, type=Path, help="manifest of the token store")
    parser.add_argument("--chunks", required=True, type=Path, help="manifest of the chunk table")
    parser.add_argument("--blocks", required=True, type=Path, help="folder for finished blocks")
    parser.add_argument("--block", type=int, default=BLOCK, help="chunks a block")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    options = parser.parse_args()
    settings = read_section(EncoderSettings, options.settings["encoder"], "encoder")
    chunks = read_manifest(options.chunks, "chunks")
    if chunks.settings["chunk_length"] != options.settings["chunk_length"]:
        raise UserError(
            f"{options.chunks}: chunks of {chunks.settings['chunk_length']} tokens, wanted "
            f"{options.settings['chunk_length']}. Run snakemake: it cuts them again."
        )
    tokenizer = Tokenizer.load(options.tokenizer)
    store = TokenStore(read_manifest(options.tokens, "tokens").file("tokens.bin").with_suffix(""))
    table, encoder = chunks.array("chunks.npy"), open_encoder(settings, options.threads)
    print(
        f"{options.output.parent}: {len(table)} chunks with encoder {settings.type} ({encoder.width} "
        f"dimensions, {encoder.engine}, sha256 {encoder.identity[:16]}…), {options.threads} threads",
        file=sys.stderr,
    )
    inputs = [options.tokenizer, options.tokens, options.chunks]
    made_from = {
        "encoder": {**settings.facts(), "identity": encoder.identity, "engine": encoder.engine},
        "inputs": [sha256(path) for path in inputs],
        "code": provenance.digest(STAGE),
        "versions": provenance.versions(),
    }
    path, shape = options.output.parent / "embeddings.npy", (len(table), encoder.width)
    starts = range(0, len(table), options.block)
    with Blocks(options.blocks, made_from, (encoder.width,), settings.dtype) as blocks:
        with progress.bar(len(table), "embed", "chunk") as shown:
            for start in starts:
                part = table[start : start + options.block]
                finished = blocks.read(start, start + len(part))
                if finished is not None:
                    shown.update(len(part))
                    shown.unpause()  # what was already there does not count in the rate
                    continue
                vectors = encoder.encode(texts_of(store, part, tokenizer), shown.update)
                if not np.isfinite(vectors).all():
                    raise UserError(f"{path}: encoder {settings.type} gave NaN or infinity from chunk {start} on.")
                blocks.write(start, vectors)
        with growing_array(path, shape, settings.dtype) as embeddings:
            for start in starts:
                stop = min(start + options.block, len(table))
                embeddings[start:stop] = blocks.read(start, stop)
        write_manifest(
            options.output,
            kind="embeddings",
            stage=STAGE,
            files=[path],
            inputs=inputs,
            settings={**options.settings, "encoder": made_from["encoder"]},
            counts={"chunks": len(table), "width": encoder.width},  # threads change no byte: not recorded
        )
        blocks.remove()
    print(f"{options.output.parent}: {len(table)} vectors of {encoder.width} dimensions", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
