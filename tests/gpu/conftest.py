"""What a GPU computes beside a CPU in float64. `make test-gpu` says cuda; without it the same tests run on a CPU.

They end within 8 minutes: what would begin later than 7 is skipped, and named in pytest's summary.
"""

import os
import time

import pytest
import torch

MINUTES = 7
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
begun = time.monotonic()


@pytest.fixture(autouse=True)
def in_time():
    if time.monotonic() - begun > 60 * MINUTES and os.environ.get("RETRO_DEVICE"):
        pytest.skip(f"left out: {MINUTES} minutes are over")


@pytest.fixture(scope="session")
def device():
    """Where to compute. A GPU that was asked for and is not there is an error, no skip."""
    found = torch.device(os.environ.get("RETRO_DEVICE", "cpu"))
    if found.type == "cuda":
        assert torch.cuda.is_available(), "RETRO_DEVICE is cuda, and PyTorch finds no GPU"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return found
