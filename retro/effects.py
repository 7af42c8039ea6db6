"""Whether a top-level statement acts when its module is imported: whether it does more than to define its names.

Such a statement always counts; any other counts where one of its names is looked up. Whatever is not known to be
without effect is taken to act, as is every call of a function or class of this package.
"""

import ast
from collections.abc import Callable, Iterator

from retro.texts import DEFINITIONS, called, walk

# What may be called and leaves no trace: it only makes the value that it returns.
INERT = {
    *("bytes", "dict", "enumerate", "float", "frozenset", "int", "len", "list", "range", "set", "sorted", "str"),
    *(
        "super",
        "tuple",
        "type",
        "zip",
        "format",
        "fromkeys",
        "items",
        "join",
        "split",
        "maketrans",
        "compile",
        "cache",
        "cached_property",
    ),
    *("classmethod", "contextmanager", "dataclass", "field", "lru_cache", "property", "setter", "staticmethod"),
    *("TypeVar", "Struct", "Path", "resolve", "read_text", "ignore_patterns", "dtype", "float32", "uint64"),
    *("device", "inference_mode", "no_grad", "ConfigDict", "Field", "PrivateAttr", "field_validator"),
    *("model_validator", "FuncFormatter", "Markup"),
}
HOOKS = {"__init_subclass__", "__pydantic_init_subclass__"}  # run wherever a class is derived


def acts(node: ast.stmt, own: Callable[[str], bool]) -> bool:
    """Whether a statement acts; `own` says of a name whether it stands for something of this package."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(part, ast.Attribute | ast.Subscript) for target in targets for part in walk(target)):
            return True
    elif not isinstance(node, DEFINITIONS) or (isinstance(node, ast.ClassDef) and node.keywords):
        return True
    return any(called(function) not in INERT or own(_first(function)) for function in _run(node))


def _run(node: ast.AST) -> Iterator[ast.expr]:
    """What is called when a statement runs: of a function its decorators and in its defaults, nothing inside it."""
    inside = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        inside = [*node.args.defaults, *filter(None, node.args.kw_defaults), *getattr(node, "decorator_list", ())]
    if isinstance(node, DEFINITIONS):
        yield from (decorator for decorator in node.decorator_list if not isinstance(decorator, ast.Call))
    elif isinstance(node, ast.Call):
        yield node.func
    for part in inside:
        yield from _run(part)


def _first(node: ast.expr) -> str:
    """The name that an expression begins with, empty if there is none."""
    return next((part.id for part in walk(node) if isinstance(part, ast.Name)), "")
