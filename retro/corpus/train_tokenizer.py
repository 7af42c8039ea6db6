"""Stage: the tokenizer, trained on the train split or taken from given files."""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro import artifacts, errors, progress
from retro.arguments import given
from retro.corpus.learning_text import LearningText, cut_long_words
from retro.corpus.readers import Reader
from retro.corpus.settings import TOKENIZER_FILES, SourceSettings, SplitSettings, TokenizerSettings
from retro.corpus.tokenizers import Tokenizer, use_threads
from retro.errors import UserError
from retro.refusals import read_section
from retro.settings import Settings

STAGE = "retro.corpus.train_tokenizer"


class TrainTokenizerSettings(Settings):
    """What this stage reads of the config."""

    tokenizer: TokenizerSettings
    sources: dict[str, SourceSettings]
    split: SplitSettings
    seed: int
    on_error: Literal["stop", "skip"] = "stop"


def train(settings: TrainTokenizerSettings, readers: list[Reader]) -> tuple[str, dict]:
    """Byte-level BPE as the text of a tokenizer.json, and counts of what it was trained on."""
    wanted = settings.tokenizer
    assert wanted.vocab_size is not None
    learned = LearningText(readers, settings.split, settings.seed, wanted.train_bytes)

    def texts() -> Iterator[str]:
        for text in learned:
            yield from cut_long_words(text)
        print(f"tokenizer: learning {wanted.vocab_size} tokens", file=sys.stderr, flush=True)

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted.vocab_size,
        special_tokens=[wanted.eod],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with progress.waiting("learning the tokenizer"):
        tokenizer.train_from_iterator(texts(), trainer)
    if learned.bytes == 0:
        raise UserError(nothing(learned, readers))
    for line in learned.told():
        print(f"tokenizer: {line}", file=sys.stderr)
    return tokenizer.to_str(), {"documents": learned.documents, "bytes": learned.bytes}


def nothing(learned: LearningText, readers: list[Reader]) -> str:
    """Why there is no text to learn from."""
    counts = {name: sum(getattr(reader, name) for reader in readers) for name in ("records", "filtered", "skipped")}
    first = next((reader.first for reader in readers if reader.first), None)
    why = " The first malformed: {file}, line {line}: {reason}.".format(**first) if first else ""
    return (
        f"no text to train the tokenizer on: of {counts['records']} records of sources with train: true, "
        f"{counts['skipped']} malformed, {counts['filtered']} left out by keep, {learned.empty} empty, "
        f"{learned.held_out} held out for validation and test.{why} Correct these files or dataset.sources, lower "
        f"dataset.split.valid and test, or add documents."
    )


def hashes_of(readers: list[Reader]) -> dict[str, str]:
    """sha256 of every file of the sources, those of files that were read as they were read."""
    found = {}
    for reader in readers:
        read = reader.readings.hashes()
        for file in reader.files:
            path = str(file.path)
            if path in read or not (file.reason or reader.readings.failed(file.path)):
                found[path] = read.get(path) or artifacts.sha256(path)
    return found


def copy_given(settings: TokenizerSettings, folder: Path) -> dict[str, str]:
    """Copy the given files under the names this package uses; returns their paths and the sha256 of what was read."""
    hashes = {}
    named = [settings.path, settings.merges] if settings.type == "gpt2" else [settings.path]
    given = [path for path in named if path is not None]
    for path, name in zip(given, TOKENIZER_FILES[settings.type], strict=True):
        if not Path(path).is_file():
            raise UserError(f"dataset.tokenizer: no such file: {path} (working folder {Path.cwd()}). Correct the path.")
        data = Path(path).read_bytes()
        hashes[path] = hashlib.sha256(data).hexdigest()
        with artifacts.replacing(folder / name) as temporary:
            temporary.write_bytes(data)
    return hashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=given, help="JSON: tokenizer, sources, split, seed, on_error")
    parser.add_argument("--output", required=True, type=Path, help="the manifest to write")
    parser.add_argument("--threads", type=int, default=1, help="the same file for any number")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    settings = read_section(TrainTokenizerSettings, arguments.settings)
    wanted, folder = settings.tokenizer, arguments.output.parent
    arguments.output.unlink(missing_ok=True)
    counts: dict[str, int] = {}
    if wanted.type == "bpe":
        readers = [
            Reader(source, name, settings.on_error) for name, source in sorted(settings.sources.items()) if source.train
        ]
        text, counts = train(settings, readers)
        artifacts.write_text(folder / "tokenizer.json", text + "\n")
        hashes = hashes_of(readers)
    else:
        hashes = copy_given(wanted, folder)
    tokenizer = Tokenizer.open(folder, wanted.type, wanted.eod, wanted.lossy == "allow")
    if tokenizer.chance:
        print(f"tokenizer: {tokenizer.chance} of the given file is switched off", file=sys.stderr)
    counts = {
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "pad_id": tokenizer.pad_id,
        "train_documents": counts.get("documents", 0),
        "train_bytes": counts.get("bytes", 0),
    }
    artifacts.write_manifest(
        arguments.output,
        kind="tokenizer",
        stage=STAGE,
        files=[folder / name for name in TOKENIZER_FILES[wanted.type]],
        inputs=[*hashes],
        hashes=hashes,
        settings=settings.facts(),
        counts=counts,
        seed=settings.seed,
    )
    short = ""
    if wanted.type == "bpe" and tokenizer.vocab_size < (wanted.vocab_size or 0):
        short = f" ({wanted.vocab_size} wanted: the text holds no more)"
    print(
        f"tokenizer: {wanted.type}, {tokenizer.vocab_size} tokens{short}, "
        f"trained on {counts['train_bytes']} bytes of {counts['train_documents']} documents"
        if wanted.type == "bpe"
        else f"tokenizer: {wanted.type}, {tokenizer.vocab_size} tokens, given",
        file=sys.stderr,
    )


if __name__ == "__main__":
    errors.run(main)
