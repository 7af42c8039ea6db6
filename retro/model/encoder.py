"""The bidirectional encoder of neighbours, conditioned on the chunk that retrieved them (Algorithm 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.model.layers import MLP, CrossAttention, Rope, SelfAttention, make_norm, rope_table
from retro.model.settings import ModelSettings


class EncoderLayer(nn.Module):
    """Self-attention over one neighbour, cross-attention to its chunk in some layers, MLP."""

    def __init__(self, settings: ModelSettings, crosses: bool) -> None:
        super().__init__()
        s, width, heads = settings, settings.encoder_dim, settings.encoder_head_count
        self.normed_residual = s.encoder_residual == "normed"
        self.attention_norm = make_norm(s.norm, width, s.norm_eps)
        self.attention = SelfAttention(width, heads, heads, s.bias, s.encoder_dropout)
        self.cross = None
        if crosses:
            self.cross_norm = make_norm(s.norm, width, s.norm_eps)
            self.cross = CrossAttention(width, s.width, heads, s.bias, s.attention_dropout)
        self.mlp_norm = make_norm(s.norm, width, s.norm_eps)
        self.mlp = MLP(width, s.encoder_ffn_dim, s.activation, s.bias)
        self.dropout = nn.Dropout(s.encoder_dropout)

    def forward(
        self,
        x: Tensor,
        chunks: Tensor,
        *,
        rope: Rope | None,
        cross_rope: tuple[Rope, Rope] | None,
        mask: Tensor | None,
        chunk_mask: Tensor | None,
    ) -> Tensor:
        """x [b * l * k, r, d'], chunks [b * l, m, d] -> [b * l * k, r, d'].

        mask [b * l * k, 1, 1, r] and chunk_mask [b * l, 1, 1, m] are True where visible.
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), rope=rope, mask=mask))
        if self.cross is not None:
            y = self.cross_norm(x)  # (b * l * k, r, d')
            queries = y.view(chunks.shape[0], -1, y.shape[-1])  # (b * l, k * r, d')
            seen = self.cross(queries, chunks, rope=cross_rope, mask=chunk_mask)  # (b * l, k * r, d')
            x = (y if self.normed_residual else x) + self.dropout(seen).view_as(x)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # (b * l * k, r, d')


class Encoder(nn.Module):
    """Neighbour tokens -> states for chunked cross-attention.

    Tokens come embedded by the decoder's table (`shared_embeddings`), brought to the encoder's width if that
    differs, or by a table of the encoder's own.
    """

    def __init__(self, settings: ModelSettings, vocab_size: int, retrieved_length: int) -> None:
        super().__init__()
        s, width = settings, settings.encoder_dim
        self.settings = settings
        self.embedding = self.positions = self.input = self.norm = None
        if not s.shared_embeddings:
            self.embedding = nn.Embedding(vocab_size, width)
            if s.encoder_positions == "learned":
                self.positions = nn.Embedding(retrieved_length, width)
        elif width != s.width:
            self.input = nn.Linear(s.width, width, bias=False)
        self.layers = nn.ModuleList(
            EncoderLayer(s, j in s.encoder_cross_attention) for j in range(1, s.encoder_layers + 1)
        )
        if s.encoder_final_norm:
            self.norm = make_norm(s.norm, width, s.norm_eps)
        self.dropout = nn.Dropout(s.dropout)

    def embed(self, tokens: Tensor, table: Tensor, positions: Tensor | None) -> Tensor:
        """Tokens [c, r] (c = b * l * k), the decoder's tables [V, d] and [P, d] -> [c, r, d']."""
        s = self.settings
        if self.embedding is not None:
            table = self.embedding.weight  # (V, d')
            positions = None if self.positions is None else self.positions.weight  # (r, d')
        x = F.embedding(tokens, table)  # (c, r, d or d')
        if s.encoder_positions == "learned":
            assert positions is not None
            x = x + positions[: tokens.shape[1]]  # (c, r, d or d')
        if self.input is not None:
            x = self.input(x)  # (c, r, d')
        return self.dropout(x)

    def forward(self, x: Tensor, chunks: Tensor, mask: Tensor | None, chunk_mask: Tensor | None) -> Tensor:
        """Embedded neighbours x [c, r, d'] and chunk states [b * l, m, d] -> [b * l, k * r, d'].

        mask [c, 1, 1, r] and chunk_mask [b * l, 1, 1, m] are True where visible.
        """
        s, r = self.settings, x.shape[1]
        rope = cross_rope = None
        if s.encoder_positions == "rope":
            size = s.encoder_dim // s.encoder_head_count
            rotated = 2 * (int(size * s.rope_fraction) // 2)
            rope = rope_table(torch.arange(r, device=x.device), rotated, s.rope_base)
            if s.encoder_cross_attention:
                k = x.shape[0] // chunks.shape[0]
                asks = (rope[0].repeat(k, 1), rope[1].repeat(k, 1))  # (k * r, rotated/2)
                keys = rope_table(torch.arange(chunks.shape[1], device=x.device), rotated, s.rope_base)
                cross_rope = asks, keys
        for layer in self.layers:
            x = layer(x, chunks, rope=rope, cross_rope=cross_rope, mask=mask, chunk_mask=chunk_mask)
        if self.norm is not None:
            x = self.norm(x)  # (c, r, d')
        return x.view(chunks.shape[0], -1, x.shape[-1])  # (b * l, k * r, d')
