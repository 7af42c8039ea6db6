"""How fast a model is, told by the rate of a plain matrix product in the same process.

`step` times training steps, GPT and RETRO. `write` tells how many tokens a second a trained run writes, with retrieval
and without, lookups and everything else included.
"""

import argparse
import os
import statistics
import time
from dataclasses import dataclass

import torch

from retro.base import command, provenance, stage
from retro.base.machine import BENCH_SIZE, gemm_rate
from retro.base.stage import UserError, whole
from retro.dataset.named import run_folder
from retro.generation.decoding import Sampler
from retro.generation.generate import Writer
from retro.model.build import Architecture, build_model
from retro.model.count import flops_per_token
from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings
from retro.training.optimizer import build_optimizer
from retro.training.settings import TrainSettings

CHUNK, SEQ, VOCAB, NEIGHBOURS = 64, 512, 8192, 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A model to time, with retrieval or without."""

    name: str
    architecture: Architecture
    retrieval: bool


SHAPE = {"vocab_size": VOCAB, "seq_length": SEQ, "chunk_length": CHUNK, "retrieved_length": 2 * CHUNK}


def untrained(architecture: Architecture, settings: ModelSettings) -> LanguageModel:
    """A model to measure."""
    return build_model(settings, architecture=architecture, seed=1, **SHAPE)


CASES = (Case("gpt", "gpt", False), Case("retro off", "retro", False), Case("retro on", "retro", True))


class Timed:
    """A model with its optimizer and random data, and the times of its steps."""

    def __init__(self, case: Case, settings: ModelSettings, batch: int, compiled: bool):
        self.case = case
        model = untrained(case.architecture, settings)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model = torch.compile(model) if compiled else model
        self.optimizer = build_optimizer(model, TrainSettings())
        self.weights = list(model.parameters())
        self.flops = (
            batch
            * SEQ
            * flops_per_token(
                settings,
                architecture=case.architecture,
                neighbours=NEIGHBOURS if case.retrieval else 0,
                **SHAPE,
            )
        )
        generator = torch.Generator().manual_seed(1)

        def random(*size: int) -> torch.Tensor:
            return torch.randint(VOCAB, size, generator=generator)

        self.tokens, self.targets = random(batch, SEQ), random(batch, SEQ)
        self.neighbours = self.mask = None
        if case.retrieval:
            self.neighbours = random(batch, SEQ // CHUNK, NEIGHBOURS, 2 * CHUNK)
            self.mask = torch.ones(self.neighbours.shape, dtype=torch.bool)
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def step(self) -> None:
        """Do one optimizer step and note what it took."""
        cpu, wall = time.process_time(), time.perf_counter()
        losses = self.model(self.tokens, self.neighbours, self.mask, self.targets)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        for weight in self.weights:
            weight.grad = None
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def bench(settings: ModelSettings, batch: int, steps: int, compiled: bool) -> str:
    """Time all cases alternately and return a table."""
    calibration = [gemm_rate(CPU, size=BENCH_SIZE, clock=time.process_time)]
    timed = [Timed(case, settings, batch, compiled) for case in CASES]
    for model in timed:
        model.step()  # the first step allocates
        model.cpu.clear()
        model.wall.clear()
    for _ in range(steps):
        for model in timed:
            model.step()
    calibration.append(gemm_rate(CPU, size=BENCH_SIZE, clock=time.process_time))
    peak = max(calibration)
    lines = [
        f"torch.mm fp32 {BENCH_SIZE}^3: {calibration[0] / 1e9:.1f} GFLOP per CPU-s before, "
        f"{calibration[1] / 1e9:.1f} after; shares are of the better",
        f"{'model':10} {'parameters':>11} {'CPU-s/step':>10} {'median':>7} {'tokens/CPU-s':>12} "
        f"{'tokens/s':>8} {'of GEMM':>7} {'x gpt':>6} {'FLOP x':>6}",
    ]
    gpt = timed[0]
    for model in timed:
        best = min(model.cpu)
        ratio = statistics.median(a / b for a, b in zip(model.cpu, gpt.cpu, strict=True))
        lines.append(
            f"{model.case.name:10} {model.parameters:11,} {best:10.3f} {statistics.median(model.cpu):7.3f} "
            f"{batch * SEQ / best:12,.0f} {batch * SEQ / min(model.wall):8,.0f} "
            f"{model.flops / best / peak:7.1%} {ratio:6.2f} {model.flops / gpt.flops:6.2f}"
        )
    return "\n".join(lines)


def step_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--batch", type=whole, default=4, help="samples of 512 tokens a step")
    parser.add_argument("--steps", type=whole, default=5, help="steps of each model, after one to warm up")
    parser.add_argument("--layers", type=whole, default=6)
    parser.add_argument("--width", type=whole, default=256)
    parser.add_argument("--encoder-width", type=whole, default=None)
    parser.add_argument("--flavour", choices=["paper", "megatron", "copy-ready"], default="paper")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--peer-shape", action="store_true", help="12 + 2 layers of 256, 8 heads, batch 4")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = {"layers": options.layers, "width": options.width, "heads": max(1, options.width // 32)}
    if options.peer_shape:
        shape, options.batch = {"layers": 12, "width": 256, "heads": 8}, 4
    settings = ModelSettings(**shape, flavour=options.flavour, encoder_width=options.encoder_width)
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{options.flavour}, {settings.layers} layers of {settings.width}, "
        f"encoder {settings.encoder_layers} of {settings.encoder_dim}, batch {options.batch} x {SEQ}, "
        f"vocabulary {VOCAB}, {NEIGHBOURS} neighbours of {2 * CHUNK}\n"
        f"{options.threads} threads, load {load}, {versions}"
    )
    print(bench(settings, options.batch, options.steps, options.compile))


def rate(writer: Writer, prompt: str, tokens: int, retrieval: bool) -> tuple[float, int, int]:
    """Tokens a second, tokens written, lookups made. The end of a document does not end the text."""
    began, written, lookups, seed = time.perf_counter(), 0, 0, 0
    while written < tokens:
        for event in writer.write(prompt, tokens - written, Sampler(1.0, 0.9, seed), retrieval=retrieval):
            lookups += event["type"] == "lookup"
        written, seed = written + event["tokens"], seed + 1
    return written / (time.perf_counter() - began), written, lookups


def write_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=run_folder, help="a RETRO run, by name or folder: retro-s1")
    parser.add_argument("--prompt", default="Sri Lanka: Communications", help="text to continue")
    parser.add_argument("--tokens", type=whole, default=512, help="tokens to write each time (512)")
    parser.add_argument("--repeats", type=whole, default=3, help="times each way, in turns; the fastest counts (3)")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads (1)")
    options = parser.parse_args()
    for name in ("tokens", "repeats", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: wanted at least 1.")
    writer = Writer(options.run, threads=options.threads)
    if writer.lookup is None:
        raise UserError(f"{options.run}: run {writer.run.name!r} retrieves nothing. Take a retro run.")
    rate(writer, options.prompt, 1, True)  # opens encoder and index
    best: dict[bool, tuple[float, int, int]] = {}
    for _ in range(options.repeats):
        for retrieval in (False, True):
            found = rate(writer, options.prompt, options.tokens, retrieval)
            best[retrieval] = max(best.get(retrieval, found), found)
    for retrieval, name in ((False, "without retrieval"), (True, "with retrieval")):
        speed, written, lookups = best[retrieval]
        print(f"{name:18s} {speed:8.1f} tokens/s  ({written} tokens, {lookups} lookups, {options.threads} threads)")
    print(f"with / without     {best[True][0] / best[False][0]:8.2f}")


def main() -> None:
    stage.one_of({"step": step_main, "write": write_main})


if __name__ == "__main__":
    command.run(main)
