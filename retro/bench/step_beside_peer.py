"""A training step beside retro-pytorch's at the same shape, measured alternately: `make bench-model`.

Both have 12 decoder and 2 encoder layers of 256 features, 8 heads of 32, chunked cross-attention in layers 6, 9 and
12, 512 tokens a sample, 2 x 128 neighbours, batch 4, a vocabulary of 8192, fp32, and take the same steps: forward,
backward, clipping, AdamW. Theirs looks at the retrieving chunk in every encoder layer, ours in the first as in the
paper. Ratios of CPU-seconds are the result; on a shared machine wall times mean little.
"""

import argparse
import os
import statistics
import sys

import torch

from retro.base import provenance, stage
from retro.base.stage import UserError
from retro.bench.training import CASES, CHUNK, SEQ, VOCAB, Timed
from retro.model.settings import ModelSettings

BATCH = 4


class Peer(Timed):
    """Theirs, timed as ours is. It reads the targets from a sample one token longer, and masks token 0."""

    def __init__(self, settings: ModelSettings):
        super().__init__(CASES[2], settings, BATCH, compiled=False)
        from retro_pytorch import RETRO

        shape = {"enc_dim": 256, "dec_dim": 256, "enc_depth": 2, "dec_depth": 12, "heads": 8, "dim_head": 32}
        theirs = RETRO(num_tokens=VOCAB, max_seq_len=SEQ, chunk_size=CHUNK, dec_cross_attn_layers=(6, 9, 12), **shape)
        self.parameters = sum(parameter.numel() for parameter in theirs.parameters())
        self.optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
        self.weights = list(theirs.parameters())
        tokens = torch.cat([self.tokens, self.targets[:, -1:]], dim=1).clamp(min=1)  # (b, n + 1)
        assert self.neighbours is not None
        neighbours = self.neighbours.clamp(min=1)  # (b, l, k, r)
        self.model = lambda *_: theirs(tokens, neighbours, return_loss=True)


def bench(steps: int) -> str:
    """Time GPT, RETRO and the peer alternately; return a table."""
    settings = ModelSettings(layers=12, width=256, heads=8, cca_layers=(6, 9, 12))
    timed = {case.name: Timed(case, settings, BATCH, False) for case in (CASES[0], CASES[2])}
    timed["retro-pytorch"] = Peer(settings)
    for round_ in range(steps + 1):
        for model in timed.values():
            model.step()
            if not round_:  # the first step allocates
                model.cpu.clear()

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(timed[a].cpu, timed[b].cpu, strict=True))

    lines = [f"{'model':14} {'parameters':>11} {'CPU-s/step':>10} {'median':>7}"]
    for name, model in timed.items():
        lines.append(f"{name:14} {model.parameters:11,} {min(model.cpu):10.3f} {statistics.median(model.cpu):7.3f}")
    lines.append(f"retro on / gpt: {ratio('retro on', 'gpt'):.2f}  (median of {steps} pairs)")
    lines.append(f"retro-pytorch / retro on: {ratio('retro-pytorch', 'retro on'):.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="steps of each model, after one to warm up")
    parser.add_argument("--peer", default=".venv/peer", help="folder where retro-pytorch is installed")
    options = parser.parse_args()
    if not os.path.isdir(f"{options.peer}/retro_pytorch"):
        raise UserError(f"{options.peer}: holds no retro_pytorch; `make bench-model` installs it")
    sys.path.append(options.peer)
    torch.set_num_threads(options.threads)
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f}, {versions}")
    print(bench(options.steps))


if __name__ == "__main__":
    stage.run(main)
