"""The text that the tokenizer learns from: the train split, whole or a share of every source and of its files."""

import re
from collections.abc import Iterator

from retro import progress
from retro.corpus.files import COMPRESSIONS, SourceFile
from retro.corpus.readers import Document, Reader
from retro.corpus.settings import SplitSettings
from retro.corpus.split import TRAIN, split_of

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
        with progress.bar(on_disk if self.whole else self.limit, "reading for the tokenizer", "B") as bar:
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
