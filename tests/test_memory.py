"""The memory plan beside what a small model really holds: every storage that PyTorch makes, and two processes' shards."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retro.model.build import build_model
from retro.model.settings import ModelSettings
from retro.planning.memory import Work, step
from retro.training.distribution import World
from retro.training.optimizer import build_optimizer
from retro.training.parallel import parallelize
from retro.training.settings import ParallelSettings, TrainSettings

SHAPE = {"vocab_size": 999, "seq_length": 128, "chunk_length": 16, "retrieved_length": 32}


class Allocated(TorchDispatchMode):
    """Bytes of all storages that tensors of this thread's operations live in: now, and at most."""

    def __init__(self, known=()):
        super().__init__()
        self.seen, self.now, self.peak = set(), 0, 0
        for tensor in known:
            self.note(tensor)

    def note(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.seen:
            self.seen.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, key, storage.nbytes())

    def free(self, key, size):
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        return out


def measured(settings, architecture, work):
    """Peak bytes of the second micro batch of a step."""
    model = build_model(settings, architecture=architecture, seed=1, **work.lengths)
    world = World(0, 1, torch.device("cpu"))
    parts = parallelize(model, world, ParallelSettings(), work.recompute, work.precision)
    optimizer = build_optimizer(parts, TrainSettings())
    generator = torch.Generator().manual_seed(1)
    b, n, chunks = work.micro_batch, work.seq_length, work.seq_length // work.chunk_length

    def random(*size):
        return torch.randint(work.vocab_size, size, generator=generator)

    tokens, targets, neighbours, mask = random(b, n), random(b, n), None, None
    if architecture == "retro":
        neighbours = random(b, chunks, work.neighbours, work.retrieved_length)
        mask = torch.ones(neighbours.shape, dtype=torch.bool)

    def micro_batch():
        with world.autocast(work.precision):
            losses = model(tokens, neighbours, mask, targets)
        losses.mean().backward()

    micro_batch()
    optimizer.step()  # the moments
    state = [tensor for group in optimizer.state.values() for tensor in group.values()]
    known = [*model.parameters(), *(p.grad for p in model.parameters()), *state, tokens, targets]
    with Allocated([*known, *(() if mask is None else (neighbours, mask))]) as allocated:
        micro_batch()
    return allocated.peak


CASES = {
    "gpt": ("gpt", {}),
    "paper": ("retro", {"encoder_width": 32}),
    "megatron": ("retro", {"flavour": "megatron", "encoder_dropout": 0.0}),
    "swiglu": ("retro", {"activation": "swiglu", "flavour": "megatron", "encoder_dropout": 0.0, "positions": "rope"}),
    "copy-ready": ("retro", {"flavour": "copy-ready", "encoder_width": 32}),
}


@pytest.mark.parametrize("recompute", ["layers"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_the_peak_is_what_pytorch_allocates(name, precision, recompute):
    architecture, fields = CASES[name]
    settings = ModelSettings(layers=12, width=64, heads=4, **fields)
    work = Work(2, **SHAPE, neighbours=2, precision=precision, recompute=recompute)
    planned = step(settings, architecture, work)
    print(name, precision, recompute, planned.total / measured(settings, architecture, work), planned)
