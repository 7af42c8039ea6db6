"""The top-level statements of a module: what each defines, what it refers to, and whether its import alone counts.

A name may be defined by several statements; all of them are its definition. Names are looked up as Python does it: a
local variable of a function is none of the module's, whatever its name (`symtable` knows).
"""

import ast
import symtable
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from retro.effects import HOOKS, acts
from retro.texts import DEFINITIONS, called, drop_texts, walk

PACKAGE = "retro"
Chain = tuple[str, ...]  # a name and the attributes looked up from it: np.lib.format is ("np", "lib", "format")


class Statement:
    """A top-level statement and the names it defines. `imported`: what imports inside it bind, as `Module.bound`.

    `acts`: whether it counts as soon as its module is imported.
    """

    def __init__(self, module: "Module", node: ast.stmt, names: set[str], imported: dict[str, list[str]]):
        self.module, self.node, self.names, self.imported = module, node, names, imported
        self.acts = False

    @cached_property
    def _told(self) -> tuple[str, set[Chain]]:
        """Its syntax tree as text, and the names in it: without texts, and without where its imports find modules."""
        drop_texts(self.node, self.module.found)
        for node in walk(self.node) if self.imported else ():
            if isinstance(node, ast.ImportFrom) and ours(self.module.base(node)):
                node.module, node.level = None, 0
        return told(self.node)

    @property
    def code(self) -> str:
        """Its syntax tree as text, without texts for people."""
        return self._told[0]

    @cached_property
    def chains(self) -> list[Chain]:
        """What it looks up outside itself, sorted."""
        visible, found = self.module.visible(self.node), self._told[1]
        if visible is not None:
            found = {each for each in found if each[0] in visible or each[0] in self.imported}
        return sorted(found.union(*(told(each)[1] for each in quoted(self.node))))


class Module:
    """A module of the package, read from a file.

    `needs`: modules its imports may name, in their order. `bound`: names that its top-level imports bind, and the
    dotted names they stand for. `defined`: what its other names stand for. `hooks`: whether a class in it may act when
    another class is derived. `doc`: its docstring.
    """

    def __init__(self, name: str, path: Path):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, filename=str(path))
        self.name, self.package = name, name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.doc = ast.get_docstring(tree, clean=False)
        self.needs: dict[str, None] = {}
        self.bound: dict[str, list[str]] = {}
        self.defined: dict[str, list[Statement]] = {}
        self.statements: list[Statement] = []
        self.hooks = False
        self._tables = symtable.symtable(source, str(path), "exec").get_children()
        self._used: set[str] = set()
        imports = [found for node in tree.body if (found := self._read(node)) is not None]
        for statement, names in imports:
            for each, dotted in names.items():
                self.bound.setdefault(each, []).extend(dotted)
            if not self._used & set(names) and not all(ours(dotted[0]) for dotted in names.values()):
                self.statements.append(statement)  # nothing here uses it: it is imported for what that does
        for statement in self.statements:
            statement.acts = acts(statement.node, self.own)

    def _read(self, node: ast.stmt) -> tuple[Statement, dict[str, list[str]]] | None:
        """Note a top-level statement. Returns it, and what it binds, if it imports something into the module."""
        inside: dict[str, list[str]] = {}
        into = not isinstance(node, DEFINITIONS)
        for part in walk(node):
            if isinstance(part, ast.Name):
                self._used.add(part.id)
            elif isinstance(part, ast.Import | ast.ImportFrom):
                self._bind(part, inside)
            elif isinstance(part, ast.FunctionDef):
                self.hooks |= part.name in HOOKS
            elif isinstance(part, ast.ClassDef):
                self.hooks |= "type" in map(called, part.bases)  # a metaclass
            elif isinstance(part, ast.Global):
                into = True
        if isinstance(node, ast.Import | ast.ImportFrom):
            return Statement(self, node, set(), {}), inside
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return None
        statement = Statement(self, node, defines(node), inside)
        self.statements.append(statement)
        for name in statement.names:
            self.defined.setdefault(name, []).append(statement)
        self._used |= set(inside)
        return (statement, inside) if into and inside else None

    def base(self, node: ast.ImportFrom) -> str:
        """The module that a `from` names."""
        above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
        return ".".join([*above, *([node.module] if node.module else [])])

    def _bind(self, node: ast.Import | ast.ImportFrom, names: dict[str, list[str]]) -> None:
        """Note what an import statement needs, and in `names` what it binds."""
        base = self.base(node) if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            dotted = f"{base}.{alias.name}" if base else alias.name
            self.needs |= dict.fromkeys([base, dotted] if base else [dotted])
            name = alias.asname or (alias.name if base else alias.name.split(".")[0])
            whole = base or alias.asname or not ours(dotted)  # `import retro.a` binds `retro`
            names.setdefault(name, []).append(dotted if whole else PACKAGE)

    def own(self, name: str) -> bool:
        """Whether a name stands for something of the package."""
        return name in self.defined or any(map(ours, self.bound.get(name, ())))

    def found(self, name: str) -> ast.stmt | None:
        """The statement that a name stands for: its last definition here, or something imported from the package."""
        if name in self.defined:
            return self.defined[name][-1].node
        return ast.Pass() if self.own(name) else None

    def visible(self, node: ast.stmt) -> set[str] | None:
        """Names that a definition may look up in the module; None for a statement that may look up any."""
        if not isinstance(node, DEFINITIONS):
            return None
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        found: set[str] = set()
        for table in self._tables:
            if first <= table.get_lineno() <= node.end_lineno:
                found |= _globals(table)
        head = [part for part in ast.iter_child_nodes(node) if not isinstance(part, ast.stmt)]
        return found | {part.id for each in head for part in walk(each) if isinstance(part, ast.Name)}


def _globals(table: symtable.SymbolTable) -> set[str]:
    """Names that a scope, or one inside it, looks up in the module. A class body may do so for any of its own."""
    own = table.get_type() == "class"
    found = {symbol.get_name() for symbol in table.get_symbols() if own or symbol.is_global()}
    return found.union(*map(_globals, table.get_children()))


def ours(dotted: str) -> bool:
    """Whether a dotted name begins in this package."""
    return dotted.partition(".")[0] == PACKAGE


def defines(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds, imports aside."""
    if isinstance(node, DEFINITIONS):
        return {node.name}
    found, inside = set(), set()
    for part in walk(node):
        if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load):
            found.add(part.id)
        elif isinstance(part, DEFINITIONS):
            found.add(part.name)
        elif isinstance(part, ast.comprehension):
            inside |= {name.id for name in walk(part.target) if isinstance(name, ast.Name)}
    return found - inside if isinstance(node, ast.Assign | ast.AnnAssign) else found


def told(tree: ast.AST) -> tuple[str, set[Chain]]:
    """A tree as text, from which it could be built again, and every name in it with the attributes looked up from it.

    Faster than `ast.dump` and another walk.
    """
    lines, names, waiting = [], set(), [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name | ast.Attribute):
            attributes, base = [], node
            while isinstance(base, ast.Attribute):
                attributes.append(base.attr)
                base = base.value
            if isinstance(base, ast.Name):
                chain = (base.id, *reversed(attributes))
                names.add(chain)
                lines.append(f"{type(node.ctx).__name__} {'.'.join(chain)}")
                continue
        if isinstance(node, ast.AST):
            lines.append(type(node).__name__)
            waiting += [getattr(node, field, None) for field in reversed(node._fields)]
        elif isinstance(node, list):
            lines.append(f"list {len(node)}")
            waiting += reversed(node)
        else:
            lines.append(repr(node))
    return "\n".join(lines), names


def quoted(tree: ast.AST) -> Iterator[ast.expr]:
    """Annotations that are written as text, read."""
    for node in walk(tree):
        annotation = getattr(node, "returns" if isinstance(node, ast.FunctionDef) else "annotation", None)
        for text in walk(annotation) if annotation is not None else ():
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                try:
                    yield ast.parse(text.value, mode="eval").body
                except SyntaxError:
                    continue  # a value of a Literal
