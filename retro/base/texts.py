"""Text for people, dropped from a syntax tree: what a person is told changes no artifact.

Dropped are docstrings, what `description` and `help` say of settings and arguments, the messages of errors, of
assertions and of the log, and the labels of progress bars. What stands in a message is dropped with it as long as it
only formats: names, attributes, operators, the functions and methods listed here, and functions of its module that
do nothing else. Any other call stays, and so does that something is raised, said or shown, its kind and its condition.

`Malformed` and `Damaged` are not among the errors: their reason is listed in skipped.jsonl, so that it is a result. A
message that a stage would keep in any other way would be one too; a test finds who looks into the text of an error.
"""

import ast
from collections.abc import Callable, Iterator

ERRORS = {"UserError", "WorkflowError", "ValueError", "TypeError", "ArgumentTypeError", "AssertionError"}
# Calls that take text, and from which positional argument on.
TAKES = dict.fromkeys(ERRORS, 0) | {"_broken": 0, "say": 0, "warn": 0, "bar": 1, "track": 2, "waiting": 0}
DESCRIBES = {"Field", "ArgumentParser", "add_argument", "add_argument_group", "add_parser", "add_subparsers"}
DESCRIPTIONS = {"description", "help", "title", "epilog", "usage", "metavar"}
# Calls that only look and format: of functions by their names, of methods.
FUNCTIONS = {
    *("abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "format", "int", "isinstance", "len"),
    *("list", "map", "max", "min", "range", "repr", "round", "set", "sorted", "str", "sum", "tuple", "type", "zip"),
}
METHODS = {
    *("as_posix", "cwd", "format", "get", "getcwd", "items", "join", "keys", "lower", "lstrip", "partition"),
    *("relative_to", "removeprefix", "removesuffix", "replace", "rpartition", "rstrip", "split", "splitlines"),
    *("strip", "upper", "values", "with_name", "with_suffix"),
}
DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Found = Callable[[str], ast.stmt | None]  # the definition a name of the module stands for


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of a tree, as `ast.walk` but a node before what is in it, and several times as fast."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                waiting += [each for each in value if isinstance(each, ast.AST)]
            elif isinstance(value, ast.AST) and field != "ctx":
                waiting.append(value)


def drop_texts(tree: ast.AST, found: Found) -> None:
    """Drop the texts of a tree, in place."""
    for node in walk(tree):
        if isinstance(node, ast.Module | DEFINITIONS):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
            if isinstance(node, ast.ClassDef) and ERRORS & {called(base) for base in node.bases}:
                for call in walk(node):
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
                        call.args = _kept(call.args, found)
        elif isinstance(node, ast.Call):
            _drop_arguments(node, found)
        elif isinstance(node, ast.Assert) and node.msg is not None:
            kept = _kept([node.msg], found)
            node.msg = ast.Tuple(kept, ast.Load()) if kept else None


def _drop_arguments(call: ast.Call, found: Found) -> None:
    name = called(call.func)
    first = TAKES.get(name)
    if name in ("bar", "track", "waiting") and isinstance(call.func, ast.Attribute):
        first = first if ast.unparse(call.func.value) == "log" else None  # others draw
    if name == "print" and any(
        word.arg == "file" and ast.unparse(word.value) == "sys.stderr" for word in call.keywords
    ):
        first = 0
    if first is not None:
        call.args[first:] = _kept(call.args[first:], found)
    elif name in DESCRIBES:
        told = [word for word in call.keywords if word.arg in DESCRIPTIONS]
        call.keywords = [word for word in call.keywords if word.arg not in DESCRIPTIONS]
        call.args += _kept([word.value for word in told], found)


def called(node: ast.expr) -> str:
    """The last name of what is called: `join` of `", ".join`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _kept(texts: list[ast.expr], found: Found) -> list[ast.expr]:
    """What of some texts is more than text: the calls that may do something, in their order."""
    return [part for text in texts for part in _doing(text, found)]


def _doing(node: ast.expr | ast.keyword, found: Found) -> Iterator[ast.expr]:
    if not any(_does(part, found) for part in walk(node)):
        return
    if isinstance(node, ast.JoinedStr | ast.FormattedValue | ast.BinOp | ast.Attribute | ast.Subscript | ast.Tuple):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from _doing(child, found)
    elif isinstance(node, ast.Call) and not _does(node, found):
        inside: list[ast.expr | ast.keyword] = [node.func, *node.args, *node.keywords]
        for part in inside:
            yield from _doing(part, found)
    else:
        yield node.value if isinstance(node, ast.keyword) else node


def _does(node: ast.AST, found: Found) -> bool:
    """Whether an expression does more than to look and to format, the expressions inside it aside."""
    if isinstance(node, ast.Call):
        return not _formats(node, found, ())
    return isinstance(node, ast.Await | ast.Yield | ast.YieldFrom | ast.NamedExpr)


def _formats(call: ast.Call, found: Found, inside: tuple[str, ...]) -> bool:
    """Whether a call makes a value of its arguments and does nothing else, nor any function it is handed."""
    name = called(call.func)
    if name == "join" and not isinstance(getattr(call.func, "value", None), ast.Constant):
        return False  # of what is no string
    handed = [word.value for word in call.keywords if word.arg == "key"] + (call.args[:1] if name == "map" else [])
    for function in [call.func, *handed]:
        if isinstance(function, ast.Lambda):
            continue  # what it calls is looked at as what stands in the message
        definition = found(function.id) if isinstance(function, ast.Name) else None
        if definition is not None:
            if not _only_formats(definition, found, inside):
                return False
        elif called(function) not in (FUNCTIONS if isinstance(function, ast.Name) else METHODS):
            return False
    return True


def _only_formats(definition: ast.stmt, found: Found, inside: tuple[str, ...]) -> bool:
    """Whether a function of this module returns what it makes of its arguments and changes nothing."""
    if not isinstance(definition, ast.FunctionDef) or definition.decorator_list or definition.name in inside:
        return False
    for node in (part for statement in definition.body for part in walk(statement)):
        if isinstance(node, ast.Call):
            if not _formats(node, found, (*inside, definition.name)):
                return False
        elif isinstance(node, ast.stmt):
            if not isinstance(node, ast.Return | ast.If | ast.Expr | ast.Assign):
                return False
        elif isinstance(node, ast.Attribute | ast.Subscript):
            if not isinstance(node.ctx, ast.Load):
                return False
        elif isinstance(node, ast.Await | ast.Yield | ast.YieldFrom):
            return False
    return True
