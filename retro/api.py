"""What a script that uses this package imports, in one place: docs/python.md has an example.

These names stay; the modules behind them may move. Nothing inside the package imports this one, since it would bring
every room into the closure of a stage (`retro.provenance`).
"""

from retro.artifacts import Manifest, read_manifest
from retro.config import Config
from retro.config import load as load_config
from retro.corpus.mmididx import TokenStore, TokenWriter
from retro.corpus.tokenizers import Tokenizer
from retro.database.encoders import Encoder, open_encoder
from retro.database.settings import EncoderSettings
from retro.database.store import ChunkStore
from retro.errors import UserError
from retro.evaluation.books import open_book
from retro.evaluation.decoding import Decoder, Found, Sampler
from retro.evaluation.live import GivenPassages, LiveLookup
from retro.evaluation.writer import Writer
from retro.model.build import build_model
from retro.model.cache import DecodingCache
from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings
from retro.qa.reading import Lookups, Reader, Text
from retro.recorded import Dataset
from retro.retrieval.search import Searcher
from retro.training.batches import Batch, Batcher
from retro.training.load import load_model
from retro.training.samples import Samples

__all__ = [
    "Batch",
    "Batcher",
    "ChunkStore",
    "Config",
    "Dataset",
    "Decoder",
    "DecodingCache",
    "Encoder",
    "EncoderSettings",
    "Found",
    "GivenPassages",
    "LanguageModel",
    "LiveLookup",
    "Lookups",
    "Manifest",
    "ModelSettings",
    "Reader",
    "Sampler",
    "Samples",
    "Searcher",
    "Text",
    "TokenStore",
    "TokenWriter",
    "Tokenizer",
    "UserError",
    "Writer",
    "build_model",
    "load_config",
    "load_model",
    "open_book",
    "open_encoder",
    "read_manifest",
]
