"""A SentencePiece model as a tokenizer of Hugging Face's `tokenizers`, where the two give the same ids.

SentencePiece adds up a unigram model's scores in float32, `tokenizers` in float64: in a text of tens of thousands of
characters, two spellings whose scores are all but equal may come out differently.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers
from tokenizers import Tokenizer as HuggingFace

from retro.base.stage import UserError
from retro.corpus.tokenizers import Tokenizer

SPACE = "▁"
UNIGRAM, BPE = 1, 2  # trainer_spec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # pieces' types
TEXTS = (
    "The harbour of Norvik lies north of the mill.",
    " leading,  double   and trailing spaces  ",
    "Lines.\n\nMore lines.\r\n\tTabs\tand\u00a0others.\n",
    "naïve Zürich, Ærøskøbing, Ω≈ç√ ﬁ ½ ①, e\u0301 and é; ＦＵＬＬ",
    "港口磨坊河流 市场、学校。 Привет, мир! שלום 🙂👩‍👩‍👧",
    'def f(x):\n    return {"a": [1, 2.50, -3e-4]} # 100 %\n',
    "1234567890 3.14159 10,000 2026-11-28",
    "a▁b ▁ c",
    "x" * 300 + " " + "ab" * 200,
)


def to_tokenizers(path: Path, ours: Tokenizer) -> HuggingFace:
    """The SentencePiece model `path`, which `ours` reads, as a tokenizer of `tokenizers`.

    Raises UserError if it does not give the ids of `ours` for every text of a sample.
    """
    from sentencepiece import sentencepiece_model_pb2 as messages  # needs protobuf

    proto: Any = messages.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(path.read_bytes())
    kind = proto.trainer_spec.model_type
    if kind not in (UNIGRAM, BPE):
        raise UserError(f"{path}: is a SentencePiece model of words or characters; only unigram and BPE are exported")
    sample = texts(ours)
    wanted = [ids.tolist() for ids in ours.encode_batch(sample, unknown=True)]
    found = build(proto)
    got = [encoded.ids for encoded in found.encode_batch(sample, add_special_tokens=False)]
    for text, theirs, right in zip(sample, got, wanted, strict=True):
        if theirs != right:
            raise UserError(
                f"{path}: Hugging Face's tokenizers would give {text[:40]!r} other ids than SentencePiece. Train a run "
                "with dataset.tokenizer.type: tokenizer.json, gpt2 or bpe."
            )
    return found


def texts(ours: Tokenizer, count: int = 500) -> list[str]:
    """A sample of texts: hand-picked ones, what each of some thousand tokens says, and random ones after another.

    Bytes that are no text alone are left out of it: `tokenizers` drops a combining mark that follows a space.
    """
    generator = np.random.Generator(np.random.Philox(1))
    single = [ours.decode([token]) for token in range(min(ours.vocab_size, 5000))]
    spelled = [token for token, text in enumerate(single) if text and "\ufffd" not in text]
    drawn = [ours.decode(generator.choice(spelled, 40)) for _ in range(count)]
    return [text for text in (*TEXTS, *drawn, *single, " ".join(single)) if text]


def build(proto: Any) -> HuggingFace:
    """The tokenizer that the model describes."""
    pieces, spec = proto.pieces, proto.normalizer_spec
    ids = {piece.piece: number for number, piece in enumerate(pieces)}
    fallback = proto.trainer_spec.byte_fallback
    unknown = next(number for number, piece in enumerate(pieces) if piece.type == UNKNOWN)
    if proto.trainer_spec.model_type == UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        model: Any = models.Unigram(scores, unk_id=unknown, byte_fallback=fallback)
    else:
        merges = _merges({piece.piece: piece.score for piece in pieces if piece.type == NORMAL}, ids)
        unk = pieces[unknown].piece
        model = models.BPE(vocab=ids, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=fallback)
    found = HuggingFace(model)
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    found.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    found.decoder = decoders.Sequence(decoding + [decoders.Strip(" ", 1, 0)] * spec.add_dummy_prefix)
    found.add_special_tokens(
        [AddedToken(p.piece, normalized=False, special=True) for p in pieces if p.type in (CONTROL, UNKNOWN)]
    )
    found.add_tokens([AddedToken(p.piece, normalized=False) for p in pieces if p.type == USER_DEFINED])
    return found


def _merges(scores: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that BPE joins, the best piece first: SentencePiece keeps the scores of pieces, not their pairs."""
    found = []
    for piece, score in scores.items():
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        found += [(-score, ids[a], ids[b], (a, b)) for a, b in pairs if a in scores and b in scores]
    return [pair for *_, pair in sorted(found)]
