"""GPT and RETRO as one module: embedding, decoder, neighbour encoder, head, loss.

The decoder is one layer stack for both. RETRO's layers may carry chunked cross-attention.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.model.cca import MASKED, ChunkedCrossAttention, ChunkGrid, Encoded, before, copies, recent
from retro.model.copier import Match, OutputCopier, mixed, whole
from retro.model.layers import MLP, Encoder, Rope, SelfAttention, make_norm, rope_table, token_losses
from retro.model.settings import ModelSettings


class DecoderLayer(nn.Module):
    """Self-attention, chunked cross-attention where there is one, MLP.

    Each reads normalised states. With `norm_position: after` self-attention and MLP read the states as they are, and
    what they put out is normalised. With `parallel_residual` the MLP reads the states that self-attention reads.
    """

    def __init__(self, settings: ModelSettings, cca: ChunkedCrossAttention | None) -> None:
        super().__init__()
        s = settings
        self.attention_norm = make_norm(s.norm, s.width, s.norm_eps)
        heads, groups, size = s.heads, s.kv_head_count, s.head_size
        self.attention = SelfAttention(
            s.width,
            heads,
            groups,
            s.bias,
            s.attention_dropout,
            size=size,
            qkv_bias=s.has_qkv_bias,
            normed={"none": None, "head": (size, size), "whole": (heads * size, groups * size)}[s.qk_norm],
            eps=s.norm_eps,
        )
        self.norm_after, self.parallel = s.norm_position == "after", s.parallel_residual
        self.cca = cca
        self.mlp_norm = make_norm(s.norm, s.width, s.norm_eps)
        self.mlp = MLP(s.width, s.ffn_dim, s.activation, s.bias)
        self.dropout = nn.Dropout(s.dropout)

    def forward(
        self,
        x: Tensor,
        rope: Rope | None,
        grid: ChunkGrid | None = None,
        encode: Callable[[Tensor], Encoded] | None = None,
        encoded: Encoded | None = None,
    ) -> tuple[Tensor, Encoded | None]:
        """x [b, n, d] -> [b, n, d], and the encoded neighbours.

        The first layer with chunked cross-attention calls `encode` on its normalised states; later layers are
        given the result. Without `grid` retrieval is off.
        """
        y = x + self.branch(self.attention_norm, partial(self.attention, rope=rope, causal=True), x)  # (b, n, d)
        if self.cca is not None and grid is not None:
            h = self.cca.norm(y)  # (b, n, d)
            if encoded is None:
                assert encode is not None
                encoded = encode(h)
            y = y + self.dropout(self.cca(h, encoded, grid))  # (b, n, d)
        return y + self.branch(self.mlp_norm, self.mlp, x if self.parallel else y), encoded  # (b, n, d)

    def branch(self, norm: nn.Module, work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What self-attention or the MLP (`work`) adds to the states x [b, n, d]: [b, n, d]."""
        return self.dropout(norm(work(x)) if self.norm_after else work(norm(x)))  # (b, n, d)


class Decoder(nn.Module):
    """The stack of layers and, if there is one, the norm before the head."""

    def __init__(self, settings: ModelSettings, ccas: dict[int, ChunkedCrossAttention]) -> None:
        super().__init__()
        s = settings
        self.layers = nn.ModuleList(DecoderLayer(s, ccas.get(i)) for i in range(1, s.layers + 1))
        self.norm = make_norm(s.norm, s.width, s.norm_eps) if s.final_norm else None

    def forward(
        self,
        x: Tensor,
        rope: Rope | None,
        grid: ChunkGrid | None = None,
        encode: Callable[[Tensor], Encoded] | None = None,
    ) -> tuple[Tensor, Encoded | None]:
        """Embedded tokens [b, n, d] -> states before the head [b, n, d], and the encoded neighbours."""
        encoded = None
        for layer in self.layers:
            x, encoded = layer(x, rope, grid, encode, encoded)
        return x if self.norm is None else self.norm(x), encoded  # (b, n, d)


class Embedding(nn.Module):
    """Token table [V, d] and, with learned positions, position table [P, d]."""

    def __init__(self, vocab_size: int, width: int, positions: int | None) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = None if positions is None else nn.Embedding(positions, width)

    def forward(self, tokens: Tensor, start: int | Tensor = 0) -> Tensor:
        """[b, n] -> [b, n, d]; the first token stands at position `start`, or, where n is 1, at one [b] of its own."""
        x = self.tokens(tokens)  # (b, n, d)
        if self.positions is not None:
            rows = slice(start, start + tokens.shape[1]) if isinstance(start, int) else start[:, None]
            x = x + self.positions.weight[rows]  # (b, n, d)
        return x


class LanguageModel(nn.Module):
    """A GPT decoder, with an encoder and chunked cross-attention when the architecture is "retro".

    Parameters of the retrieval half begin with `encoder.` or `copier.` or contain `.cca.`; all others are the GPT
    twin's. Make one with `retro.model.build.build_model`.
    """

    def __init__(
        self,
        settings: ModelSettings,
        architecture: str,
        vocab_size: int,
        seq_length: int,
        chunk_length: int,
        retrieved_length: int,
    ) -> None:
        super().__init__()
        s = settings
        self.settings, self.architecture = settings, architecture
        self.vocab_size, self.seq_length = vocab_size, seq_length
        self.chunk_length, self.retrieved_length = chunk_length, retrieved_length
        table = max(seq_length, retrieved_length) if s.shared_embeddings else seq_length
        self.embedding = Embedding(vocab_size, s.width, table if s.positions == "learned" else None)
        self.dropout = nn.Dropout(s.dropout)
        self.encoder, self.copier, ccas = None, None, {}
        if architecture == "retro":
            self.encoder = Encoder(s, vocab_size, retrieved_length)
            self.copier = OutputCopier(s) if s.copy_output else None
            ccas = {i: ChunkedCrossAttention(s, chunk_length, retrieved_length) for i in s.cca_at}
        self.decoder = Decoder(s, ccas)
        self.head = None if s.tied else nn.Linear(s.width, vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        neighbours: Tensor | None = None,
        neighbour_mask: Tensor | None = None,
        targets: Tensor | None = None,
        head_loss: float = 0.0,
    ) -> Tensor:
        """Logits [b, n, V], or with `targets` per-token cross-entropies [b, n] fp32.

        tokens: int64 [b, n]. neighbours: int64 [b, l, k, r], None = retrieval off, which is the GPT twin bit
        for bit. neighbour_mask: bool [b, l, k, r], True = a real token; a chunk without any is as with
        retrieval off. targets: int64 [b, n]; where negative the loss is exactly 0. head_loss: how much of the head's
        own loss is added to the gradient, and not to the value, where its copier copies.
        """
        self._check(tokens, neighbours)
        x = self.dropout(self.embedding(tokens))  # (b, n, d)
        rope = self.rope(torch.arange(tokens.shape[1], device=tokens.device))
        grid, encode = self._retrieval(tokens, neighbours, neighbour_mask)
        x, encoded = self.decoder(x, rope, grid, encode)  # (b, n, d)
        found = F.linear(x, self.head_weight) if targets is None else token_losses(x, self.head_weight, targets)
        if self.copier is None or encoded is None or grid is None:
            return found  # (b, n, V) or (b, n)
        here = grid.queries(x)  # (b * l, m, d)
        if targets is None:
            copied = self.copied_logits(grid.queries(found), here, encoded)  # (b * l, m, V)
            return torch.cat([whole(found[:, : grid.first]), grid.scatter(copied, tokens.shape[1])[:, grid.first :]], 1)
        wanted = grid.queries(targets[..., None])[..., 0]  # (b * l, m)
        copied = self._copied_losses(grid.queries(found[..., None])[..., 0], wanted, head_loss, here, encoded)
        rest = grid.scatter(copied[..., None], tokens.shape[1])[..., 0]  # (b, n)
        return torch.cat([found[:, : grid.first], rest[:, grid.first :]], 1)  # (b, n)

    def copied_logits(self, logits: Tensor, x: Tensor, encoded: Encoded) -> Tensor:
        """The head's logits [b', m', V] mixed with the copier's, for positions whose states are x [b', m', d] and that
        face the `encoded` neighbours: fp32 [b', m', V], log-probabilities where something matches.
        """
        assert self.copier is not None and encoded.tokens is not None
        tokens, match = encoded.tokens, Match.of(encoded)  # (b', s)
        head = whole(logits).log_softmax(-1)  # (b', m', V)
        candidate = tokens.gather(1, match.first).clamp(min=0)  # (b', m')
        gate = self.copier.gate(x, match, tokens, head.gather(-1, candidate[..., None])[..., 0])  # (b', m')
        copied = match.distribution(tokens, logits.shape[-1])  # (b', m', V)
        both = mixed(head, gate[..., None], copied)  # (b', m', V)
        return torch.where(match.length[..., None] > 0, both, whole(logits))  # (b', m', V)

    def _copied_losses(self, losses: Tensor, targets: Tensor, head_loss: float, x: Tensor, encoded: Encoded) -> Tensor:
        """The head's losses of `targets` mixed with the copier's: nats [b', m'], 0 where a target is negative."""
        assert self.copier is not None and encoded.tokens is not None
        tokens, words, match = encoded.tokens, self.head_weight, Match.of(encoded)  # (b', s), (V, d)
        candidate = tokens.gather(1, match.first).clamp(min=0)  # (b', m')
        # The logarithm of the head's normaliser follows from the target's loss and logit, whatever the target is.
        logits = [(whole(x) * F.embedding(each.clamp(min=0), words)).sum(-1) for each in (candidate, targets)]
        gate = self.copier.gate(x, match, tokens, logits[0] - logits[1] - losses)  # (b', m')
        found = -mixed(-losses, gate, match.share(tokens, targets))  # (b', m')
        if head_loss:  # what is copied teaches the head nothing, so that it would learn from fewer tokens than a GPT
            found = found + head_loss * (losses - losses.detach())  # (b', m')
        return torch.where((targets >= 0) & (match.length > 0), found, losses)  # (b', m')

    @property
    def head_weight(self) -> Tensor:
        """The matrix [V, d] from states to logits."""
        return self.embedding.tokens.weight if self.head is None else self.head.weight

    def rope(self, positions: Tensor) -> Rope | None:
        """Rotations of decoder self-attention at positions [n], None when positions are learned."""
        s = self.settings
        if s.positions != "rope":
            return None
        rotated = 2 * (int(s.head_size * s.rope_fraction) // 2)
        return rope_table(positions, rotated, s.rope_base, s.rope_scaling)

    def encode(self, neighbours: Tensor, mask: Tensor | None, chunks: Tensor, short: int = 0) -> Encoded:
        """Encode neighbours [b, l, k, r] for chunks whose normalised states are `chunks` [b * l, m, d].

        `short` > 0: only so many tokens of each sequence's first chunk are real.
        """
        s, (b, count, k, r) = self.settings, neighbours.shape
        rows = alive = self_mask = chunk_mask = None
        if mask is not None:
            if not s.mask_padding:
                mask = mask.any(-1, keepdim=True).expand_as(mask)  # a missing neighbour stays missing
            neighbours = neighbours.masked_fill(~mask, 0)  # (b, l, k, r)
            rows = mask.reshape(-1, r)  # (b * l * k, r)
            mask = mask.reshape(b * count, k * r)  # (b * l, k * r)
            some = mask.any(-1, keepdim=True)  # (b * l, 1)
            alive = some[:, :, None].to(chunks.dtype)  # (b * l, 1, 1)
            # What has no real token attends to, and shows, everything: finite, and read by nobody. Where padding is
            # seen that is true of all, and no mask leaves a GPU its fastest attention.
            if s.mask_padding:
                self_mask = (rows | ~rows.any(-1, keepdim=True))[:, None, None, :]  # (b * l * k, 1, 1, r)
            mask = mask | ~some  # (b * l, k * r)
        if short and s.mask_padding:
            chunk_mask = torch.ones(b, count, 1, chunks.shape[1], dtype=torch.bool, device=chunks.device)
            chunk_mask[:, 0, :, short:] = False
            chunk_mask = chunk_mask.view(b * count, 1, 1, -1)  # (b * l, 1, 1, m)
        assert self.encoder is not None
        learned, words = self.embedding.positions, self.embedding.tokens.weight  # (P, d), (V, d)
        table = None if learned is None else learned.weight  # (P, d)
        x = self.encoder.embed(neighbours.reshape(-1, r), words, table)  # (b * l * k, r, d')
        states = self.encoder(x, chunks, self_mask, chunk_mask)  # (b * l, k * r, d')
        encoded = Encoded(states, self._scores(mask, states), alive, r)
        if s.match_length:
            own = neighbours.reshape(-1, k, r)  # (b * l, k, r)
            rows = None if rows is None else rows.view_as(own)  # (b * l, k, r)
            encoded = encoded._replace(copies=copies(own, words), places=before(own, rows, s.match_length))
            seen = own if rows is None else own.masked_fill(~rows, MASKED)  # (b * l, k, r)
            encoded = encoded._replace(tokens=seen.flatten(1))
        return encoded

    def _scores(self, mask: Tensor | None, states: Tensor) -> Tensor | None:
        """Where scores of chunked cross-attention start: [b * l or 1, 1, 1, (1 +) k * r].

        mask [b * l, k * r]: True where visible. The null slot starts at the weight of all visible keys together.
        """
        if mask is None and not self.settings.cca_null:
            return None
        if mask is None:
            mask = torch.ones(1, states.shape[1], dtype=torch.bool, device=states.device)  # (1, k * r)
        scores = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, float("-inf"))  # (b * l, k * r)
        if self.settings.cca_null:
            level = mask.sum(-1, keepdim=True).to(states.dtype).log()  # (b * l, 1)
            scores = torch.cat([level, scores], dim=-1)  # (b * l, 1 + k * r)
        return scores[:, None, None, :]  # (b * l or 1, 1, 1, (1 +) k * r)

    def _retrieval(
        self, tokens: Tensor, neighbours: Tensor | None, mask: Tensor | None
    ) -> tuple[ChunkGrid, Callable[[Tensor], Encoded]] | tuple[None, None]:
        """The chunks of tokens [b, n] and what encodes their neighbours; nothing where retrieval is off."""
        if neighbours is None:
            return None, None
        grid = ChunkGrid.over(tokens.shape[1], self.chunk_length, self.settings.chunk_alignment)
        if grid.count == 0:
            return None, None
        neighbours = neighbours[:, : grid.count]  # (b, l, k, r)
        mask = None if mask is None else mask[:, : grid.count]  # (b, l, k, r)

        def encode(h: Tensor) -> Encoded:
            encoded = self.encode(neighbours, mask, grid.chunks(h), grid.short)
            if not self.settings.match_length:
                return encoded
            return encoded.facing(grid.queries(recent(tokens, self.settings.match_length)))

        return grid, encode

    def _check(self, tokens: Tensor, neighbours: Tensor | None) -> None:
        n, table = tokens.shape[1], self.embedding.positions
        if table is not None and n > table.num_embeddings:
            raise ValueError(
                f"{n} tokens, but the table of positions ends at {table.num_embeddings}; "
                "cut the input or build the model with a longer seq_length"
            )
        if neighbours is None:
            return
        if self.encoder is None:
            raise ValueError("a GPT was given neighbours; build architecture retro, or pass neighbours=None")
        grid = ChunkGrid.over(n, self.chunk_length, self.settings.chunk_alignment)
        if neighbours.shape[1] < grid.count:
            raise ValueError(
                f"{n} tokens hold {grid.count} chunks of {self.chunk_length}, but neighbours were given for "
                f"{neighbours.shape[1]}; pass neighbours for every chunk, masked where there are none"
            )
        if neighbours.shape[3] > self.retrieved_length:
            raise ValueError(
                f"neighbours have {neighbours.shape[3]} tokens, the model was built for {self.retrieved_length}"
            )
