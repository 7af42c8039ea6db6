"""Stage: the tokenizer, trained on the train split or taken from given files.

It learns from the train split, whole or a share of every source and of its files.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro.base import artifacts, log, stage
from retro.base.stage import Settings, UserError, given, read_section, whole
from retro.corpus.documents import TRAIN, split_of
from retro.corpus.files import COMPRESSIONS, SourceFile
from retro.corpus.readers import Document, Reader
from retro.corpus.settings import TOKENIZER_FILES, SourceSettings, SplitSettings, TokenizerSettings
from retro.corpus.tokenizers import Tokenizer, use_threads

PACKED = 3  # bytes of text that a byte of a compressed file is taken for
MOST = 10  # a document gives at most the tenth part of its source's share, unless its file has a larger one
WORD = 1000  # characters; learning takes the square of a word's length, so longer ones are cut


def long_words(size: int) -> re.Pattern[str]:
    """Where GPT-2's rule may find a word of so many characters: letters and digits, other signs, white space."""
    return re.compile(rf"[^\W_]{{{size},}}|(?:[^\w\s]|[_\x1c-\x1f]){{{size},}}|\s{{{size},}}")  # \x1c is a sign to it


LONG = long_words(WORD + 1)
SPACES = re.compile(rf"\s{{{WORD}}}|[\x1c-\x1f]")


def cut_long_words(text: str) -> Iterator[str]:
    """The text in pieces, cut inside words that are longer than `WORD` characters; text without any as it is."""
    start = 0
    # Most texts have no long run of any kind, which is seen in a fraction of the time.
    likely = len(text) > WORD and (max(map(len, text.split()), default=0) > WORD or SPACES.search(text))
    for found in LONG.finditer(text) if likely else ():
        for end in range(found.start() + WORD, found.end(), WORD):
            yield text[start:end]
            start = end
    yield text[start:]


def weight(file: SourceFile) -> int:
    """How much text a file is taken for before it is read, in bytes."""
    packed = file.kind == "parquet" or file.path.suffix.lower() in COMPRESSIONS
    return file.bytes * (PACKED if packed else 1)


class LearningText:
    """Iterates over texts of the train split, readers and files in order, up to `limit` bytes of UTF-8 in all.

    If there is more, every file gives what its size is of all sources, from its beginning, in whole documents where
    they are not large. What one has too little of, the next ones give. Afterwards: `documents`, `bytes`, `held_out`
    and `empty` documents, and `told`.
    """

    def __init__(self, readers: list[Reader], split: SplitSettings, seed: int, limit: int):
        self.readers, self.split, self.seed, self.limit = readers, split, seed, limit
        self.documents = self.bytes = self.held_out = self.empty = 0
        self._used = 0  # bytes, with those of a character that was cut off
        self.by_source = {reader.name: 0 for reader in readers}
        self.files = dict.fromkeys(self.by_source, 0)
        self.whole = True

    def __iter__(self) -> Iterator[str]:
        self.whole = self._fits()
        on_disk = sum(reader.bytes for reader in self.readers)
        with log.bar(on_disk if self.whole else self.limit, "reading for the tokenizer", "B") as bar:
            for text in self._all() if self.whole else self._shares():
                yield text
                bar.update((sum(reader.done for reader in self.readers) if self.whole else self.bytes) - bar.n)
            bar.update(bar.total - bar.n)

    def told(self) -> list[str]:
        """For the log: what each source gave, where they could not give all."""
        if self.whole:
            return []
        return [
            f"learned from {self.by_source[reader.name]:,} bytes of {self.files[reader.name]} of {len(reader.files)} "
            f"files of {reader.name}"
            for reader in self.readers
        ]

    def _learns(self, document: Document) -> bool:
        return split_of(document.group, document.id, True, self.split, self.seed) == TRAIN

    def _fits(self) -> bool:
        """Whether the train split is no larger than the limit: seen from the sizes of files, or by reading so much."""
        files = [file for reader in self.readers for file in reader.files]
        if sum(map(weight, files)) <= self.limit and all(weight(file) == file.bytes for file in files):
            return True
        size = 0
        for reader in self.readers:
            for document in Reader(reader.source, reader.name, reader.on_error):
                size += document.bytes if self._learns(document) else 0
                if size > self.limit:
                    return False
        return True

    def _take(self, reader: Reader, document: Document, most: int) -> str:
        """A document's text, cut to `most` bytes."""
        text, size = document.text, document.bytes
        if size > most:
            text, size = text.encode()[:most].decode(errors="ignore"), most
        self.documents += 1
        self._used += size
        self.bytes += (learned := len(text.encode()) if size < document.bytes else size)
        self.by_source[reader.name] += learned
        self.empty += not document.text.strip()
        return text

    def _all(self) -> Iterator[str]:
        for reader in self.readers:
            for document in reader:
                if self._learns(document):
                    yield self._take(reader, document, document.bytes)
                else:
                    self.held_out += 1
            reader.fields.check()

    def _shares(self) -> Iterator[str]:
        total, passed = sum(weight(file) for reader in self.readers for file in reader.files), 0
        for reader in self.readers:
            end = self.limit * (passed + sum(map(weight, reader.files))) // total
            most = max(1, (end - self._used) // MOST)
            for file in reader.files:
                passed += weight(file)
                due, before = self.limit * passed // total, self._used
                if self._used >= due:
                    reader.leave(file)
                    continue
                documents = reader.read(file)
                for document in documents:
                    if self._learns(document):
                        yield self._take(reader, document, min(end - self._used, max(due - self._used, most)))
                    else:
                        self.held_out += 1
                    if self._used >= due:
                        documents.close()
                        reader.leave(file)
                        break
                self.files[reader.name] += self._used > before


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
    with log.waiting("learning the tokenizer"):
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
    for number, path in enumerate(settings.given):
        if not Path(path).is_file():
            raise UserError(f"dataset.tokenizer: no such file: {path} (working folder {Path.cwd()}). Correct the path.")
        data = Path(path).read_bytes()
        hashes[path] = hashlib.sha256(data).hexdigest()
        if number < len(TOKENIZER_FILES[settings.type]):  # others only name the end of text
            with artifacts.replacing(folder / TOKENIZER_FILES[settings.type][number]) as temporary:
                temporary.write_bytes(data)
    return hashes


def with_end(settings: TokenizerSettings) -> TokenizerSettings:
    """The settings of a given tokenizer with the token that ends a document, which its folder may have to name.

    Raises UserError for a folder that names none.
    """
    if settings.eod:
        return settings
    read = {path: artifacts.read_json(path) for path in settings.given}
    for path, facts in read.items():
        if not isinstance(facts, dict) or not isinstance(facts.get("added_tokens") or [], list):
            raise UserError(f"{path}: not what a tokenizer's folder holds under this name. Fetch the folder again.")
    own, *others = read.values()
    tokens = {token["id"]: token["content"] for token in own.get("added_tokens") or []}
    for facts in others:
        found = facts.get("eos_token", facts.get("eos_token_id"))
        found = found[0] if isinstance(found, list) and found else found
        found = found.get("content") if isinstance(found, dict) else found
        found = tokens.get(found) if isinstance(found, int) else found
        if isinstance(found, str):
            return settings.model_copy(update={"eod": found})
    raise UserError(
        f"{settings.path}: names no token that ends a text (eos_token_id of config.json, eos_token of "
        "tokenizer_config.json); name one in dataset.tokenizer.eod."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=given, help="JSON: tokenizer, sources, split, seed, on_error")
    parser.add_argument("--output", required=True, type=Path, help="the manifest to write")
    parser.add_argument("--threads", type=whole, default=1, help="the same file for any number")
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
        wanted = with_end(wanted)
        settings = settings.model_copy(update={"tokenizer": wanted})
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
    stage.run(main)
