"""How many documents, tokens and chunks there will be: recorded, estimated from the sources, or assumed."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from retro.base.artifacts import read_json, write_text
from retro.base.names import BOOK, SPLITS, TRAIN
from retro.config.schema import Config
from retro.corpus.documents import split_of
from retro.corpus.megatron import filled, open_reader
from retro.corpus.readers import Reader
from retro.corpus.settings import TokenizerSettings
from retro.corpus.tokenizers import Tokenizer
from retro.corpus.train_tokenizer import TrainTokenizerSettings, copy_given, train, with_end

SAMPLE = 20_000_000  # bytes of text read of each source
TRAINED = 2_000_000  # bytes of text that the sample's tokenizer is trained on
TOKEN = 4.2  # bytes of text a token, where none is at hand: English and a vocabulary of 50,000 (an assumption)
LINE = 90  # bytes of a line of documents.jsonl, where no document is at hand


@dataclass
class Counts:
    """Sums over all sources. `splits`: chunks of train, valid, test and book; `database`: chunks searched."""

    documents: float = 0
    tokens: float = 0
    text: float = 0  # bytes of UTF-8
    lines: float = 0  # bytes of documents.jsonl
    database: float = 0
    vocab_size: int = 50304
    splits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0.0))
    told: str = ""  # where the counts come from

    @property
    def chunks(self) -> float:
        return sum(self.splits.values())

    def padding(self, chunk_length: int) -> float:
        """Share of the chunks' places that no token fills."""
        return 1 - self.tokens / (self.chunks * chunk_length) if self.chunks else 0.0


def recorded(path: Path) -> Counts:
    """Of a finished preprocessing: its config.json."""
    facts = read_json(path)
    found = Counts(told=f"recorded in {path}", vocab_size=facts["tokenizer"]["vocab_size"])
    for name in facts["source_order"]:
        tokens = facts["counts"][f"tokens/{name}/manifest.json"]
        found.documents += tokens["documents"]
        found.tokens += tokens["tokens"]
        found.text += tokens["bytes"]
        for split, chunks in facts["counts"][f"chunks/{name}/manifest.json"]["by_split"].items():
            found.splits[split] += chunks
        listed = path.parent / "tokens" / name / "documents.jsonl"
        found.lines += listed.stat().st_size if listed.exists() else LINE * tokens["documents"]
    found.database = facts["counts"]["database/manifest.json"]["database"]
    return found


def sampled(config: Config) -> Counts:
    """From the sources: every document of small ones, the beginning of large ones scaled by file size.

    A tokenizer that the pipeline would train is trained on a sample. Duplicates are counted, dropped or not.
    """
    dataset = config.dataset
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _tokenizer(config, Path(folder))
    found = Counts(told="estimated from the sources", vocab_size=tokenizer.vocab_size)
    for name, source in dataset.sources.items():
        reader, splits = open_reader(source, name, "skip", None, tokenizer), dict.fromkeys(SPLITS, 0)
        documents = tokens = lines = read = 0
        for document in reader:
            read += document.bytes
            if not filled(document):
                continue
            ids = tokenizer.encode_batch([document.text])[0] if document.ids is None else document.ids
            split = split_of(document.group, document.id, source.train, dataset.split, dataset.seed)
            splits[SPLITS[split]] += -(-(len(ids) + 1) // dataset.chunk_length)
            facts = {"id": document.id, "group": document.group, "title": document.title}
            lines += len(json.dumps(facts, ensure_ascii=False).encode()) + 1
            documents, tokens = documents + 1, tokens + len(ids) + 1
            if read >= SAMPLE:
                break
        else:
            reader.done = reader.bytes
            reader.fields.check()
        scale = reader.bytes / max(1, reader.done)
        found.documents += scale * documents
        found.tokens += scale * tokens
        found.text += scale * read
        found.lines += scale * lines
        for held, chunks in splits.items():
            found.splits[held] += scale * chunks
        if source.database:
            found.database += scale * (splits[SPLITS[TRAIN]] + splits[SPLITS[BOOK]])
    return found


def _tokenizer(config: Config, folder: Path) -> Tokenizer:
    """The config's tokenizer; one it would train, trained on a sample."""
    dataset, wanted = config.dataset, config.dataset.tokenizer
    if wanted.type != "bpe":
        copy_given(wanted, folder)
        wanted = with_end(wanted)
        return Tokenizer.open(folder, wanted.type, wanted.eod, wanted.lossy == "allow")
    sample = TokenizerSettings(**{**wanted.facts(), "train_bytes": min(wanted.train_bytes, TRAINED)})
    sources = {name: source for name, source in dataset.sources.items() if source.train}
    readers = [Reader(source, name, "skip") for name, source in sorted(sources.items())]
    settings = TrainTokenizerSettings(
        tokenizer=sample, sources=sources, split=dataset.split, seed=dataset.seed, on_error="skip"
    )
    write_text(folder / "tokenizer.json", train(settings, readers)[0])
    return Tokenizer.open(folder, wanted.type, wanted.eod, wanted.lossy == "allow")


def assumed(tokens: float, chunk_length: int, vocab_size: int, document_tokens: float) -> Counts:
    """A corpus of so many tokens that is both trained on and searched; 0.1 % each are held out.

    A document's last chunk is half full on average.
    """
    documents = tokens / document_tokens
    chunks = tokens / chunk_length + documents / 2
    splits = dict(zip(SPLITS, (0.998 * chunks, 0.001 * chunks, 0.001 * chunks, 0.0), strict=True))
    told = f"assumed: {tokens:.3g} tokens in documents of {document_tokens:g}"
    text = TOKEN * tokens
    return Counts(documents, tokens, text, LINE * documents, 0.998 * chunks, vocab_size, splits, told)
