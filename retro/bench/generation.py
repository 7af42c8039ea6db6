"""How fast a run writes, with retrieval and without: tokens a second, lookups and everything else included.

python -m retro.bench.generation --run results/<dataset>/runs/retro-s1
"""

import argparse
import time
from pathlib import Path

from retro.base import stage
from retro.base.stage import UserError
from retro.generation.decoding import Sampler
from retro.generation.generate import Writer


def rate(writer: Writer, prompt: str, tokens: int, retrieval: bool) -> tuple[float, int, int]:
    """Tokens a second, tokens written, lookups made. The end of a document does not end the text."""
    began, written, lookups, seed = time.perf_counter(), 0, 0, 0
    while written < tokens:
        for event in writer.write(prompt, tokens - written, Sampler(1.0, 0.9, seed), retrieval=retrieval):
            lookups += event["type"] == "lookup"
        written, seed = written + event["tokens"], seed + 1
    return written / (time.perf_counter() - began), written, lookups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path, help="folder of a RETRO run: results/<dataset>/runs/<run>")
    parser.add_argument("--prompt", default="Sri Lanka: Communications", help="text to continue")
    parser.add_argument("--tokens", type=int, default=512, help="tokens to write each time (512)")
    parser.add_argument("--repeats", type=int, default=3, help="times each way, in turns; the fastest counts (3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    options = parser.parse_args()
    for name in ("tokens", "repeats", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: wanted at least 1.")
    writer = Writer(options.run, threads=options.threads)
    if writer.lookup is None:
        raise UserError(f"{options.run}: run {writer.run.name!r} retrieves nothing. Take a retro run.")
    rate(writer, options.prompt, 1, True)  # opens encoder and index
    best: dict[bool, tuple[float, int, int]] = {}
    for _ in range(options.repeats):
        for retrieval in (False, True):
            found = rate(writer, options.prompt, options.tokens, retrieval)
            best[retrieval] = max(best.get(retrieval, found), found)
    for retrieval, name in ((False, "without retrieval"), (True, "with retrieval")):
        speed, written, lookups = best[retrieval]
        print(f"{name:18s} {speed:8.1f} tokens/s  ({written} tokens, {lookups} lookups, {options.threads} threads)")
    print(f"with / without     {best[True][0] / best[False][0]:8.2f}")


if __name__ == "__main__":
    stage.run(main)
