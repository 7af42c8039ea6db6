"""The rate of a plain matrix product: the yardstick that speed is told by."""

import time
from collections.abc import Callable

import torch

FP32_SIZE, GPU_SIZE = 1024, 8192


def gemm_rate(
    device: torch.device,
    precision: str = "fp32",
    *,
    size: int | None = None,
    repeats: int = 3,
    clock: Callable[[], float] | None = None,
) -> float:
    """Floating-point operations a second of square `torch.mm`, best of `repeats`, by `clock`.

    By default the clock is this thread's processor time, so that a busy machine does not look slow; on a GPU wall
    time. Runs with this process's threads, takes about a tenth of a second and draws no random numbers.
    """
    kind = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    clock = clock or (time.perf_counter if device.type == "cuda" else time.thread_time)
    size = size or (GPU_SIZE if device.type == "cuda" else FP32_SIZE)
    a = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(kind)
    b = a.t().contiguous()
    best = float("inf")
    for _ in range(repeats + 1):  # one more, as the first also warms up
        start = _now(device, clock)
        torch.mm(a, b)
        best = min(best, _now(device, clock) - start)
    return 2 * size**3 / best


def _now(device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
