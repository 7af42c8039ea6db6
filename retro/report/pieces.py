"""Tokens as pieces of text that can be shown one by one."""

from collections.abc import Sequence

from retro.corpus.tokenizers import Tokenizer

BROKEN = "\ufffd"
LONGEST = 6  # tokens that may have to come together before they are valid UTF-8


def split_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Texts and numbers of tokens: (text, count), the counts summing to len(ids).

    A piece is one token, or the few tokens that together spell a character. The end of a document is a
    piece of no text. The texts joined are the decoded `ids`, but for characters cut in two at their ends.
    """
    found: list[tuple[str, int]] = []
    before: list[int] = []  # the last piece: some tokenizers drop the space at the beginning of what they decode
    waiting: list[int] = []
    for number, token in enumerate(ids):
        if token == tokenizer.eod_id:
            if waiting:
                found.append((_text(tokenizer, before, waiting), len(waiting)))
            found.append(("", 1))
            before, waiting = [], []
            continue
        waiting.append(token)
        text = _text(tokenizer, before, waiting)
        last = number + 1 == len(ids)
        if text.endswith(BROKEN) and len(waiting) < LONGEST and not last:
            continue
        found.append((text, len(waiting)))
        before, waiting = waiting, []
    return found


def _text(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    if not before:
        return tokenizer.decode(ids)
    head, whole = tokenizer.decode(before), tokenizer.decode([*before, *ids])
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids)
