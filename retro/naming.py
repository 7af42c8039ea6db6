"""How things that the config names are called: runs with their seed, fine-tuned runs, rows over everything.

What a name may be, and which words are taken: `retro.config_names`.
"""

import re

ALL = "all"  # the source of rows over all sources; the seed of rows over all seeds
WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME = f"^{WORD}$"  # of whatever the config names
SEEDED = re.compile(r"(?P<run>.+)-s\d+")


def seeded(run: str, seed: int) -> str:
    """What a run of the config is called when it is trained with a seed: its folder, `retro-s1`."""
    return f"{run}-s{seed}"


def unseeded(name: str) -> str:
    """What the run is called in the config; a name without a seed is that already."""
    found = SEEDED.fullmatch(name)
    return found["run"] if found else name


def tuned(name: str, tuning: str) -> str:
    """What a trained run is called when it was fine-tuned, `retro-s1-qa`; `tuning` is the config's qa.name."""
    return f"{name}-{tuning}"


def untuned(name: str, tuning: str) -> str:
    """What the run is called that was fine-tuned."""
    return name.removesuffix(f"-{tuning}")
