"""The decoder: one layer stack for GPT and RETRO. RETRO's layers may carry chunked cross-attention."""

from collections.abc import Callable

from torch import Tensor, nn

from retro.model.attention import SelfAttention
from retro.model.cca import ChunkedCrossAttention, Encoded
from retro.model.chunks import ChunkGrid
from retro.model.layers import MLP, Rope, make_norm
from retro.model.settings import ModelSettings


class DecoderLayer(nn.Module):
    """Pre-norm: self-attention, chunked cross-attention where there is one, MLP."""

    def __init__(self, settings: ModelSettings, cca: ChunkedCrossAttention | None) -> None:
        super().__init__()
        s = settings
        self.attention_norm = make_norm(s.norm, s.width, s.norm_eps)
        self.attention = SelfAttention(s.width, s.heads, s.kv_head_count, s.bias, s.attention_dropout)
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
        x = x + self.dropout(self.attention(self.attention_norm(x), rope=rope, causal=True))  # (b, n, d)
        if self.cca is not None and grid is not None:
            h = self.cca.norm(x)  # (b, n, d)
            if encoded is None:
                assert encode is not None
                encoded = encode(h)
            x = x + self.dropout(self.cca(h, encoded, grid))  # (b, n, d)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), encoded  # (b, n, d)


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
    ) -> Tensor:
        """Embedded tokens [b, n, d] -> states before the head [b, n, d]."""
        encoded = None
        for layer in self.layers:
            x, encoded = layer(x, rope, grid, encode, encoded)
        return x if self.norm is None else self.norm(x)  # (b, n, d)
