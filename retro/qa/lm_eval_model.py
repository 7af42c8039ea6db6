"""A trained run as a model of EleutherAI's lm-eval, whose tasks then run on it with live retrieval, or without.

Only `retro.qa.harness` imports this module: lm-eval has a lock, and a folder, of its own.
"""

from functools import partial, reduce
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from retro.base.log import bar
from retro.dataset.dataset import Dataset
from retro.generation.decoding import Decoder, Lookup, Prompt, Query, Sampler
from retro.model.language_model import LanguageModel
from retro.qa.reading import Lookups, Reader, Text, windows
from retro.training.settings import TrainedRun

MOST = 256  # tokens written where a task does not say how many: lm-eval's own default


class RetroLM(TemplateLM):
    """lm-eval's three requests. Log-likelihoods are of the text alone: no end of document is counted.

    `lookups` None: retrieval off.
    """

    def __init__(
        self, model: LanguageModel, run: TrainedRun, dataset: Dataset, lookups: Lookups | None, batch_size: int = 8
    ):
        super().__init__()
        self.dataset, self.lookups, self.batch_size = dataset, lookups, batch_size
        self.reader = Reader(model, run, dataset, lookups, batch_size)
        self.model, self.retrieved = model, run.train.retrieved_chunks
        self.records: dict[str, object] = {}  # of the tasks, by context

    @property
    def eot_token_id(self) -> int:
        return self.dataset.tokenizer.eod_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        return self.dataset.tokenizer.encode_batch([string])[0].tolist()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.records = {request.args[0]: request.doc for request in requests}
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **kwargs: object
    ) -> list[tuple[float, bool]]:
        if self.lookups is not None:
            for said, context, _ in requests:
                self.lookups.ask(context, self.records.get(said[0]))
        # Without context lm-eval puts an end of document before the text; here a chunk of padding stands there.
        texts = [Text.after(context if said[0] else [], answer, self.dataset) for said, context, answer in requests]
        return [(-float(nats.sum()), bool(likeliest.all())) for nats, likeliest in self._read(texts, "loglikelihood")]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts = [Text.after([], self.tok_encode(request.args[0]), self.dataset) for request in requests]
        return [-float(nats.sum()) for nats, _ in self._read(texts, "loglikelihood_rolling")]

    def _read(self, texts: list[Text], what: str) -> list[tuple[np.ndarray, np.ndarray]]:
        m, chunks = self.dataset.chunk_length, self.dataset.seq_length // self.dataset.chunk_length
        with bar(sum(1 for text in texts for _ in windows(text, m, chunks)), what, "window") as shown:
            return self.reader.read(texts, shown.update)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop sequence, the end of document or the most tokens a task allows.

        Where a task samples, the seed is the request's number: requests that are repeated are drawn anew.
        """
        prompts, untils = [], []
        for number, request in enumerate(requests):
            context, options = request.args
            wanted = normalize_gen_kwargs(options, MOST)
            until = [stop for stop in wanted["until"] if stop]
            tokens = np.array(self.tok_encode(context) or [self.eot_token_id], np.int64)[-self.dataset.seq_length :]
            if self.lookups is not None:
                self.lookups.ask(tokens.tolist(), request.doc)
            chosen = wanted.get("temperature", 0.0), wanted.get("top_p", 1.0), number, wanted.get("top_k", 0)
            padding = -len(tokens) % self.dataset.chunk_length
            stop = partial(self._stopped, until) if until else None
            prompts.append(Prompt(tokens, wanted["max_gen_toks"], Sampler(*chosen), padding, stop))
            untils.append(until)
        written: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens) + prompts[i].padding)
        with bar(len(requests), "generate_until", "text") as shown:
            in_order = [prompts[i] for i in order]
            for place, step in self.decoder(in_order).write_all(in_order, self.batch_size):
                written[order[place]].append(step.token)
                shown.update(int(step.last))
        return [
            reduce(lambda text, stop: text.split(stop)[0], until, self.dataset.tokenizer.decode(tokens))
            for until, tokens in zip(untils, written, strict=True)
        ]

    def _stopped(self, until: list[str], tokens: list[int]) -> bool:
        text = self.dataset.tokenizer.decode(tokens)
        return any(stop in text for stop in until)

    def decoder(self, prompts: list[Prompt]) -> Decoder:
        """What continues prompts."""
        lookup: Lookup | None = self.lookups
        if self.lookups is not None and self.lookups.whole:
            found = self.lookups([Query(prompt.tokens) for prompt in prompts])
            lookup = partial(lambda found, queries: [found[query.text] for query in queries], found)
        return Decoder(
            self.model,
            self.dataset.store,
            seq_length=self.dataset.seq_length,
            eod_id=self.eot_token_id,
            retrieved_chunks=self.retrieved,
            lookup=lookup,
        )
