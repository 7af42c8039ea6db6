"""RETRO written a second time, token by token, from the equations: slow, without batches, sharing no code.

It reads the weights of a model (float64 copies) and its settings, and nothing else of `retro.model`.
"""

import math
from typing import NamedTuple

import torch


class Place(NamedTuple):
    """A token of a neighbour: where it is, its encoded state, the token, and those before it (None: hidden)."""

    at: int
    state: torch.Tensor
    token: int
    before: list


class Reference:
    """One sequence at a time, from a state dict of ours; `m`: chunk length, `r`: built neighbour length."""

    def __init__(self, weights, settings, m, r):
        self.w, self.s, self.m, self.r = weights, settings, m, r

    def logits(self, tokens, neighbours=None, mask=None):
        """tokens: n ints; neighbours: [l][k][r] ints; mask: [l][k][r] bools -> [n, V]."""
        s, n = self.s, len(tokens)
        x = [self.w["embedding.tokens.weight"][t] for t in tokens]
        if s.positions == "learned":
            x = [v + self.w["embedding.positions.weight"][i] for i, v in enumerate(x)]
        encoded = None
        for i in range(s.layers):
            name = f"decoder.layers.{i}"
            h = [self.norm(v, f"{name}.attention_norm") for v in x]
            q, k, v = zip(*(self.qkv(y, name, s.heads, s.kv_heads or s.heads) for y in h), strict=True)
            if s.positions == "rope":
                q, k = ([[self.turn(a, t) for a in y] for t, y in enumerate(z)] for z in (q, k))
            read = [self.attend(q[t], k[: t + 1], v[: t + 1]) for t in range(n)]
            x = [a + self.linear(b, f"{name}.attention.out") for a, b in zip(x, read, strict=True)]
            if neighbours is not None and f"{name}.cca.q.weight" in self.w:
                h = [self.norm(v, f"{name}.cca.norm") for v in x]
                if encoded is None:
                    encoded = self.encode_all(h, neighbours, mask)
                x = [x[t] + self.cca(f"{name}.cca", h, t, tokens, encoded) for t in range(n)]
            x = [v + self.mlp(self.norm(v, f"{name}.mlp_norm"), f"{name}.mlp") for v in x]
        if s.final_norm:
            x = [self.norm(v, "decoder.norm") for v in x]
        head = self.w["embedding.tokens.weight"] if s.tied else self.w["head.weight"]
        logits = torch.stack([head @ v for v in x])
        if s.copy_output and encoded is not None:
            logits = torch.stack([self.copied(logits[t], x[t], t, tokens, encoded) for t in range(n)])
        return logits

    def agreeing(self, place, t, tokens):
        """How many of the last tokens up to position t are those before a place."""
        count = 0
        while count < min(self.s.copy_context or 8, t + 1, len(place.before)):
            if place.before[-1 - count] != tokens[t - count]:
                break
            count += 1
        return count

    def copied(self, logits, x, t, tokens, encoded):
        """The logits of position t, whose state is x, mixed with what followed the longest match."""
        u, _ = self.chunk_of(t, len(tokens))
        if u is None or not encoded[u]:
            return logits
        matched = [self.agreeing(place, t, tokens) for place in encoded[u]]
        longest = max(matched)
        if longest == 0:
            return logits
        follow = [place.token for place, length in zip(encoded[u], matched, strict=True) if length == longest]
        head = logits - torch.logsumexp(logits, 0)
        agree = follow.count(follow[0]) / len(follow)
        facts = [agree - 1, math.log(len(follow)), torch.clamp(head[follow[0]], min=-16) / 4 + 1]
        gate = self.w["copier.length"][longest - 1] + self.w["copier.state"] @ x / math.sqrt(len(x))
        gate = torch.sigmoid(gate + sum(w * fact for w, fact in zip(self.w["copier.facts"], facts, strict=True)))
        share = torch.tensor([follow.count(v) / len(follow) for v in range(len(logits))], dtype=logits.dtype)
        return torch.log((1 - gate) * torch.exp(head) + gate * share)

    def chunk_of(self, t, n):
        """The chunk whose neighbours position t reads, and how far t is from that chunk's last token."""
        if self.s.chunk_alignment == "start":
            u = (t + 1) // self.m - 1
            return (u, t - ((u + 1) * self.m - 1)) if u >= 0 else (None, None)
        first = (n - 1) % self.m
        return ((t - first) // self.m, (t - first) % self.m) if t >= first else (None, None)

    def states_of(self, u, h):
        """The decoder states of chunk u and whether each is real."""
        n, m = len(h), self.m
        if self.s.chunk_alignment == "start" or n % m == 0:
            return h[u * m : (u + 1) * m], [True] * m
        short = n % m
        if u == 0:
            real = [True] * short + [not self.s.mask_padding] * (m - short)
            return h[:short] + [torch.zeros_like(h[0])] * (m - short), real
        start = short + (u - 1) * m
        return h[start : start + m], [True] * m

    def encode_all(self, h, neighbours, mask):
        """For each chunk: the places in its neighbours that may be read."""
        chunks = {self.chunk_of(t, len(h))[0] for t in range(len(h))} - {None}
        out = {}
        for u in chunks:
            out[u] = []
            for j, row in enumerate(neighbours[u]):
                real = [True] * len(row) if mask is None else mask[u][j]
                if not any(real):
                    continue
                if not self.s.mask_padding:
                    real = [True] * len(row)
                states = self.encode(row, real, *self.states_of(u, h))
                shown = [token if real[p] else None for p, token in enumerate(row)]
                out[u] += [Place(p, states[p], row[p], shown[:p]) for p in range(len(row)) if real[p]]
        return out

    def encode(self, row, real, chunk, chunk_real):
        s, w = self.s, self.w
        table = w["embedding.tokens.weight"] if s.shared_embeddings else w["encoder.embedding.weight"]
        x = [table[t] for t in row]
        if s.encoder_positions == "learned":
            where = "embedding.positions.weight" if s.shared_embeddings else "encoder.positions.weight"
            x = [v + w[where][p] for p, v in enumerate(x)]
        if "encoder.input.weight" in w:
            x = [w["encoder.input.weight"] @ v for v in x]
        width = len(x[0])
        size = s.width // s.heads
        heads = s.encoder_heads or next(a for a in range(max(1, width // size), 0, -1) if width % a == 0)
        rope = s.encoder_positions == "rope"
        seen = [p for p in range(len(row)) if real[p]]
        for i in range(s.encoder_layers):
            name = f"encoder.layers.{i}"
            q, k, v = zip(
                *(self.qkv(self.norm(y, f"{name}.attention_norm"), name, heads, heads) for y in x),
                strict=True,
            )
            if rope:
                q, k = ([[self.turn(a, p) for a in y] for p, y in enumerate(z)] for z in (q, k))
            read = [self.attend(y, [k[p] for p in seen], [v[p] for p in seen]) for y in q]
            x = [a + self.linear(b, f"{name}.attention.out") for a, b in zip(x, read, strict=True)]
            if i + 1 in s.encoder_cross_attention:
                y = [self.norm(a, f"{name}.cross_norm") for a in x]
                base = y if s.encoder_residual == "normed" else x
                x = [
                    a + self.cross(f"{name}.cross", b, p, heads, chunk, chunk_real)
                    for p, (a, b) in enumerate(zip(base, y, strict=True))
                ]
            x = [a + self.mlp(self.norm(a, f"{name}.mlp_norm"), f"{name}.mlp") for a in x]
        return [self.norm(a, "encoder.norm") for a in x] if s.encoder_final_norm else x

    def cross(self, name, y, place, heads, chunk, chunk_real):
        rope = self.s.encoder_positions == "rope"
        q = self.linear(y, f"{name}.q").chunk(heads)
        kv = [self.linear(c, f"{name}.kv").chunk(2 * heads) for c in chunk]
        k, v = [a[:heads] for a in kv], [a[heads:] for a in kv]
        if rope:
            q = [self.turn(a, place) for a in q]
            k = [[self.turn(a, p) for a in y] for p, y in enumerate(k)]
        real = [p for p, yes in enumerate(chunk_real) if yes]
        return self.linear(self.attend(q, [k[p] for p in real], [v[p] for p in real]), f"{name}.out")

    def cca(self, name, h, t, tokens, encoded):
        s = self.s
        u, offset = self.chunk_of(t, len(h))
        if u is None or not encoded[u]:
            return torch.zeros_like(h[t])
        heads = s.cca_heads or s.heads
        groups = s.cca_kv_heads or heads
        q = list(self.linear(h[t], f"{name}.q").chunk(heads))
        kv = [self.linear(place.state, f"{name}.kv").chunk(2 * groups) for place in encoded[u]]
        k, v = [list(a[:groups]) for a in kv], [list(a[groups:]) for a in kv]
        places = [place.at for place in encoded[u]]
        if s.cca_positions == "rope":
            q = [self.turn(a, offset + self.m - 1) for a in q]
            k = [[self.turn(a, p) for a in y] for p, y in zip(places, k, strict=True)]
        bias = [torch.zeros(heads, dtype=h[t].dtype)] * len(k)
        if s.cca_positions == "relative":
            bias = [self.w[f"{name}.relative"][:, offset - p + self.r - 1] for p in places]
        if s.cca == "copy-ready":
            table = self.w["embedding.tokens.weight"]
            for i, place in enumerate(encoded[u]):
                agreeing = self.agreeing(place, t, tokens)
                bias[i] = bias[i] + self.w[f"{name}.match"][:, :agreeing].sum(1)
                own = table[place.token] / torch.sqrt((table[place.token] ** 2).mean() + 1e-6)
                v[i] = [a + b for a, b in zip(v[i], own.chunk(groups), strict=True)]
        if s.cca_null:
            bias = [*bias, torch.full((heads,), math.log(len(k)), dtype=h[t].dtype)]
            k.append(list(self.w[f"{name}.null"]))
            v.append([torch.zeros_like(a) for a in v[0]])
        read = self.attend(q, k, v, bias)
        if s.cca_gate == "token":
            parts = read.chunk(heads)
            gates = self.linear(h[t], f"{name}.gate")
            gates = [torch.sigmoid(gates[a] + parts[a] @ self.w[f"{name}.gate_read"][a]) for a in range(heads)]
            read = torch.cat([g * part for g, part in zip(gates, parts, strict=True)])
        read = self.linear(read, f"{name}.out")
        return read * torch.tanh(self.w[f"{name}.gate"]) if s.cca_gate == "layer" else read

    def attend(self, q, keys, values, bias=None):
        """q: head vectors; keys, values: for each position, group vectors -> the heads' means, joined."""
        out = []
        for a, query in enumerate(q):
            group = a * len(keys[0]) // len(q)
            scores = torch.stack([query @ key[group] / math.sqrt(len(query)) for key in keys])
            if bias is not None:
                scores = scores + torch.stack([b[a] for b in bias])
            scores = torch.exp(scores - scores.max())
            out.append(sum(p * value[group] for p, value in zip(scores / scores.sum(), values, strict=True)))
        return torch.cat(out)

    def qkv(self, y, name, heads, groups):
        parts = self.linear(y, f"{name}.attention.qkv").chunk(heads + 2 * groups)
        return parts[:heads], parts[heads : heads + groups], parts[heads + groups :]

    def linear(self, y, name):
        out = self.w[f"{name}.weight"] @ y
        return out + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else out

    def norm(self, y, name):
        if self.s.norm == "rmsnorm":
            return y / torch.sqrt((y * y).mean() + self.s.norm_eps) * self.w[f"{name}.weight"]
        y = y - y.mean()
        y = y / torch.sqrt((y * y).mean() + self.s.norm_eps)
        return y * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, y, name):
        y = self.linear(y, f"{name}.up")
        if self.s.activation == "swiglu":
            gate, y = y.chunk(2)
            y = gate / (1 + torch.exp(-gate)) * y
        elif self.s.activation == "gelu":
            y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
        elif self.s.activation == "squared_relu":
            y = torch.where(y > 0, y * y, 0.0)
        else:
            y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        return self.linear(y, f"{name}.down")

    def turn(self, a, position):
        """Rotate pairs (i, i + half) of the first features of a head by position / base^(2 i / rotated)."""
        rotated = 2 * (int(len(a) * self.s.rope_fraction) // 2)
        out, half = list(a), rotated // 2
        for i in range(half):
            angle = position / self.s.rope_base ** (2 * i / rotated)
            c, s = math.cos(angle), math.sin(angle)
            out[i], out[i + half] = a[i] * c - a[i + half] * s, a[i + half] * c + a[i] * s
        return torch.stack(out)
