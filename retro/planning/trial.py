"""One real forward and backward pass of a preset on this machine's CPU, beside what the plan says of it.

    python -m retro.planning.trial 857m --tokens 256

Random tokens and neighbours, initial weights, fp32, layers recomputed unless `--keep`. Weights that have learnt nothing
have a loss of about log(vocabulary).
"""

import argparse
import math
import os
import resource
import time
from dataclasses import replace
from typing import Any

import torch

from retro.base import command
from retro.base.stage import UserError, whole
from retro.config import schema
from retro.model.build import build_model
from retro.model.settings import ModelSettings
from retro.planning.estimates import BASE
from retro.planning.memory import Work, step
from retro.training.distribution import World
from retro.training.parallel import parallelize
from retro.training.settings import ParallelSettings


def preset(name: str, vocab_size: int, recompute: str) -> tuple[ModelSettings, Work]:
    """A preset's RETRO, and the work of one sample in fp32."""
    dataset = {"name": name, "sources": {"corpus": {"path": "corpus"}}}
    found = schema.parse({"preset": name, "dataset": dataset}, f"preset {name}")
    run = next(run for run in found.models().values() if run.retro)
    m, train = found.dataset.chunk_length, run.train
    lengths: dict[str, Any] = {"seq_length": found.dataset.samples.seq_length, "chunk_length": m}
    lengths |= {"retrieved_length": train.retrieved_chunks * m, "vocab_size": vocab_size}
    work = Work(1, **lengths, neighbours=train.neighbours_used, recompute=recompute)
    return run.model, work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", help="a file of config/models, such as 857m")
    parser.add_argument("--tokens", type=whole, default=256, help="of the one sample, a multiple of the chunk length")
    parser.add_argument("--vocab-size", type=whole, default=50304)
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--keep", action="store_true", help="keep activations instead of computing layers again")
    options = parser.parse_args()
    settings, work = preset(options.preset, options.vocab_size, "none" if options.keep else "layers")
    if options.tokens % work.chunk_length or not 0 < options.tokens <= work.seq_length:
        wanted = f"a multiple of {work.chunk_length} up to {work.seq_length}"
        raise UserError(f"--tokens is {options.tokens}; wanted {wanted}.")
    full = step(settings, "retro", work)
    lengths, work = work.lengths, replace(work, seq_length=options.tokens)
    passing = step(settings, "retro", work).activations
    planned = BASE["train"] * 1e6 + full.parameters + full.gradients + passing
    has = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print(f"plan       {planned / 1e9:.2f} GB; {has / 1e9:.1f} GB are free", flush=True)
    if planned > has:
        raise UserError(f"{options.preset}: needs about {planned / 1e9:.1f} GB, {has / 1e9:.1f} GB are free.")

    torch.set_num_threads(options.threads)
    world, start = World(0, 1, torch.device("cpu")), time.perf_counter()
    model = build_model(settings, architecture="retro", seed=1, **lengths)
    parallelize(model, world, ParallelSettings(), work.recompute, "fp32")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"model      {options.preset}: {parameters:,} parameters, made in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    generator = torch.Generator().manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randint(options.vocab_size, size, generator=generator)

    tokens, targets = random(1, options.tokens), random(1, options.tokens)  # (1, n) each
    neighbours = random(1, options.tokens // work.chunk_length, work.neighbours, work.retrieved_length)  # (1, l, k, r)
    start, cpu = time.perf_counter(), time.process_time()
    loss = model(tokens, neighbours, torch.ones_like(neighbours, dtype=torch.bool), targets).mean()
    loss.backward()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    without = sum(parameter.grad is None for parameter in model.parameters())
    print(f"loss       {loss.item():.4f}, log(vocabulary) {math.log(options.vocab_size):.4f}")
    print(f"gradient   norm {norm.item():.3f}, {without} parameters without one")
    print(f"time       {seconds:.1f} s, {cpu:.1f} s of CPU, forward and backward of {options.tokens} tokens")
    print(f"memory     {used / 1e9:.2f} GB at most, {used / 2**30:.2f} GiB; plan {planned / used:.2f} of it")


if __name__ == "__main__":
    command.run(main)
