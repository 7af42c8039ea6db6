"""Errors a user can act on, and the frame every stage's `main` runs in."""

import errno
import os
import sys
from collections.abc import Callable

# What torch and faiss say, whose errors are plain RuntimeErrors.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "std::bad_alloc")
LESS_MEMORY = (
    "Lower batch sizes (train.micro_batch_size, evaluate.batch_size, dataset.encoder.batch_size), set train.recompute: "
    "layers, or take a larger machine; python -m retro.plan says what is needed."
)


class UserError(Exception):
    """Something the user can put right: says what was found where, what was wanted and the way out."""


def run(main: Callable[[], None]) -> None:
    """Run a stage: a `UserError`, a full disk or memory becomes one message and exit status 1, never a traceback.

    `RETRO_DEBUG=1` in the environment shows the traceback all the same.
    """
    try:
        main()
    except (UserError, OSError) as error:
        if os.environ.get("RETRO_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None and error.errno is None:
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = ". Make room and run again: what was finished is kept." if full else ""
        print(f"error: {error}{way_out}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
        if os.environ.get("RETRO_DEBUG") or not full:
            raise
        reason = str(error).splitlines()[0] if str(error) else "no more is to be had"
        print(f"error: out of memory: {reason}. {LESS_MEMORY}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
