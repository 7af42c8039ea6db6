"""Which code and which packages made an artifact.

A stage is identified by the digest of the syntax trees, docstrings dropped, of every module of this package
that its module imports, directly or not. Comments, docstrings, formatting and time stamps do not count; a
changed constant anywhere in that closure does. Imports are read, not executed, so nothing here may be
imported by tricks (`importlib`, `__import__`): a test compares the closure with what Python really loads.
"""

import ast
import hashlib
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = "retro"
ROOT = Path(__file__).resolve().parent
RECORDED = (
    "numpy", "torch", "faiss", "tokenizers", "sentencepiece", "onnxruntime", "transformers", "pyarrow", "pandas",
    "rensa",
)  # fmt: skip
DISTRIBUTIONS = {"faiss": ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss")}


def source_path(module: str) -> Path | None:
    """The file of a module of this package, or None if there is no such module."""
    base = ROOT.joinpath(*module.split(".")[1:])
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


@cache
def _tree(module: str) -> ast.Module:
    """The syntax tree of a module, docstrings dropped."""
    path = source_path(module)
    assert path is not None, module
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return tree


def _imports(module: str) -> set[str]:
    """Modules of this package that `module` names in an import statement, wherever it stands."""
    path = source_path(module)
    assert path is not None, module
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == PACKAGE and source_path(name)}


@cache
def closure(module: str) -> tuple[str, ...]:
    """All modules of this package that `module` needs, itself and the packages above them included, sorted."""
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        waiting.extend(_imports(name) | ({parent} if parent else set()))
    return tuple(sorted(seen))


@cache
def digest(module: str) -> str:
    """Sixteen hex digits that change exactly when code that `module` can run changes."""
    total = hashlib.sha256()
    for name in closure(module):
        total.update(f"{name}\0{ast.dump(_tree(name))}\0".encode())
    return total.hexdigest()[:16]


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
