"""The machine a stage runs on: the device of a model, and how fast a matrix product is.

The rate of a plain matrix product is the yardstick that speed is told by.
"""

import ctypes
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # numbers of glibc's mallopt


def keep_memory() -> None:
    """Let this process keep up to 1 GiB that it freed, in pieces of at most 32 MiB, instead of giving it back.

    A model on a CPU asks for the same memory in every step: given back, each page comes anew and empty from the system,
    a twentieth of a small training. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 32 << 20)  # the most that it takes
        mallopt(TRIM_THRESHOLD, 1 << 30)


CPU_SIZE, GPU_SIZE, BENCH_SIZE = 1024, 8192, 1536


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
    size = size or (GPU_SIZE if device.type == "cuda" else CPU_SIZE)
    left, right = _operands(size, device, kind)

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    (best,) = _fastest(lambda: torch.mm(left, right), repeats, now)
    return 2 * size**3 / best


def calibrate(threads: int, size: int = BENCH_SIZE, kind: torch.dtype = torch.float32) -> dict[str, float]:
    """Gigaflops per CPU-second, and per second of wall clock, of one product on each of `threads` threads at once.

    For work that is spread so: embedding and search, a batch a thread. Give it as many threads as that has. A product
    takes one core: a new thread has to be told, else it takes all, and waiting for each other counts as work.
    """
    left, right = _operands(size, torch.device("cpu"), kind)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:

        def work() -> None:
            list(pool.map(lambda _: torch.mm(left, right), range(threads)))

        cpu, wall = _fastest(work, 3, time.process_time, time.perf_counter)
    done = 2 * size**3 * threads / 1e9
    return {"gflops_per_cpu_second": round(done / cpu, 1), "gflops": round(done / wall, 1)}


def _operands(size: int, device: torch.device, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    left = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(kind)
    return left, left.t().contiguous()


def _fastest(work: Callable[[], object], repeats: int, *clocks: Callable[[], float]) -> list[float]:
    """The least time that `work` takes by each clock: what the machine can do when nothing disturbs it."""
    best = [float("inf")] * len(clocks)
    for _ in range(repeats + 1):  # one more, as the first also warms up
        start = [clock() for clock in clocks]
        work()
        best = [min(least, clock() - then) for least, clock, then in zip(best, clocks, start, strict=True)]
    return best
