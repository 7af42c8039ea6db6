"""Decoding token by token: keys and values are kept, and a chunk's neighbours are encoded once, when it fills."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from retro.model.cca import MASKED, NOTHING, Encoded
from retro.model.language_model import DecoderLayer, LanguageModel
from retro.model.layers import Rope, attend

Retrieved = tuple[Tensor, Tensor | None]  # neighbours int64 [.., k, r], and which of their tokens are real
# What is kept of encoded neighbours, a row each; and what stands for none where it matters.
KEPT, EMPTY = ("states", "scores", "alive", "tokens", "places"), {"alive": 0, "tokens": MASKED}


class DecodingCache:
    """What a model in evaluation mode has read so far of some sequences, each in a row, as if it were alone.

    Chunks begin at position 0. That is `chunk_alignment: start`; an end-aligned model would move its chunks with every
    token, so its logits are those of the whole sequence only where that is a multiple of the chunk length. `anew`
    moves the chunks: the m tokens that end with the next one become a chunk, and later ones follow it.

    `extend` appends to rows that stand at the same place; `step` appends a token to each of the first rows, wherever
    it stands. A row can be begun again (`clear`) and be put into another's place (`move`).
    """

    def __init__(self, model: LanguageModel, capacity: int | None = None, rows: int | None = None) -> None:
        """`capacity` is how many tokens fit, at most seq_length with learned positions; none: seq_length. `rows`: how
        many sequences fit; none: as many as the first `extend` is given.
        """
        if model.training:
            raise ValueError("the model is in training mode; call model.eval() before decoding with a cache")
        self.model, self.chunk_length = model, model.chunk_length
        self.capacity = capacity or model.seq_length
        table = model.embedding.positions
        if table is not None and self.capacity > table.num_embeddings:
            raise ValueError(f"capacity is {self.capacity}, but the table of positions ends at {table.num_embeddings}")
        self.lengths = [0] * (rows or 0)  # tokens read, of each row
        self._firsts = [0] * (rows or 0)  # a chunk begins here and every m tokens before and after; 0 .. m - 1
        self._reading = [False] * (rows or 0)  # whether the row reads neighbours
        # [rows, ..] each, by name and layer: text [capacity], keys and values [capacity, g, size]; chunk [m, d], the
        # states at the first chunked cross-attention, filling up; what is `KEPT` of the last full chunk's neighbours,
        # and read keys and read values [(1 +) k * r, g, size], as each chunked cross-attention reads them.
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._rope: Rope | None = None
        self._retrieved = 0  # r

    @property
    def length(self) -> int:
        """Tokens read, of the first row."""
        return self.lengths[0] if self.lengths else 0

    def completes(self, count: int) -> int:
        """How many chunks the next `count` tokens complete, of the first row."""
        return self._completes(0, count) if self.lengths else count // self.chunk_length

    def begins(self, tokens: Tensor) -> bool:
        """Whether tokens [b, n] begin with all that the first rows read, and go on."""
        if not self._rows:
            return True
        read = self._rows["text", 0][: len(tokens), : self.length]  # (b, length)
        return tokens.shape[1] > self.length and torch.equal(tokens[:, : self.length], read)

    @torch.inference_mode()
    def clear(self, row: int) -> None:
        """Begin a row again."""
        self.lengths[row] = self._firsts[row] = 0
        self._forget(row)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Put what a row has read into the place of another."""
        for (name, _), rows in self._rows.items():
            used = slice(self.lengths[source]) if name in ("text", "keys", "values") else slice(None)
            rows[target, used] = rows[source, used]
        self.lengths[target], self._firsts[target] = self.lengths[source], self._firsts[source]
        self._reading[target] = self._reading[source]

    @torch.inference_mode()
    def extend(
        self,
        tokens: Tensor,
        neighbours: Tensor | None = None,
        neighbour_mask: Tensor | None = None,
        *,
        last: bool = False,
        anew: bool = False,
        first: int = 0,
    ) -> Tensor:
        """Append tokens [b, s] to rows `first`, `first` + 1, .. and return their logits [b, s, V], or with `last` those
        of the last one [b, 1, V].

        neighbours [b, l, k, r] and neighbour_mask (True = a real token) are of the `completes(s)` chunks that these
        tokens complete; None leaves those chunks without. `anew`: the first of these tokens completes a chunk wherever
        it stands, from the m-th token of the sequence on.
        """
        batch, count = tokens.shape
        self._make(tokens)
        rows = slice(first, first + batch)
        if any(len({*each[rows]}) != 1 for each in (self.lengths, self._firsts)):
            raise ValueError("the rows stand at different places; append to them one by one, or a token each with step")
        if anew:
            for row in range(first, first + batch):
                self._begin_anew(row)
        self._check(rows, count)
        full = self._completes(first, count)
        if neighbours is not None and neighbours.shape[1] != full:
            raise ValueError(f"these tokens complete {full} chunks, but neighbours of {neighbours.shape[1]} were given")
        if neighbours is not None and self.model.encoder is None:
            raise ValueError("a GPT was given neighbours; build architecture retro, or pass neighbours=None")
        logits, done, chunk = [], 0, 0
        while done < count:
            # A piece reads the neighbours of one chunk: it begins with a chunk's last token, or at the start.
            place = self._place(first)  # 0: the next token completes a chunk
            piece = min(count - done, self.chunk_length - place)
            found: Retrieved | None = None
            if place == 0:
                if neighbours is not None:
                    mask = None if neighbour_mask is None else neighbour_mask[:, chunk : chunk + 1]
                    found = neighbours[:, chunk : chunk + 1], mask
                chunk += 1
            at = Together(rows, self.lengths[first], piece, place, tokens.device)
            x, encoded = self._piece(tokens[:, done : done + piece], at, at.full, found)
            done += piece
            if not last or done == count:
                logits.append(self._logits(x[:, -1:] if last else x, encoded))
        return torch.cat(logits, dim=1)  # (b, s or 1, V)

    @torch.inference_mode()
    def step(
        self,
        tokens: Tensor,
        anew: list[int] | None = None,
        neighbours: Tensor | None = None,
        neighbour_mask: Tensor | None = None,
    ) -> Tensor:
        """Append one of tokens [b] to each of the first b rows, wherever it stands -> logits [b, V].

        In rows `anew` the token completes a chunk wherever it stands, of which neighbours [c, k, r] and neighbour_mask
        are; other chunks that are completed are left without.
        """
        self._make(tokens)
        rows, anew = slice(0, len(tokens)), anew or []
        for row in anew:
            self._begin_anew(row)
        self._check(rows, 1)
        lengths, places = self.lengths[rows], [self._place(row) for row in range(len(tokens))]
        at: Together | Apart = Together(rows, lengths[0], 1, places[0], tokens.device)
        if len({*lengths}) > 1 or len({*places}) > 1:
            at = Apart(rows, lengths, places, tokens.device)
        found = None
        if neighbours is not None:
            found = neighbours[:, None], None if neighbour_mask is None else neighbour_mask[:, None]  # (c, 1, k, r)
        x, encoded = self._piece(tokens[:, None], at, anew, found)
        return self._logits(x, encoded)[:, 0]  # (b, V)

    def _completes(self, row: int, count: int) -> int:
        before = self.lengths[row] - self._firsts[row]
        return (before + count) // self.chunk_length - before // self.chunk_length

    def _place(self, row: int) -> int:
        """How many tokens after the end of a chunk the row's next token stands."""
        return (self.lengths[row] + 1 - self._firsts[row]) % self.chunk_length

    def _make(self, tokens: Tensor) -> None:
        """Make what the first tokens need."""
        if not self.lengths:
            count = len(tokens)
            self.lengths, self._firsts, self._reading = [0] * count, [0] * count, [False] * count
        if not self._rows:
            self._rows["text", 0] = tokens.new_empty(len(self.lengths), self.capacity)
            self._rope = self.model.rope(torch.arange(self.capacity, device=tokens.device))

    def _check(self, rows: slice, count: int) -> None:
        most = max(self.lengths[rows])
        if most + count > self.capacity:
            raise ValueError(f"{count} more tokens after {most} exceed the capacity of {self.capacity}")

    def _row(self, name: str, layer: int, like: Tensor, *shape: int, fill: float = 0) -> Tensor:
        """What is kept under a name, [rows, *shape], made when it is first asked for."""
        if (kept := self._rows.get((name, layer))) is None:
            kept = self._rows[name, layer] = like.new_full((len(self.lengths), *shape), fill)
        return kept

    def _begin_anew(self, row: int) -> None:
        """Let the row's next token complete a chunk: the states kept are those of the last tokens, in any order."""
        length, m = self.lengths[row], self.chunk_length
        if length + 1 < m:
            raise ValueError(f"{length + 1} tokens make no chunk of {m}")
        first, chunk = (length + 1) % m, self._rows.get(("chunk", 0))
        if chunk is not None:
            chunk[row] = chunk[row].roll(self._firsts[row] - first, dims=0)  # (m, d)
        self._firsts[row] = first

    def _piece(
        self, tokens: Tensor, at: "Together | Apart", given: list[int], found: Retrieved | None
    ) -> tuple[Tensor, Encoded | None]:
        """Read tokens [b, p], which stand `at` -> states [b, p, d], and the neighbours that they face.

        `found` [c, 1, k, r] are the neighbours of the chunks that the first tokens complete, of the `given` rows.
        """
        model, encoded = self.model, None
        at.put(self._rows["text", 0], tokens)
        x = model.embedding(tokens, at.start)  # (b, p, d)
        rope = None if self._rope is None else (at.of(self._rope[0]), at.of(self._rope[1]))
        for index, layer in enumerate(model.decoder.layers):
            assert isinstance(layer, DecoderLayer)
            attention = partial(self._attention, layer, index, rope, at)
            y = x + layer.branch(layer.attention_norm, attention, x)  # (b, p, d)
            if layer.cca is not None:
                h = layer.cca.norm(y)  # (b, p, d)
                if index + 1 == model.settings.cca_at[0]:
                    self._remember(h, at, given, found)
                    encoded = self._faced(at)
                if encoded is not None and encoded.alive is not None:
                    k, v = (self._rows[name, index][at.rows] for name in ("read keys", "read values"))
                    y = y + layer.cca.read(h, k, v, encoded, at.place) * encoded.alive  # (b, p, d)
            x = y + layer.branch(layer.mlp_norm, layer.mlp, x if layer.parallel else y)  # (b, p, d)
        for row in range(at.rows.start, at.rows.stop):
            self.lengths[row] += tokens.shape[1]
        return x if model.decoder.norm is None else model.decoder.norm(x), encoded  # (b, p, d)

    def _attention(
        self, layer: DecoderLayer, index: int, rope: Rope | None, at: "Together | Apart", h: Tensor
    ) -> Tensor:
        """What tokens that stand `at`, whose states are h [b, p, d], read of all so far: [b, p, d]."""
        q, k, v = layer.attention.project(h, rope)  # (b, p, heads, size)
        k, v = (
            at.put(self._row(name, index, new, self.capacity, *new.shape[2:]), new)
            for name, new in (("keys", k), ("values", v))
        )  # (b, end, g, size)
        return layer.attention.out(attend(q, k, v, mask=at.mask(h), causal=at.causal))  # (b, p, d)

    def _logits(self, x: Tensor, encoded: Encoded | None) -> Tensor:
        """Logits [b, p, V] of the last tokens of a piece, whose states are x [b, p, d]."""
        logits = F.linear(x, self.model.head_weight)  # (b, p, V)
        if self.model.copier is None or encoded is None or encoded.matches is None:
            return logits
        return self.model.copied_logits(logits, x, encoded._replace(matches=encoded.matches[:, :, -x.shape[1] :]))

    def _remember(self, h: Tensor, at: "Together | Apart", given: list[int], found: Retrieved | None) -> None:
        """Keep the current chunks' states h [b, p, d]; where one is full, encode its neighbours."""
        chunk = self._row("chunk", 0, h, self.chunk_length, h.shape[2])  # (rows, m, d)
        at.put_first(chunk, h)
        for row in at.full:
            self._forget(row)
        if found is not None:
            neighbours, mask = found
            mask = torch.ones_like(neighbours, dtype=torch.bool) if mask is None else mask
            self._keep(given, self.model.encode(neighbours, mask, chunk[given]))
        at.put_rest(chunk, h)

    def _keep(self, rows: list[int], encoded: Encoded) -> None:
        """Let rows read encoded neighbours."""
        self._retrieved = encoded.length
        kept = {(name, 0): getattr(encoded, name) for name in KEPT}
        for number in self.model.settings.cca_at:
            layer = self.model.decoder.layers[number - 1]
            assert isinstance(layer, DecoderLayer) and layer.cca is not None
            kept["read keys", number - 1], kept["read values", number - 1] = layer.cca.keys_values(encoded)
        for name, new in kept.items():
            if new is not None:
                self._row(*name, new, *new.shape[1:], fill=EMPTY.get(name[0], 0))[rows] = new
        for row in rows:
            self._reading[row] = True

    def _forget(self, row: int) -> None:
        """Let a row read no neighbours."""
        self._reading[row] = False
        for name, value in EMPTY.items():
            if (name, 0) in self._rows:
                self._rows[name, 0][row] = value

    def _faced(self, at: "Together | Apart") -> Encoded | None:
        """The neighbours that a piece's tokens read; None where no row reads any."""
        if not any(self._reading[at.rows]):
            return None
        kept = {name: self._rows[name, 0][at.rows] for name in KEPT if (name, 0) in self._rows}
        encoded = Encoded(kept["states"], kept.get("scores"), kept["alive"], self._retrieved)
        if not (length := self.model.settings.match_length):
            return encoded
        encoded = encoded._replace(tokens=kept["tokens"], places=kept["places"])
        return encoded.facing(at.history(self._rows["text", 0], length))


class Together:
    """Tokens of rows that stand at the same place: positions start .. start + count of each."""

    def __init__(self, rows: slice, start: int, count: int, place: int, device: torch.device) -> None:
        self.rows, self.start, self.end, self.place = rows, start, start + count, place
        self.full = [*range(rows.start, rows.stop)] if place == 0 else []  # rows whose chunk the first token completes
        self.causal = start == 0 and count > 1
        self._mask = None
        if start and count > 1:
            self._mask = torch.ones(count, self.end, dtype=torch.bool, device=device).tril(start)  # (p, end)

    def of(self, table: Tensor) -> Tensor:
        """The tokens' rows of a table by position, [capacity, ..] -> [p, ..]."""
        return table[self.start : self.end]

    def put(self, kept: Tensor, new: Tensor) -> Tensor:
        """Write `new` [b, p, ..] to its place in what is kept [rows, capacity, ..] -> all that is seen [b, end, ..]."""
        kept[self.rows, self.start : self.end] = new
        return kept[self.rows, : self.end]

    def mask(self, like: Tensor) -> Tensor | None:
        """Which positions each token sees, as `attend` has it."""
        return self._mask

    def history(self, tokens: Tensor, count: int) -> Tensor:
        """The last tokens at each position: [b, p, c], as `retro.model.cca.recent` has them."""
        back = torch.arange(count, device=tokens.device)  # (c,)
        at = torch.arange(self.start, self.end, device=tokens.device)[:, None] - back  # (p, c)
        return tokens[self.rows][:, at.clamp(min=0)].masked_fill(at < 0, NOTHING)

    def put_first(self, chunk: Tensor, h: Tensor) -> None:
        """Write the first token's states, of h [b, p, d], to their place in the chunks [rows, m, d]."""
        chunk[self.rows, self.place - 1] = h[:, 0]

    def put_rest(self, chunk: Tensor, h: Tensor) -> None:
        """Write the other tokens' states to theirs."""
        chunk[self.rows, self.place : self.place + h.shape[1] - 1] = h[:, 1:]


class Apart:
    """A token of each row, wherever it stands: at position `start` [b], `place` [b] tokens after the end of a chunk."""

    causal = False

    def __init__(self, rows: slice, starts: list[int], places: list[int], device: torch.device) -> None:
        self.rows, self.end = rows, max(starts) + 1
        self.full = [row for row, place in enumerate(places) if place == 0]
        self.start, self.place, self._each = torch.tensor([starts, places, [*range(len(starts))]], device=device)
        self._mask: Tensor | None = None

    def of(self, table: Tensor) -> Tensor:
        """As `Together.of`: [b, 1, ..]."""
        return table[self.start][:, None]

    def put(self, kept: Tensor, new: Tensor) -> Tensor:
        """As `Together.put`; what lies behind a row's own position is masked."""
        kept[self._each, self.start] = new[:, 0]
        return kept[self.rows, : self.end]

    def mask(self, like: Tensor) -> Tensor | None:
        """As `Together.mask`: what is added to scores, [b, 1, 1, end]."""
        if self._mask is None:
            hidden = torch.arange(self.end, device=like.device) > self.start[:, None]  # (b, end)
            self._mask = like.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None, None]
        return self._mask

    def history(self, tokens: Tensor, count: int) -> Tensor:
        """As `Together.history`: [b, 1, c]."""
        at = self.start[:, None] - torch.arange(count, device=tokens.device)  # (b, c)
        return tokens[self.rows].gather(1, at.clamp(min=0)).masked_fill(at < 0, NOTHING)[:, None]

    def put_first(self, chunk: Tensor, h: Tensor) -> None:
        """As `Together.put_first`."""
        chunk[self._each, self.place - 1] = h[:, 0]

    def put_rest(self, chunk: Tensor, h: Tensor) -> None:
        """There is no other token."""
