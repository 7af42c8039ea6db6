"""Another book for a trained model: a dataset with the same tokenizer and chunks, whatever its documents are."""

from pathlib import Path

from retro.errors import UserError
from retro.recorded import Dataset


def open_book(path: Path, trained: Dataset) -> Dataset:
    """The dataset at `path` (its config.json), to be searched by a model of the dataset `trained`.

    Raises `UserError` unless both have the same tokenizer, byte for byte, and the same chunk length. Its encoder, index
    and documents are its own: queries are embedded with the encoder that its database was embedded with.
    """
    book = Dataset.open(path)
    for what, mine, wanted in (
        ("tokenizer", _tokenizer(book), _tokenizer(trained)),
        ("chunk_length", book.chunk_length, trained.chunk_length),
    ):
        if mine != wanted:
            raise UserError(
                f"{path}: its {what} is {mine}, the model's ({trained.path}) is {wanted}. Make the dataset with "
                f"dataset.tokenizer: {{type: tokenizer.json, path: {trained.folder / 'tokenizer/tokenizer.json'}}} and "
                f"dataset.chunk_length: {trained.chunk_length}; config/swap-book.yaml is an example."
            )
    return book


def _tokenizer(dataset: Dataset) -> str:
    """What tells one tokenizer from another, as text."""
    files = dataset.manifest("tokenizer/manifest.json", "tokenizer").facts["files"]
    known = [f"{name} sha256 {facts['sha256'][:16]}…" for name, facts in sorted(files.items())]
    return ", ".join([*known, f"end {dataset.tokenizer.eod_id}", f"padding {dataset.tokenizer.pad_id}"])
