"""Which code and which packages made an artifact.

A stage is identified by the digest of the definitions that it can reach (`retro.reachable`): functions, classes and
constants, by their syntax trees without comments, docstrings and text for people (`retro.texts`). Borders between
modules do not count: a definition that moves to another module, unchanged, changes no digest. Tests compare what is
reachable with what Python really loads and runs.
"""

import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from retro.reachable import Package

ROOT = Path(__file__).resolve().parent
RECORDED = (
    "numpy", "torch", "faiss", "tokenizers", "sentencepiece", "onnxruntime", "transformers", "pyarrow", "pandas",
    "rensa",
)  # fmt: skip
DISTRIBUTIONS = {"faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss")}


@cache
def package() -> Package:
    """This package, as it lies on disk."""
    return Package(ROOT)


def source_path(module: str) -> Path | None:
    """The file of a module of this package, or None if there is no such module."""
    return package().path(module)


@cache
def closure(module: str) -> tuple[str, ...]:
    """All modules of this package that `module` needs, itself and the packages above them included, sorted."""
    return tuple(sorted(package().imported(module)))


@cache
def digest(module: str) -> str:
    """Sixteen hex digits that change exactly when code changes that `module`, run as a stage, can reach."""
    return package().digest(module)


def version(package: str) -> str | None:
    """The installed version of Python or of a package, None where there is none."""
    if package == "python":
        return ".".join(map(str, sys.version_info[:3]))
    for distribution in DISTRIBUTIONS.get(package, (package,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Versions of Python and of those packages this process has loaded that can change an artifact's bytes."""
    loaded = ["python", *(name for name in RECORDED if name in sys.modules)]
    return {name: found for name in loaded if (found := version(name))}
