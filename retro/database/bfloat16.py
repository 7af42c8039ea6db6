"""A BERT's hidden states in bfloat16, on processors that multiply it: AVX512-BF16 or AMX.

Weights and states are bfloat16; sums, norms and softmax are float32. oneDNN's matrix products take weights laid out
for them in advance, and add bias, residual and gelu before a result is stored. Texts are packed, one after the
other, into rows without padding.

A text's result is its own, bit for bit, by construction. oneDNN chooses how it sums by the shape of a product: every
product with weights has `ROWS` rows, whichever texts they belong to, the last ones filled up, and attention has the
shape of one text. All of it runs on one thread. What is left works on rows or numbers one by one.
"""

from pathlib import Path
from typing import Any

import numpy as np

from retro.base.stage import UserError
from retro.database.folders import bare

KINDS = ("amx", "avx512_bf16")  # what multiplies bfloat16
ROWS = 128  # of a matrix product: as quick as more, and a lone query fills up little
Projection = tuple[Any, Any]  # a prepared weight and its bias, torch tensors
Norm = tuple[Any, Any]  # scale and shift, torch tensors


def instructions() -> str | None:
    """Which of `KINDS` this processor has, the best, if any."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return None
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else None


class Bfloat16Engine:
    """See `retro.database.engines`; `packed`: called with any texts. Raises `UserError` where the processor cannot."""

    gpu, alone, packed = False, True, True

    def __init__(self, folder: Path, config: dict):
        import torch
        from safetensors.torch import load_file

        found = instructions()
        if found is None:
            raise UserError(
                "dataset.encoder.cpu_dtype bfloat16: this processor has neither AVX512-BF16 nor AMX. Take a machine "
                "that has, or set cpu_dtype: float32; the vectors are others then."
            )
        self.name = f"torch bfloat16 {found}"  # results of other instructions may differ
        self.width, self._heads = config["hidden_size"], config["num_attention_heads"]
        self._epsilon = config["layer_norm_eps"]
        weights = {bare(name): array for name, array in load_file(folder / "model.safetensors").items()}

        def take(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return weights[name].to(dtype)

        def projection(names: list[str], scales: list[float]) -> Projection:
            """Projections of the same states as one, each multiplied by a factor."""
            parts = list(zip(names, scales, strict=True))
            weight = torch.cat([take(f"{name}.weight") * scale for name, scale in parts]).bfloat16()
            bias = torch.cat([take(f"{name}.bias") * scale for name, scale in parts]).bfloat16()
            return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), bias

        def norm(place: str, dtype: torch.dtype = torch.bfloat16) -> Norm:
            return take(f"{place}.LayerNorm.weight", dtype), take(f"{place}.LayerNorm.bias", dtype)

        self._words = take("embeddings.word_embeddings.weight")
        self._positions = take("embeddings.position_embeddings.weight") + take(
            "embeddings.token_type_embeddings.weight"
        ).select(0, 0)
        self._first_norm = norm("embeddings", torch.float32)
        self._layers = []
        for layer in (f"encoder.layer.{number}" for number in range(config["num_hidden_layers"])):
            asked = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
            self._layers.append(
                (
                    projection(asked, [(self.width // self._heads) ** -0.5, 1.0, 1.0]),
                    projection([f"{layer}.attention.output.dense"], [1.0]),
                    norm(f"{layer}.attention.output"),
                    projection([f"{layer}.intermediate.dense"], [1.0]),
                    projection([f"{layer}.output.dense"], [1.0]),
                    norm(f"{layer}.output"),
                )
            )

    def __call__(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        """The states float32 [t, d] of each text, word pieces int64 [t]."""
        import torch

        torch.set_num_threads(1)  # of this thread; a new one has all cores until it is told
        with torch.inference_mode():
            return self._states(texts)

    def _states(self, texts: list[np.ndarray]) -> list[np.ndarray]:
        import torch
        from torch.nn.functional import layer_norm

        product, shape = torch.ops.mkldnn._linear_pointwise, (self.width,)
        ends = np.cumsum([len(text) for text in texts])
        bounds = list(zip([0, *ends.tolist()], ends.tolist(), strict=False))
        rows = -(-int(ends[-1]) // ROWS) * ROWS
        pieces, places = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        pieces[: ends[-1]] = np.concatenate(texts)
        places[: ends[-1]] = np.concatenate([np.arange(len(text)) for text in texts])
        states = self._words[torch.from_numpy(pieces)] + self._positions[torch.from_numpy(places)]  # (rows, d)
        states = layer_norm(states, shape, *self._first_norm, eps=self._epsilon)
        tiles = list(states.bfloat16().split(ROWS))
        asked = torch.empty(rows, 3 * self.width, dtype=torch.bfloat16)  # queries, keys, values
        attended = torch.zeros(rows, self.width, dtype=torch.bfloat16)
        for inward, outward, middle, wide, narrow, last in self._layers:
            for tile, into in zip(tiles, asked.split(ROWS), strict=True):
                into.copy_(product(tile, *inward, "none", [], ""))
            for start, stop in bounds:
                attended[start:stop] = self._attend(asked[start:stop])
            for number, (tile, seen) in enumerate(zip(tiles, attended.split(ROWS), strict=True)):
                state = layer_norm(product.binary(seen, tile, *outward, "add"), shape, *middle, eps=self._epsilon)
                active = product(state, *wide, "gelu", [], "none")  # (ROWS, 4d)
                tiles[number] = layer_norm(
                    product.binary(active, state, *narrow, "add"), shape, *last, eps=self._epsilon
                )
        whole = torch.cat(tiles).float().numpy()
        return [whole[start:stop] for start, stop in bounds]

    def _attend(self, asked: Any) -> Any:
        """Attention of one text: queries (scaled), keys and values [t, 3d] to [t, d]."""
        import torch

        query, key, value = asked.view(len(asked), 3, self._heads, -1).permute(1, 2, 0, 3).contiguous()  # (h, t, d/h)
        scores = torch.bmm(query, key.transpose(1, 2)).softmax(-1, dtype=torch.float32)  # (h, t, t)
        return torch.bmm(scores.bfloat16(), value).transpose(0, 1).reshape(len(asked), -1)
