"""Config sections of the corpus stages."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from retro.base.stage import Names, Settings


class FieldNames(Settings):
    """Which field of a record holds what. Every record has the text; what else the config names, at least one."""

    text: str = Field("text", description="The document's text.")
    id: str = Field("id", description="An identifier; where absent, `<source>-<number>` is used.")
    group: str = Field("group", description="What belongs together (country, year, repository); default: the id.")
    title: str = Field("title", description="A title to show; default: the id.")
    date: str | None = Field(
        None,
        description="When the document was written: a year, an ISO date, with a time and zone if need be, or seconds "
        "since 1970. Read only where it is named; neighbours.exclude: [later] wants it.",
    )

    @model_serializer(mode="wrap")
    def _as_named(self, plain: SerializerFunctionWrapHandler) -> dict[str, str]:
        """Only what the config names: a field that is named must be found."""
        return {name: field for name, field in plain(self).items() if field and name in self.model_fields_set}


class SourceSettings(Settings):
    """One source of documents."""

    type: Literal["documents", "megatron"] = Field(
        "documents",
        exclude_if=lambda value: value == "documents",
        description="documents: text. megatron: tokens in pairs of files, .bin and .idx, of Megatron-LM or NeMo; "
        "dataset.tokenizer must then name the tokenizer that made them.",
    )
    path: Annotated[str | list[str], Names("corpus")] = Field(
        description="JSON lines (.jsonl, .json; plain, .gz or .zst), .parquet, a .txt file, a folder or a "
        "pattern (web/**/*.jsonl.gz) of these; a list of such paths is read in order. Type megatron: the prefix of a "
        "pair, a pattern or a folder."
    )
    fields: FieldNames = Field(
        FieldNames(),
        description="Names of the record's fields; a.b is field b of the object a. One that is named here and that no "
        "record has is refused.",
    )
    keep: dict[str, list[str]] = Field(
        {}, description="Keep only records whose field (key) has one of the values; others are counted."
    )
    train: bool = Field(
        True,
        description="Split into train, valid and test. False: an open book, in the database only, never "
        "trained on and never evaluated.",
    )
    database: bool = Field(True, description="Put the train split (of an open book: everything) in the database.")
    cut: int | None = Field(
        None,
        ge=200,
        exclude_if=lambda value: value is None,
        description="Cut texts longer than so many characters into documents of at most that, at blank lines where it "
        "can be: parts of one book can then be held out. They are one group; dataset.split.by: document parts them.",
    )
    weight: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        exclude_if=lambda value: value is None,
        description="Share of the training samples, relative to the other sources' weights; none: all training "
        "chunks in one shuffle. Every source with train: true has one, or none has.",
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        if not (self.train or self.database):
            raise ValueError(
                "a source with train: false and database: false is used for nothing; set one of them to true, or "
                "remove the source"
            )
        if self.weight is not None and not self.train:
            raise ValueError(
                "weight is a share of the training samples; a source with train: false has none; leave it out"
            )
        if self.type == "megatron" and self.cut is not None:
            raise ValueError("cut cuts text; tokens of type megatron are cut already; leave it out")
        if self.type == "megatron" and self.keep:
            raise ValueError("keep reads the fields of records; tokens of type megatron have none; leave it out")
        if self.type == "megatron" and self.fields.model_fields_set:
            raise ValueError("fields names fields of records; tokens of type megatron have none; leave it out")
        return self


class SplitSettings(Settings):
    """How documents are assigned to train, valid and test: by a seeded hash, so adding some moves none."""

    by: Literal["group", "document"] = Field("group", description="Keep groups whole, or split by document id.")
    valid: float = Field(0.05, ge=0, lt=1, description="Share of the groups (or documents) for validation.")
    test: float = Field(0.05, ge=0, lt=1, description="Share of the groups (or documents) for the final test.")

    @model_validator(mode="after")
    def _some_left(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(
                f"valid {self.valid} + test {self.test} leaves nothing to train on; lower them to a sum below 1"
            )
        return self


class DuplicateSettings(Settings):
    """Documents that are equal, or nearly, in all sources: found by MinHash over their tokens."""

    action: Literal["off", "report", "exclude", "drop"] = Field(
        "off",
        description="report: find and list them. exclude: besides, a neighbour never comes from a duplicate of its "
        "chunk's document. drop: only one document of each cluster is trained on, and one is in the database; "
        "documents that are evaluated stay.",
    )
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity from which documents are duplicates.")
    shingle: int = Field(5, ge=1, le=64, description="Tokens a shingle; documents are compared as sets of these.")
    permutations: int = Field(128, ge=16, le=1024, description="Numbers a signature; more estimate more exactly.")
    drop_from: list[Literal["train", "database"]] = Field(
        ["train", "database"], min_length=1, description="What action drop drops documents from."
    )


TOKENIZER_FILES = {
    "bpe": ("tokenizer.json",),
    "tokenizer.json": ("tokenizer.json",),
    "huggingface": ("tokenizer.json",),
    "gpt2": ("vocab.json", "merges.txt"),
    "sentencepiece": ("tokenizer.model",),
}  # what a tokenizer of each type is kept in
# Where a folder of Hugging Face's names its end of text, in the order that they are asked.
END_OF_TEXT = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


class TokenizerSettings(Settings):
    """The language model's tokenizer: trained here, or given."""

    type: Literal["bpe", "tokenizer.json", "huggingface", "gpt2", "sentencepiece"] = Field(
        "bpe",
        description="bpe: byte-level BPE trained on the train split. tokenizer.json: Hugging Face's file. "
        "huggingface: the folder of a model, with that file and those that name its end of text. "
        "gpt2: vocab.json + merges.txt. sentencepiece: a .model file.",
    )
    vocab_size: int | None = Field(4096, ge=258, description="Size to train (bpe). Given tokenizers bring theirs.")
    train_bytes: int = Field(100_000_000, gt=0, description="Train on at most this much text (bytes of UTF-8).")
    path: Annotated[str | None, Names("file")] = Field(
        None, description="tokenizer.json, vocab.json, .model or (huggingface) the folder of a given tokenizer."
    )
    merges: Annotated[str | None, Names("file")] = Field(None, description="merges.txt of a given GPT-2 tokenizer.")
    eod: str = Field(
        "<|endoftext|>",
        description="The special token that ends a document; also pads. With huggingface the default is the folder's "
        "own: its eos_token.",
    )

    lossy: Literal["refuse", "allow"] = Field(
        "refuse",
        exclude_if=lambda value: value == "refuse",
        description="What is done about a text that the tokenizer does not give back (no token for a character, text "
        "normalized to other text). refuse: stop and show it. allow: go on, count such documents, and measure bits per "
        "byte of the text as it is given back; the report says so.",
    )

    @model_validator(mode="before")
    @classmethod
    def _own_end(cls, values: Any) -> Any:
        """An empty `eod` stands for the folder's own."""
        own = isinstance(values, dict) and values.get("type") == "huggingface"
        return {"eod": "", **values} if own else values

    @property
    def given(self) -> list[str]:
        """The files of a given tokenizer; those that must be there first."""
        if self.type == "huggingface":
            more = [f"{self.path}/{name}" for name in END_OF_TEXT]
            return [f"{self.path}/tokenizer.json", *(path for path in more if os.path.isfile(path))]
        return [path for path in (self.path, self.merges) if path is not None]

    @model_validator(mode="after")
    def _files(self) -> Self:
        if self.type == "bpe" and self.vocab_size is None:
            raise ValueError("tokenizer type bpe needs `vocab_size`")
        if self.type != "bpe" and self.path is None:
            raise ValueError(f"tokenizer type {self.type} needs `path`")
        if self.type == "gpt2" and self.merges is None:
            raise ValueError("tokenizer type gpt2 needs `merges`")
        return self
