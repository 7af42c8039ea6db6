"""What a script that uses this package imports, in one place: docs/python.md has an example.

These names stay; the modules behind them may move. Nothing inside the package imports this one, since it would bring
every room into the closure of a stage (`retro.base.provenance`).
"""

from retro.base.artifacts import Manifest, read_manifest
from retro.base.stage import UserError
from retro.config.schema import Config
from retro.config.schema import load as load_config
from retro.corpus.mmididx import TokenStore, TokenWriter
from retro.corpus.tokenizers import Tokenizer
from retro.database.encoders import Encoder, open_encoder
from retro.database.settings import EncoderSettings
from retro.dataset.dataset import Dataset
from retro.dataset.store import ChunkStore
from retro.generation.decoding import Decoder, Found, Prompt, Query, Sampler
from retro.generation.generate import Writer
from retro.generation.live import GivenPassages, LiveLookup, open_book
from retro.model.build import build_model
from retro.model.cache import DecodingCache
from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings
from retro.qa.reading import Lookups, Reader, Text
from retro.retrieval.search import Searcher
from retro.training.batches import Batch, Batcher
from retro.training.samples import Samples
from retro.training.weights import load_model

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
    "Prompt",
    "Query",
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
