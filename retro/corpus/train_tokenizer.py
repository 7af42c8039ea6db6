"""Stage: the tokenizer, trained on the train split or taken from given files."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tokenizers
from pydantic import ValidationError
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro import artifacts, errors, progress
from retro.corpus.readers import Reader
from retro.corpus.settings import TOKENIZER_FILES, SourceSettings, SplitSettings, TokenizerSettings
from retro.corpus.split import split_of
from retro.corpus.tokenizers import Tokenizer, use_threads
from retro.database.tables import TRAIN
from retro.errors import UserError
from retro.settings import Settings

STAGE = "retro.corpus.train_tokenizer"


class TrainTokenizerSettings(Settings):
    """What this stage reads of the config."""

    tokenizer: TokenizerSettings
    sources: dict[str, SourceSettings]
    split: SplitSettings
    seed: int
    on_error: Literal["stop", "skip"] = "stop"


def train_texts(settings: TrainTokenizerSettings, readers: list[Reader]) -> Iterator[str]:
    """Texts of the train split, readers in order, up to `train_bytes` of UTF-8; the last is cut to fit."""
    left = limit = settings.tokenizer.train_bytes
    on_disk = sum(reader.bytes for reader in readers)
    with progress.bar(min(limit, on_disk), "reading for the tokenizer", "B") as bar:
        for reader in readers:
            for document in reader:
                if split_of(document.group, document.id, True, settings.split, settings.seed) != TRAIN:
                    continue
                text = document.text
                if document.bytes > left:
                    text = text.encode()[:left].decode(errors="ignore")
                yield text
                left -= min(document.bytes, left)
                bar.update((limit - left if limit < on_disk else sum(r.done for r in readers)) - bar.n)
                if left == 0:
                    return
        bar.update(bar.total - bar.n)
    print(f"tokenizer: learning {settings.tokenizer.vocab_size} tokens", file=sys.stderr, flush=True)


def train(settings: TrainTokenizerSettings, readers: list[Reader]) -> tuple[str, dict]:
    """Byte-level BPE as the text of a tokenizer.json, and counts of what it was trained on."""
    wanted, seen = settings.tokenizer, {"documents": 0, "bytes": 0}

    def texts() -> Iterator[str]:
        for text in train_texts(settings, readers):
            seen["documents"] += 1
            seen["bytes"] += len(text.encode())
            yield text

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted.vocab_size,
        special_tokens=[wanted.eod],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if seen["bytes"] == 0:
        raise UserError(
            "no text to train the tokenizer on: no document of a source with train: true falls into the "
            "train split. Lower dataset.split.valid and test, or add documents."
        )
    return tokenizer.to_str(), seen


def copy_given(settings: TokenizerSettings, folder: Path) -> list[str]:
    """Copy the given files under the names this package uses; returns their paths."""
    given = [settings.path, settings.merges] if settings.type == "gpt2" else [settings.path]
    for path, name in zip(given, TOKENIZER_FILES[settings.type], strict=True):
        if not Path(path).is_file():
            raise UserError(f"dataset.tokenizer: no such file: {path} (working folder {Path.cwd()}). Correct the path.")
        with artifacts.replacing(folder / name) as temporary:
            temporary.write_bytes(Path(path).read_bytes())
    return given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="JSON: tokenizer, sources, split, seed, on_error")
    parser.add_argument("--output", required=True, type=Path, help="the manifest to write")
    parser.add_argument("--threads", type=int, default=1, help="the same file for any number")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    try:
        settings = TrainTokenizerSettings(**json.loads(arguments.settings))
    except (ValidationError, ValueError, TypeError) as error:
        raise UserError(f"--settings: wanted this stage's part of the config, as JSON: {error}") from None
    wanted, folder = settings.tokenizer, arguments.output.parent
    arguments.output.unlink(missing_ok=True)
    counts = {}
    if wanted.type == "bpe":
        readers = [
            Reader(source, name, settings.on_error) for name, source in sorted(settings.sources.items()) if source.train
        ]
        text, counts = train(settings, readers)
        artifacts.write_text(folder / "tokenizer.json", text + "\n")
        inputs = [file.path for reader in readers for file in reader.files]
    else:
        inputs = copy_given(wanted, folder)
    tokenizer = Tokenizer.open(folder, wanted.type, wanted.eod)
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
        inputs=inputs,
        settings=settings.facts(),
        counts=counts,
        seed=settings.seed,
    )
    short = ""
    if wanted.type == "bpe" and tokenizer.vocab_size < wanted.vocab_size:
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
