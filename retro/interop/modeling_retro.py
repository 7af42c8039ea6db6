"""RETRO and GPT for Hugging Face transformers.

`python -m retro.interop.huggingface export` writes a copy of this file into the folder it makes, beside copies of the
modules that it imports, so that the folder needs torch and transformers and nothing else.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import cached_file

from retro.model.cache import DecodingCache
from retro.model.cca import ChunkGrid
from retro.model.exchange import CUT, found_as, from_theirs
from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings

HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")  # how a hub is asked


class RetroConfig(PreTrainedConfig):
    """Settings of the model (`model`), its architecture (gpt or retro) and the lengths it was built for.

    `base` is of a model that was fitted to another: that one's model_type and, in the folder `base`, its files.
    """

    model_type = "retro"

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        architecture: str = "retro",
        vocab_size: int = 4096,
        seq_length: int = 512,
        chunk_length: int = 64,
        retrieved_length: int = 128,
        base: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.model, self.architecture = model or {}, architecture
        self.vocab_size, self.seq_length = vocab_size, seq_length
        self.chunk_length, self.retrieved_length = chunk_length, retrieved_length
        self.base = base
        super().__init__(**kwargs)


Lookup = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class _Written:
    """A text, or several of one length, while it is written: what was computed of it, and what was looked up."""

    def __init__(self, model: LanguageModel, lookup: Lookup | None) -> None:
        self.model, self.lookup = model, lookup
        self.cache: DecodingCache | None = None

    def next(self, tokens: Tensor) -> Tensor:
        """Logits [b, 1, V] of what follows tokens [b, n]: of all that follow the last ones asked for only the new are
        computed; others, as a beam's that goes on from another one, are computed anew.
        """
        n, cache = tokens.shape[1], self.cache
        if cache is None or n > cache.capacity or not cache.begins(tokens):
            room = max(2 * n, self.model.seq_length)
            table = self.model.embedding.positions
            room = room if table is None else table.num_embeddings
            cache = self.cache = DecodingCache(self.model, room)
        m, new = self.model.chunk_length, tokens[:, cache.length :]
        chunks = [tokens[:, i * m : (i + 1) * m] for i in range(cache.length // m, n // m)]
        if self.lookup is None or not chunks:
            return cache.extend(new, last=True).clone()  # transformers would not take a tensor of inference mode
        found = [self.lookup(chunk) for chunk in chunks]
        neighbours = torch.stack([each for each, _ in found], 1)  # (b, l, k, r)
        real = [torch.ones_like(each, dtype=torch.bool) if mask is None else mask for each, mask in found]
        return cache.extend(new, neighbours, torch.stack(real, 1), last=True).clone()


class RetroForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with transformers' interface; made by `from_pretrained`, as weights come from a file only."""

    config_class = RetroConfig
    _supports_sdpa = True
    told = False  # that its book is closed

    def __init__(self, config: RetroConfig) -> None:
        super().__init__(config)
        self.retro = LanguageModel(
            ModelSettings(**config.model),
            config.architecture,
            vocab_size=config.vocab_size,
            seq_length=config.seq_length,
            chunk_length=config.chunk_length,
            retrieved_length=config.retrieved_length,
        )
        self._written: _Written | None = None  # while it writes
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, folder: Any, *args: Any, config: RetroConfig | None = None, **kwargs: Any
    ) -> "RetroForCausalLM":
        """The model in a folder, or of a hub. Of a fitted one the base is read from the files in `base`."""
        given, config = config, config or RetroConfig.from_pretrained(folder)
        if config.base is None:
            return super().from_pretrained(folder, *args, config=given, **kwargs)
        hub = {key: value for key, value in kwargs.items() if key in HUB}
        kind, places = config.base["model_type"], dict[str, Any]()
        for name in ("retrieval.safetensors", *(f"base/{name}" for name in config.base["files"])):
            file = safe_open(cached_file(folder, name, **hub), framework="pt")
            places |= dict.fromkeys(file.keys(), file)

        def read(name: str) -> Tensor:
            there = found_as(kind, name, places)
            if there is None:
                raise ValueError(f"{folder}: base lacks {name}; copy the folder again")
            return places[there].get_tensor(there)

        model = cls(config)
        with torch.no_grad():
            for name, parameter in model.retro.named_parameters():
                if name in places:
                    parameter.copy_(read(name))
                    continue
                found = from_theirs(kind, name, read, model.retro.settings)  # (rows, ..)
                parameter.copy_(found[: len(parameter)] if name in CUT else found)
        config.base = None  # save_pretrained writes one model, under our names
        model.generation_config = GenerationConfig.from_pretrained(folder, **hub)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        if isinstance(dtype, str):
            dtype = None if dtype == "auto" else getattr(torch, dtype)
        where = kwargs.get("device_map")
        if where is not None and not isinstance(where, str | int | torch.device):
            raise ValueError(f"device_map is {where!r}, wanted one device: the model is not cut over several")
        return model.to(device=None if where == "auto" else where, dtype=dtype).eval()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: every weight is in the file."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token table."""
        return self.retro.embedding.tokens

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        neighbours: Tensor | None = None,
        neighbour_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits [b, n, V] and, with labels, the mean loss.

        input_ids int64 [b, n]. neighbours int64 [b, l, k, r]: for each chunk of the text that is whole (m tokens), k
        neighbours of r tokens; the last chunks may be left out, and those of text to come are not read.
        neighbour_mask: bool, True = a real token. labels as everywhere in transformers: input_ids themselves, -100
        where nothing counts. Padding at the beginning would move the chunks and raises ValueError.
        """
        if attention_mask is not None and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            raise ValueError("padding at the beginning moves the chunks; pad at the end (padding_side='right')")
        if self._written is not None:
            return CausalLMOutput(logits=self._written.next(input_ids))
        if neighbours is not None:
            neighbours, neighbour_mask = self._for_every_chunk(input_ids, neighbours, neighbour_mask)
        logits = self.retro(input_ids, neighbours, neighbour_mask)  # (b, n, V)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits)

    def _for_every_chunk(self, tokens: Tensor, neighbours: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Neighbours and mask of the chunks that there are; missing ones for those at the end that were given none."""
        mask = torch.ones_like(neighbours, dtype=torch.bool) if mask is None else mask  # (b, l, k, r)
        alignment = self.retro.settings.chunk_alignment
        count = ChunkGrid.over(tokens.shape[1], self.retro.chunk_length, alignment).count
        padding = (0, 0, 0, 0, 0, count - neighbours.shape[1])  # below 0: cut off
        return F.pad(neighbours, padding), F.pad(mask, padding)  # (b, l, k, r) each

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args: Any, lookup: Lookup | None = None, **kwargs: Any) -> Any:
        """As transformers' `generate`, with keys and values kept from step to step. A RETRO without neighbours says so.

        `lookup` is asked for the neighbours of each chunk, int64 [b, m], when it is full, from the beginning of the
        text on: int64 [b, k, r], and which of their tokens are real, bool, or None for all. With `neighbours`, which
        are of the whole text, and for chunks that move with the end of the text, nothing is kept.
        """
        closed = lookup is None and kwargs.get("neighbours") is None
        if self.config.architecture == "retro" and closed and not self.told:
            self.told = True
            warnings.warn(
                "this RETRO writes with its book closed, for which it was not made: give generate() a `lookup`, or "
                "`neighbours` and `neighbour_mask`, as README.md beside its weights shows",
                stacklevel=3,
            )
        if "neighbours" in kwargs or self.retro.settings.chunk_alignment == "end":
            if lookup is not None:
                raise ValueError("lookup is for chunks that stand still, and instead of neighbours; leave one out")
            return super().generate(inputs, *args, **kwargs)
        self._written = _Written(self.retro, lookup)
        try:
            return super().generate(inputs, *args, **kwargs)
        finally:
            self._written = None

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """The whole text at every step: what was computed before is found by it (`_Written`)."""
        names = ("attention_mask", "neighbours", "neighbour_mask")
        return {"input_ids": input_ids, **{name: kwargs[name] for name in names if kwargs.get(name) is not None}}
