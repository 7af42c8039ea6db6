"""The rate of a plain matrix product: the yardstick for embedding and exact search."""

import time
from concurrent.futures import ThreadPoolExecutor

import torch

SIZE, REPEATS = 1536, 4


def calibrate(threads: int) -> dict[str, float]:
    """Gigaflops per CPU-second, and per second of wall clock, of a matrix product on each of `threads`
    threads.

    The best of some repetitions: what the machine can do when nothing disturbs it.
    """
    torch.set_num_threads(1)
    left, right = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).unbind()
    work = 2 * SIZE**3 * threads / 1e9
    cpu = wall = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            cpu_start, start = time.process_time(), time.perf_counter()
            list(pool.map(lambda _: torch.mm(left, right), range(threads)))
            cpu = min(cpu, time.process_time() - cpu_start)
            wall = min(wall, time.perf_counter() - start)
    return {"gflops_per_cpu_second": round(work / cpu, 1), "gflops": round(work / wall, 1)}
