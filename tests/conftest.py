"""One thread a process: tests share the machine, and thread counts are part of what makes bytes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
