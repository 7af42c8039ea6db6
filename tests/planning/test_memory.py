"""The memory plan beside what small models really hold: every storage PyTorch makes, and two processes' shards."""

import os
import socket
import weakref

import pytest
import torch
import torch.multiprocessing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retro.model.build import build_model
from retro.model.settings import ModelSettings
from retro.planning.memory import Work, fit, step
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
    state = [tensor for parameter in model.parameters() for tensor in optimizer.state(parameter).values()]
    known = [*model.parameters(), *(p.grad for p in model.parameters()), *state, tokens, targets]
    with Allocated([*known, *(() if mask is None else (neighbours, mask))]) as allocated:
        micro_batch()
    return allocated.peak


CASES = {
    "gpt": ("gpt", {}),
    "paper": ("retro", {"encoder_width": 32}),
    "megatron": ("retro", {"flavour": "megatron", "encoder_dropout": 0.0}),
    "swiglu": ("retro", {"activation": "swiglu", "flavour": "megatron", "encoder_dropout": 0.0, "positions": "rope"}),
    "copy-ready": ("retro", {"flavour": "copy-ready", "encoder_width": 32, "copy_output": True}),
}


@pytest.mark.parametrize("recompute", ["none", "layers"])
@pytest.mark.parametrize(
    "name, precision", [*((name, "fp32") for name in CASES), ("paper", "bf16"), ("megatron", "bf16")]
)
def test_the_peak_is_what_pytorch_allocates(name, precision, recompute):
    architecture, fields = CASES[name]
    settings = ModelSettings(layers=12, width=64, heads=4, **fields)
    work = Work(2, **SHAPE, neighbours=2, precision=precision, recompute=recompute)
    planned = step(settings, architecture, work).total
    assert planned == pytest.approx(measured(settings, architecture, work), rel=0.15)


def held(rank, port, settings, queue):
    """What one of two FSDP processes holds after a step: bytes of its parameters, gradients, moments."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    world = World.start(1)
    for precision in ("fp32", "bf16"):
        model = build_model(settings, architecture="retro", seed=1, **SHAPE)
        parts = parallelize(model, world, ParallelSettings(fsdp=True), "layers", precision)
        optimizer = build_optimizer(parts, TrainSettings())
        tokens = torch.zeros(1, 128, dtype=torch.int64)
        neighbours = torch.zeros(1, 8, 2, 32, dtype=torch.int64)
        with world.autocast(precision):
            losses = model(tokens, neighbours, torch.ones_like(neighbours, dtype=torch.bool), tokens)
        losses.mean().backward()
        gradients = parts.take_gradients()
        optimizer.step()
        moments = [value for p in parts.parameters() for value in optimizer.state(p).values() if value.dim()]
        dtypes = {tensor.dtype for tensor in (*gradients, *moments, *parts.parameters())}
        sizes = [sum(tensor.nbytes for tensor in found) for found in (parts.parameters(), gradients, moments)]
        queue.put((precision, sizes, dtypes == {torch.float32}, losses.isfinite().all().item()))
    world.finish()


@pytest.mark.slow
def test_two_processes_hold_half_of_the_state_in_fp32():
    settings = ModelSettings(layers=6, width=64, heads=4, flavour="megatron")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(held, (port, settings, queue), nprocs=2)
    for _ in range(4):
        precision, found, fp32, finite = queue.get()
        work = Work(1, **SHAPE, neighbours=2, precision=precision, fsdp=True)
        planned = step(settings, "retro", work, ranks=2)
        assert found == pytest.approx([planned.parameters, planned.gradients, planned.optimizer], rel=0.15)
        assert fp32 and finite


def test_the_largest_preset_fits_into_eight_gpus():
    settings = ModelSettings(flavour="megatron", layers=48, width=2560, heads=32)
    work = Work(1, 50304, 2048, 64, 128, neighbours=2, precision="bf16")
    eight, sixteen = (fit(settings, "retro", work, gpus=gpus, limit=32, room=80e9) for gpus in (8, 16))
    assert eight.step.state == pytest.approx(16 * 4_461_291_520 / 8, rel=0.001)
    assert 0 < eight.micro_batch <= sixteen.micro_batch
    for found in (eight, sixteen):
        assert found.step.total <= 0.9 * 80e9 < step(
            settings, "retro", Work(found.micro_batch + 1, 50304, 2048, 64, 128, 2, "bf16", fsdp=True), ranks=found.gpus
        ).total  # fmt: skip
    assert fit(settings, "retro", work, gpus=1, limit=32, room=80e9).micro_batch == 0


def test_a_frozen_decoder_needs_neither_gradients_nor_moments():
    settings, work = ModelSettings(layers=6, width=64, heads=4), Work(1, **SHAPE, neighbours=2)
    whole, part = (step(settings, "retro", work, freeze=freeze) for freeze in (False, True))
    assert part.parameters == whole.parameters and part.optimizer == 2 * part.gradients < whole.optimizer
