"""Whether the tokenizer gives a text back: if not, bits per byte would be of a text that no model was shown.

Of every document the bytes that its tokens stand for are counted, and its unknown tokens. A seeded sample, and every
document whose bytes differ, is decoded and compared.
"""

from dataclasses import replace

import numpy as np

from retro.corpus.readers import Document
from retro.corpus.split import fraction
from retro.corpus.tokenizers import Tokenizer
from retro.errors import UserError

SHARE = 1 / 64  # of the documents, decoded and compared,
FIRST = 256  # besides the first ones
LENGTH = 100_000  # characters of a document that are compared
AROUND = 20  # characters shown of a difference


class Spelling:
    """Compares documents with what their ids stand for. Counts those that differ, where the tokenizer may be lossy."""

    def __init__(self, tokenizer: Tokenizer, seed: int):
        self.tokenizer, self.seed = tokenizer, seed
        self.seen = self.changed = self.unknown = 0

    def counts(self) -> dict[str, int]:
        """For the manifest: nothing unless texts may change."""
        return {"changed": self.changed, "unknown": self.unknown} if self.tokenizer.lossy else {}

    def check(self, document: Document, ids: np.ndarray) -> Document:
        """The document, its bytes those of the text that its ids stand for. Raises `UserError` where a text changes
        and may not, and where nothing is left of it.
        """
        self.seen += 1
        lossy, unknown = self.tokenizer.lossy, self.tokenizer.count_unknown(ids)
        if unknown and not lossy:
            self.tokenizer.refuse_unknown(document.text, f"{document.file}, line {document.line}: ")
        self.unknown += unknown
        if document.ids is not None:
            return document
        size = int(self.tokenizer.token_bytes[ids].sum())
        as_many = size in (document.bytes, document.bytes + self.tokenizer.leading)
        if lossy or not as_many or self._sampled(document):
            difference = self._difference(document.text, ids)
            if difference and not lossy:
                raise UserError(
                    f"{document.file}, line {document.line}: the tokenizer changes this text: {difference}. Take "
                    f"a tokenizer that normalizes nothing, or set dataset.tokenizer.lossy to allow: bits per byte are "
                    f"then of the text as the tokenizer gives it back."
                )
            if difference or unknown:
                self.changed += 1
                document = replace(document, bytes=size - self.tokenizer.leading)
                if document.bytes <= 0:
                    raise UserError(
                        f"{document.file}, line {document.line}: the tokenizer has no token for any of this text. "
                        f"Remove the document, or take another tokenizer."
                    )
        return document

    def _sampled(self, document: Document) -> bool:
        return self.seen <= FIRST or fraction(document.id, self.seed) < SHARE

    def _difference(self, text: str, ids: np.ndarray) -> str:
        """Where a text and what its ids stand for differ first; empty if they do not.

        A space before the text is no difference: many tokenizers put one there.
        """
        if len(text) > LENGTH:
            text = text[:LENGTH]
            ids = self.tokenizer.encode_batch([text], unknown=True)[0]
        found = self.tokenizer.decode(ids)
        if found == text or found == f" {text}":
            return ""
        if found.startswith(" ") and not text.startswith(" "):
            found = found[1:]
        at = next((at for at, pair in enumerate(zip(text, found, strict=False)) if pair[0] != pair[1]), None)
        at = min(len(text), len(found)) if at is None else at
        before, after = (part[max(0, at - AROUND) : at + AROUND] for part in (text, found))
        return f"{before!r} becomes {after!r}"
