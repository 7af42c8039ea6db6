"""Decoding token by token: keys and values are kept, and a chunk's neighbours are encoded once, when it fills."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from retro.model.cca import Encoded, recent
from retro.model.language_model import DecoderLayer, LanguageModel
from retro.model.layers import Rope, attend


class DecodingCache:
    """What a model in evaluation mode has read so far, for a batch of equally long sequences.

    Chunks begin at position 0. That is `chunk_alignment: start`; an end-aligned model would move its chunks with every
    token, so its logits are those of the whole sequence only where that is a multiple of the chunk length. `extend`
    with `anew` moves the chunks: the m tokens that end with the next one become a chunk, and later ones follow it.
    """

    def __init__(self, model: LanguageModel, capacity: int | None = None) -> None:
        """`capacity` is how many tokens fit, at most seq_length with learned positions; none: seq_length."""
        if model.training:
            raise ValueError("the model is in training mode; call model.eval() before decoding with a cache")
        self.model, self.chunk_length = model, model.chunk_length
        self.capacity = capacity or model.seq_length
        table = model.embedding.positions
        if table is not None and self.capacity > table.num_embeddings:
            raise ValueError(f"capacity is {self.capacity}, but the table of positions ends at {table.num_embeddings}")
        self.length = 0
        self._first = 0  # a chunk begins here and every m tokens before and after; 0 .. m - 1
        self._tokens: Tensor | None = None  # (b, capacity)
        self._keys: list[Tensor] = []  # (b, capacity, g, size) for each layer
        self._values: list[Tensor] = []
        self._chunk: Tensor | None = None  # (b, m, d) states at the first chunked cross-attention, filling up
        self._encoded: Encoded | None = None  # neighbours of the last full chunk
        self._reads: dict[int, tuple[Tensor, Tensor]] = {}  # their keys and values, by layer

    def completes(self, count: int) -> int:
        """How many chunks the next `count` tokens complete."""
        before = self.length - self._first
        return (before + count) // self.chunk_length - before // self.chunk_length

    def begins(self, tokens: Tensor) -> bool:
        """Whether tokens [b, n] begin with all that was read, and go on."""
        if self._tokens is None:
            return True
        read = self._tokens[:, : self.length]  # (b, length)
        return tokens.shape[1] > self.length and torch.equal(tokens[:, : self.length], read)

    @torch.no_grad()
    def extend(
        self,
        tokens: Tensor,
        neighbours: Tensor | None = None,
        neighbour_mask: Tensor | None = None,
        *,
        last: bool = False,
        anew: bool = False,
    ) -> Tensor:
        """Append tokens [b, s] and return their logits [b, s, V], or with `last` those of the last one [b, 1, V].

        neighbours [b, l, k, r] and neighbour_mask (True = a real token) are of the `completes(s)` chunks that these
        tokens complete; None leaves those chunks without. `anew`: the first of these tokens completes a chunk wherever
        it stands, from the m-th token of the sequence on.
        """
        batch, count = tokens.shape
        if anew:
            self._move()
        if self.length + count > self.capacity:
            raise ValueError(f"{count} more tokens after {self.length} exceed the capacity of {self.capacity}")
        full = self.completes(count)
        if neighbours is not None and neighbours.shape[1] != full:
            raise ValueError(f"these tokens complete {full} chunks, but neighbours of {neighbours.shape[1]} were given")
        if neighbours is not None and self.model.encoder is None:
            raise ValueError("a GPT was given neighbours; build architecture retro, or pass neighbours=None")
        if self._tokens is None:
            self._tokens = tokens.new_empty(batch, self.capacity)
        self._tokens[:, self.length : self.length + count] = tokens
        logits, done, chunk = [], 0, 0
        while done < count:
            # A piece reads the neighbours of one chunk: it begins with a chunk's last token, or at the start.
            place = (self.length + 1 - self._first) % self.chunk_length  # 0: the next token completes a chunk
            piece = min(count - done, self.chunk_length - place)
            retrieved = None
            if place == 0:
                if neighbours is not None:
                    mask = None if neighbour_mask is None else neighbour_mask[:, chunk : chunk + 1]
                    retrieved = neighbours[:, chunk : chunk + 1], mask
                self._encoded, chunk = None, chunk + 1
            x = self._piece(tokens[:, done : done + piece], retrieved, place)  # (b, p, d)
            done += piece
            if not last or done == count:
                logits.append(self._logits(x[:, -1 if last else 0 :]))
        return torch.cat(logits, dim=1)  # (b, s or 1, V)

    def _logits(self, x: Tensor) -> Tensor:
        """Logits [b, p, V] of the last tokens, whose states are x [b, p, d]."""
        logits = F.linear(x, self.model.head_weight)  # (b, p, V)
        if self.model.copier is None or self._encoded is None:
            return logits
        history = self._history(self.length - x.shape[1], self.length)
        return self.model.copied_logits(logits, x, self._encoded.facing(history))  # (b, p, V)

    def _history(self, start: int, end: int) -> Tensor:
        """The last tokens at positions start .. end: [b, p, c], as `recent` has them."""
        assert self._tokens is not None
        length = self.model.settings.match_length
        first = max(0, start - length + 1)
        return recent(self._tokens[:, first:end], length)[:, start - first :]

    def _move(self) -> None:
        """Let the next token complete a chunk: the states kept are those of the last tokens, in whatever order."""
        if self.length + 1 < self.chunk_length:
            raise ValueError(f"{self.length + 1} tokens make no chunk of {self.chunk_length}")
        first = (self.length + 1) % self.chunk_length
        if self._chunk is not None:
            self._chunk = self._chunk.roll(self._first - first, dims=1)  # (b, m, d)
        self._first = first

    def _piece(self, tokens: Tensor, retrieved: tuple[Tensor, Tensor | None] | None, place: int) -> Tensor:
        """Run tokens [b, p], the first of them `place` tokens after the end of a chunk -> states [b, p, d]."""
        model, start, end = self.model, self.length, self.length + tokens.shape[1]
        x = model.embedding(tokens, start)  # (b, p, d)
        rope = model.rope(torch.arange(start, end, device=tokens.device))
        causal = torch.ones(end - start, end, dtype=torch.bool, device=tokens.device).tril(start)  # (p, end)
        for index, layer in enumerate(model.decoder.layers):
            assert isinstance(layer, DecoderLayer)
            attention = partial(self._attention, layer, index, rope, causal, start, end)
            y = x + layer.branch(layer.attention_norm, attention, x)  # (b, p, d)
            if layer.cca is not None:
                h = layer.cca.norm(y)  # (b, p, d)
                if index + 1 == model.settings.cca_at[0]:
                    self._remember(h, retrieved, place)
                if self._encoded is not None:
                    y = y + self._cca(layer, index, h, place, start, end)  # (b, p, d)
            x = y + layer.branch(layer.mlp_norm, layer.mlp, x if layer.parallel else y)  # (b, p, d)
        self.length = end
        return x if model.decoder.norm is None else model.decoder.norm(x)  # (b, p, d)

    def _attention(
        self, layer: DecoderLayer, index: int, rope: Rope | None, causal: Tensor, start: int, end: int, h: Tensor
    ) -> Tensor:
        """What positions start .. end, whose states are h [b, p, d], read of all so far: [b, p, d]."""
        q, k, v = layer.attention.project(h, rope)  # (b, p, heads, size)
        if index == len(self._keys):
            for kept in (self._keys, self._values):
                kept.append(k.new_empty(k.shape[0], self.capacity, *k.shape[2:]))  # (b, capacity, g, size)
        self._keys[index][:, start:end], self._values[index][:, start:end] = k, v
        read = attend(q, self._keys[index][:, :end], self._values[index][:, :end], mask=causal)  # (b, p, d)
        return layer.attention.out(read)  # (b, p, d)

    def _remember(self, h: Tensor, retrieved: tuple[Tensor, Tensor | None] | None, place: int) -> None:
        """Keep the current chunk's states; when it is full, encode its neighbours."""
        if self._chunk is None:
            self._chunk = h.new_zeros(h.shape[0], self.chunk_length, h.shape[2])  # (b, m, d)
        if place == 0:
            self._chunk[:, -1] = h[:, 0]
            self._reads.clear()
            if retrieved is not None:
                self._encoded = self.model.encode(*retrieved, self._chunk)
            h, place = h[:, 1:], 1
        self._chunk[:, place - 1 : place - 1 + h.shape[1]] = h

    def _cca(self, layer: DecoderLayer, index: int, h: Tensor, place: int, start: int, end: int) -> Tensor:
        """What positions h [b, p, d] read of the last full chunk's neighbours, [b, p, d]."""
        encoded, cca = self._encoded, layer.cca
        assert encoded is not None and cca is not None
        if index not in self._reads:
            self._reads[index] = cca.keys_values(encoded)
        if self.model.settings.match_length:
            encoded = encoded.facing(self._history(start, end))
        out = cca.read(h, *self._reads[index], encoded, place)  # (b, p, d)
        return out if encoded.alive is None else out * encoded.alive  # (b, p, d)
