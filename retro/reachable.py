"""What a stage can reach: the definitions of a package that may run, or be looked at, when one of its modules does.

The way begins at `main` of the stage's module and at whatever runs when the modules it imports are imported. From
there every name is followed to the functions, classes and constants it may stand for, and so on.

Where it is not clear what a name stands for, more counts than need be: a class counts whole, a module that is handed
around as a value counts whole, a statement that may do something when its module is imported counts always. Code is
read, not executed, so nothing may be imported or looked up by tricks (`importlib`, `__import__`, `globals`).
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from retro.definitions import PACKAGE, Chain, Module, Statement, ours

PLACE = {"__file__", "__name__", "__package__", "__path__", "__spec__"}  # tell where a module lies
Found = list["Statement | str"]  # what a name stands for: statements, or something outside the package, as text


class Package:
    """A package of modules in a folder; each file is read once, into `read`. A module's name begins with `retro`."""

    def __init__(self, root: Path):
        self.root = root
        self.read: dict[str, Module] = {}
        self._paths: dict[str, Path | None] = {}
        self._references: dict[Statement, dict[Chain, Found]] = {}

    def path(self, module: str) -> Path | None:
        """The file of a module, or None if there is no such module."""
        if module not in self._paths:
            base = self.root.joinpath(*module.split(".")[1:])
            files = (base / "__init__.py", base.with_suffix(".py"))
            self._paths[module] = next((path for path in files if path.is_file()), None)
        return self._paths[module]

    def module(self, name: str) -> Module:
        """A module, read."""
        if name not in self.read:
            path = self.path(name)
            assert path is not None, name
            self.read[name] = Module(name, path)
        return self.read[name]

    @cached_property
    def modules(self) -> list[str]:
        """Names of all modules, sorted."""
        paths = [path.relative_to(self.root).with_suffix("") for path in self.root.rglob("*.py")]
        return sorted(".".join([PACKAGE, *path.parts]).removesuffix(".__init__") for path in paths)

    def imported(self, module: str) -> list[str]:
        """All modules that a module needs, the packages above them and itself, in the order in which they run."""
        done: dict[str, None] = {}
        begun, waiting = {module}, [(module, self._needs(module))]
        while waiting:
            name, needed = waiting[-1]
            following = next((each for each in needed if each not in begun), None)
            if following is None:
                done[name] = None
                waiting.pop()
            else:
                begun.add(following)
                waiting.append((following, self._needs(following)))
        return list(done)

    def _needs(self, module: str) -> Iterator[str]:
        if "." in module:
            yield module.rpartition(".")[0]
        yield from (name for name in self.module(module).needs if ours(name) and self.path(name))

    def begin(self, module: str) -> list[Statement]:
        """Where a stage's way begins: its `main`, or all that it has if it has none, and what acts on import."""
        modules = [self.module(name) for name in self.imported(module)]
        own = modules[-1]
        found = [*own.defined["main"], *filter(is_entry, own.statements)] if "main" in own.defined else own.statements
        hooks = any(each.hooks for each in modules)
        acting = [
            statement
            for each in modules
            for statement in each.statements
            if (statement.acts and not is_entry(statement)) or (hooks and isinstance(statement.node, ast.ClassDef))
        ]
        return list(dict.fromkeys([*found, *acting]))

    def reachable(self, module: str) -> dict[Statement, dict[Chain, Found]]:
        """The statements that a stage can reach, in an order that follows from them alone, and what they refer to."""
        waiting = self.begin(module)
        found: dict[Statement, dict[Chain, Found]] = {}
        for statement in waiting:  # grows as it is walked along
            if statement in found:
                continue
            found[statement] = self.references(statement)
            for stands_for in found[statement].values():
                waiting += [each for each in stands_for if isinstance(each, Statement) and each not in found]
        return found

    def references(self, statement: Statement) -> dict[Chain, Found]:
        """What the names in a statement stand for; those that Python itself knows are left out."""
        if statement in self._references:
            return self._references[statement]
        found = self._references[statement] = {}
        for chain in statement.chains:
            stands_for: Found = []
            for dotted in statement.imported.get(chain[0], ()):
                stands_for += self._stands_for(".".join([dotted, *chain[1:]]))
            stands_for += self._looked_up(statement.module, chain) or []
            if stands_for:
                found[chain] = list(dict.fromkeys(stands_for))
        return found

    def digest(self, module: str) -> str:
        """Sixteen hex digits of what a stage can reach.

        Statements are numbered in the order in which the way comes to them, and what each refers to is told by these
        numbers, beside its syntax tree. So the digest covers which definition every name stands for, but no name of a
        module: two of the same name that change places are noticed, and a definition that moves is not.
        """
        found = self.reachable(module)
        number = {statement: at for at, statement in enumerate(found)}
        total = hashlib.sha256()
        for statement, references in found.items():
            numbers = {chain: [number.get(each, each) for each in known] for chain, known in references.items()}
            total.update(f"{statement.code}\0{numbers}\0".encode())
        return total.hexdigest()[:16]

    def _looked_up(self, module: Module, chain: Chain, seen: set[str] | None = None) -> Found | None:
        """What a name, and attributes of it, stand for in a module; None if it is not the module's."""
        name, *attributes = chain
        if name in PLACE:
            return [module.name]
        if name == "__doc__":
            return [repr(module.doc)]
        dotted = [".".join([each, *attributes]) for each in module.bound.get(name, ())]
        if name not in module.defined and not dotted:
            dotted = [".".join([each[:-1] + name, *attributes]) for each in module.bound.get("*", ()) if ours(each)]
        if name not in module.defined and not dotted:
            return None
        found: Found = [*module.defined.get(name, ())]
        for each in dotted:
            found += self._stands_for(each, seen)
        return found

    def _stands_for(self, dotted: str, seen: set[str] | None = None) -> Found:
        """What a dotted name stands for."""
        if not ours(dotted):
            return [dotted]
        seen = set() if seen is None else seen
        if dotted in seen:
            return []
        seen.add(dotted)
        module, *names = dotted.split(".")
        found: Found = []
        for at, name in enumerate(names):
            here, below = self._looked_up(self.module(module), tuple(names[at:]), seen), f"{module}.{name}"
            found += here or []
            if self.path(below) is None:
                return found if here is not None else [*found, *self._whole(module, seen)]
            module = below  # a module may lie below a name that the package gives itself
        return [*found, *self._whole(module, seen)]

    def _whole(self, name: str, seen: set[str]) -> Found:
        """All that can be looked up in a module, and in those below it."""
        found: Found = []
        for each in self.modules:
            if each == name or each.startswith(f"{name}."):
                module = self.module(each)
                found += module.statements
                for dotted in (dotted for bound in module.bound.values() for dotted in bound):
                    found += self._stands_for(dotted, seen)
        return found


def is_entry(statement: Statement) -> bool:
    """Whether a statement runs only in the module that is the program."""
    node = statement.node
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse
