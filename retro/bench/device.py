"""What a GPU does at this project's work: training steps, encoders, faiss. `make bench-gpu` on a machine that has one.

    python -m retro.bench.device --device cuda --output gpu.json
    retro plan config/mine.yaml --measured gpu.json

Rows are measured one after another until the time is up; what is then left is named. Models have initial weights, and
read random tokens: nothing is downloaded. `--device cpu --small` is the same code at a toy size.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from retro.base import command, provenance
from retro.base.artifacts import write_text
from retro.base.log import say
from retro.base.machine import gemm_rate
from retro.base.stage import UserError, above, whole
from retro.bench.preprocessing import clustered
from retro.database.engines import open_engine
from retro.database.settings import EncoderSettings
from retro.model.build import Architecture, build_model
from retro.model.count import flops_per_token
from retro.model.settings import ModelSettings
from retro.planning.estimates import ITERATIONS
from retro.planning.memory import Work
from retro.planning.trial import preset
from retro.retrieval import factory
from retro.retrieval.settings import IndexSettings
from retro.training.distribution import World
from retro.training.optimizer import build_optimizer
from retro.training.parallel import parallelize
from retro.training.settings import ParallelSettings, TrainSettings

# Shapes of encoders; a BERT-large embeds a chunk with some thirteen times the operations of MiniLM.
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TOY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
COMPILING = 60.0  # seconds that compiling a step is given, at least
PIECES = 72  # word pieces of a chunk of 64 tokens
Row = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """Where it is measured, and at which size."""

    device: torch.device
    small: bool
    peak: float  # operations a second of a plain matrix product, bf16 on a GPU

    def ready(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """The shortest of some times that `work` takes, after once to warm up."""
        best = float("inf")
        for round_ in range(repeats + 1):
            self.ready()
            start = time.perf_counter()
            work()
            self.ready()
            if round_:
                best = min(best, time.perf_counter() - start)
        return best


def train(machine: Machine, architecture: Architecture, compiled: bool, recompute: str) -> Row:
    """A micro-batch of the 857m preset, forward, backward and optimizer step, as `retro.training` has them."""
    settings, work = shape(machine.small, recompute)
    model = build_model(settings, architecture=architecture, seed=1, **work.lengths).to(machine.device).train()
    parts = parallelize(model, World(0, 1, machine.device), ParallelSettings(), recompute, work.precision)
    forward = torch.compile(model) if compiled else model
    optimizer = build_optimizer(parts, TrainSettings())
    b, retro = work.micro_batch, architecture == "retro"
    generator = torch.Generator().manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randint(work.vocab_size, size, generator=generator).to(machine.device)

    tokens, targets = random(b, work.seq_length), random(b, work.seq_length)  # (b, n) each
    near = random(b, work.seq_length // work.chunk_length, work.neighbours, work.retrieved_length)  # (b, l, k, r)
    given = (near, torch.ones_like(near, dtype=torch.bool)) if retro else (None, None)

    def step() -> None:
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=work.precision == "bf16"):
            losses = forward(tokens, *given, targets)
        losses.mean().backward()
        optimizer.step()
        parts.drop_gradients()

    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)
    seconds = machine.seconds(step, 2 if machine.small else 5)
    flops = flops_per_token(
        settings, architecture=architecture, **work.lengths, neighbours=work.neighbours if retro else 0
    )
    rate = b * work.seq_length / seconds
    found: Row = {"tokens_per_s": round(rate, 1), "flops_per_s": rate * flops}
    found["mfu"] = round(rate * flops / machine.peak, 4)  # of a plain product's rate, as in a training's metrics
    if machine.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(machine.device)
    return {"model": architecture, "compiled": compiled, "recompute": recompute, "micro_batch": b, **found}


def shape(small: bool, recompute: str) -> tuple[ModelSettings, Work]:
    """The 857m preset and its micro-batch, or a toy of the same flavour."""
    settings, work = preset("857m", 50304, recompute)
    work = replace(work, micro_batch=4, precision="bf16", recompute=recompute)
    if not small:
        return settings, work
    settings = ModelSettings(flavour="megatron", layers=2, width=32, heads=2, dropout=0.1)
    return settings, replace(
        work, micro_batch=1, vocab_size=128, seq_length=64, chunk_length=16, retrieved_length=32, precision="fp32"
    )


def embed(machine: Machine, name: str, sizes: dict[str, int], batch: int) -> Row:
    """Chunks a second of an encoder's engine, word pieces in, hidden states out; weights are random."""
    from transformers import BertConfig, BertModel

    sizes = TOY if machine.small else sizes
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BertConfig(**sizes, vocab_size=30522 // (100 if machine.small else 1))).save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        engine = open_engine(Path(folder), config, EncoderSettings(gpu_dtype="float16"))
        pieces = [*np.random.default_rng(0).integers(0, 300, (2 if machine.small else batch, PIECES))]
        seconds = machine.seconds(lambda: engine(pieces), 2 if machine.small else 10)
    d, ffn = sizes["hidden_size"], sizes["intermediate_size"]
    flops = PIECES * sizes["num_hidden_layers"] * 2 * (4 * d * d + 2 * d * ffn + 2 * PIECES * d)
    rate = len(pieces) / seconds
    return {"model": name, "engine": engine.name, "chunks_per_s": round(rate, 1), "flops_per_s": rate * flops}


def index(machine: Machine, name: str, count: int, width: int, lists: int, nprobe: int) -> Row:
    """Vectors a second that faiss trains on, adds and searches for, on the GPUs where it has any."""
    if machine.small:
        count, width, lists, nprobe = 2000, 32, 16, 4
    vectors, settings = clustered(count, width), IndexSettings(nprobe=nprobe)
    built = factory.build(name.format(lists=lists, parts=width // 8), width)
    factory.prepare(built, settings)
    made = factory.to_gpus(built, settings)
    sample, queries = vectors[: 40 * lists], vectors[: count // 10]

    def once(work: Callable[[], object]) -> float:
        machine.ready()
        start = time.perf_counter()
        work()
        machine.ready()
        return time.perf_counter() - start

    found = {
        "trained_per_s": len(sample) / once(lambda: made.train(sample)),
        "added_per_s": count / once(lambda: made.add(vectors)),
    }
    made.search(queries[:8], 10)
    found["searched_per_s"] = len(queries) / once(lambda: made.search(queries, 10))
    found["train_flops_per_s"] = found["trained_per_s"] * ITERATIONS * 2 * width * lists
    scanned = nprobe * count / lists * (width // 8 if "PQ" in name else 2 * width)
    flops = found["searched_per_s"] * (2 * width * lists + scanned)
    facts = {"index": name.format(lists=lists, parts=width // 8), "width": width, "vectors": count, "nprobe": nprobe}
    return {**facts, **{key: round(value, 1) for key, value in found.items()}, "flops_per_s": flops}


def trainings(machine: Machine, compiled: bool) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """Training steps, GPT beside RETRO, without and with recomputation."""
    architectures: tuple[Architecture, ...] = ("gpt", "retro")
    for recompute in ("none", "layers"):
        for each in architectures:
            name = f"{each}{', compiled' if compiled else ''}{', layers recomputed' if recompute == 'layers' else ''}"
            yield "train", name, partial(train, machine, each, compiled, recompute)


def rows(machine: Machine) -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """What is measured: kind, name, work. What a plan needs comes first, what takes long to compile last."""
    yield from trainings(machine, False)
    yield "embed", "MiniLM", partial(embed, machine, "MiniLM", MINILM, 512)
    yield "index", "PQ", partial(index, machine, "IVF{lists},PQ{parts}", 2_000_000, 384, 4096, 32)
    yield "index", "Flat", partial(index, machine, "IVF{lists},Flat", 1_000_000, 384, 4096, 32)
    yield "embed", "BERT-large", partial(embed, machine, "BERT-large", BERT_LARGE, 256)
    if not machine.small:
        yield from trainings(machine, True)


def measure(machine: Machine, minutes: float) -> dict[str, Any]:
    """Rows by kind, until the time is up; what failed and what was left out, by name."""
    begun, longest = time.monotonic(), 0.0
    found: dict[str, Any] = {"train": [], "embed": [], "index": [], "failed": {}, "left_out": []}
    for kind, name, work in rows(machine):
        start = time.monotonic()
        least = COMPILING if "compiled" in name else 0.0
        if start - begun + max(longest, least) > 60 * minutes:  # one more as long as the longest would end too late
            found["left_out"].append(f"{kind} {name}")
            continue
        try:
            row = {"name": name, **work()}
            found[kind].append(row)
            told = ", ".join(f"{key} {value:,.4g}" for key, value in row.items() if isinstance(value, float))
            say(f"{kind:6} {name:32} {told}")
        except (RuntimeError, UserError) as error:  # out of memory, or what this GPU or build cannot do
            found["failed"][f"{kind} {name}"] = str(error).strip().splitlines()[0]
            say(f"{kind:6} {name:32} failed: {found['failed'][f'{kind} {name}']}")
        torch.compiler.reset()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - start)
    return {**found, "seconds": round(time.monotonic() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes: whether it works, not how fast it is")
    parser.add_argument("--minutes", type=above, default=7.0, help="begin nothing that would end later (7)")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads (1)")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="JSON to write (gpu.json)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU. Use a machine that has one, or --device cpu --small.")
    # As a training has it (`retro.training.distribution`).
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    peak = gemm_rate(device, "bf16", size=256 if options.small else None)
    facts = {"kind": "measured", "device": device.type, "name": name, "threads": options.threads}
    facts |= {"small": options.small, "gemm_flops_per_s": peak, "faiss_gpus": faiss.get_num_gpus()}
    facts |= {"versions": provenance.versions()}
    found = {**facts, **measure(Machine(device, options.small, peak), options.minutes)}
    write_text(options.output, json.dumps(found, indent=1) + "\n")
    left = f"; left out: {', '.join(found['left_out'])}" if found["left_out"] else ""
    print(f"{name}: {found['seconds']:.0f} s{left} → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
