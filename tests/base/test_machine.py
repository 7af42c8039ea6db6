"""The yardstick: operations of a matrix product over the least time that one took, by the clock that is asked for."""

import json
import subprocess
import sys
import threading

import pytest
import torch

from retro.base import machine
from retro.bench import preprocessing

CPU = torch.device("cpu")


def test_the_rate_is_that_of_the_fastest_product_by_the_given_clock():
    times = iter([0, 9, 10, 14, 20, 22, 30, 35])  # before and after each: 9, 4, 2 and 5 seconds
    assert machine.gemm_rate(CPU, size=8, repeats=3, clock=lambda: next(times)) == 2 * 8**3 / 2


def test_the_yardstick_draws_no_random_numbers():
    state = torch.get_rng_state()
    machine.gemm_rate(CPU, size=8)
    machine.calibrate(1, size=8)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_calibration_works_on_as_many_threads_as_what_it_is_held_against(threads, monkeypatch):
    together, seen, told = threading.Barrier(threads), set(), set()
    monkeypatch.setattr(torch, "set_num_threads", lambda count: told.add((threading.get_ident(), count)))

    def product(*_: object) -> None:
        together.wait(timeout=60)  # ends only if so many are at work at once
        seen.add((threading.get_ident(), 1))

    monkeypatch.setattr(torch, "mm", product)
    machine.calibrate(threads, size=8)
    assert len(seen) == threads and seen <= told  # a thread that is not told has all cores


@pytest.mark.parametrize(("chunks", "rounds"), [(16, 8), (3, 3)])
def test_each_round_of_embedding_stands_between_two_calibrations(chunks, rounds, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        preprocessing, "calibrate", lambda threads, kind: asked.append(threads) or {"gflops_per_cpu_second": 1.0}
    )
    arguments = ["--chunks", str(chunks), "--threads", "2", "--encoder", '{"type": "static", "width": 8}']
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    preprocessing.embedding_main()
    assert asked == [2] * (rounds + 1)
    assert json.loads(capsys.readouterr().out)["chunks"] == chunks


ASKING = """
import resource, sys
import numpy as np
from retro.base.machine import keep_memory

if sys.argv[1] == "keep":
    keep_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(3 << 20) for _ in range(3)]  # 24 MiB each, freed when this ends
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([faults() for _ in range(3)][-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", ASKING, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "give")
    )
    assert kept < 50 < 500 < given_back
