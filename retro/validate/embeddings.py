"""Embeddings again, by `retro.database.embed`: chunks decoded and encoded."""

from collections.abc import Iterator

from retro import progress
from retro.artifacts import Manifest, read_manifest
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.embed import BLOCK, texts_of
from retro.database.encoders import open_encoder
from retro.database.settings import EncoderSettings
from retro.database.shards import bounds
from retro.errors import UserError
from retro.refusals import read_section
from retro.validate.sample import Difference, Sample, compare, inputs

CHUNKS = 256  # a block, where a vector does not depend on the others of its batch; else the stage's own block


def differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of a source's vectors, block by block. Raises `UserError` where another encoder, or another kind
    of device, would compute them: their bits cannot be compared.
    """
    given, recorded = inputs(manifest), dict(manifest.settings["encoder"])
    made_by = {name: recorded.pop(name) for name in ("identity", "engine")}
    settings = read_section(EncoderSettings, recorded, "encoder")
    encoder = open_encoder(settings, threads)
    for name, wanted in made_by.items():
        found = getattr(encoder, name)
        if found != wanted:
            raise UserError(
                f"{manifest.path}: embedded by an encoder of {name} {wanted}, here it is {found}. Validate on "
                f"a machine like the one that embedded."
            )
    store = TokenStore(read_manifest(given["tokens"][0], "tokens").file("tokens.bin").with_suffix(""))
    table, tokenizer = read_manifest(given["chunks"][0]).array("chunks.npy"), Tokenizer.load(given["tokenizer"][0])
    path, stored = manifest.file("embeddings.npy"), manifest.array("embeddings.npy")
    chosen = sample.choose(bounds(len(table), BLOCK if encoder.engine.startswith("torch") else CHUNKS), "chunk")
    with progress.bar(sample.rows, f"validate {manifest.folder}", "chunk") as shown:
        for start, stop in chosen:
            made = encoder.encode(texts_of(store, table[start:stop], tokenizer), shown.update)
            yield compare(path, "vector", start, stored[start:stop], made.astype(settings.dtype))
    if len(stored) != len(table):
        yield Difference(path, "vectors", str(len(stored)), str(len(table)))
