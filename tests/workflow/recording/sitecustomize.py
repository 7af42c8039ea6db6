"""Loaded by every Python that has this folder on its path: notes which functions of the package begin to run.

Each process writes to a file of its own in the folder RETRO_RECORDED a line for each top-level definition, the first
time that code in it runs: the module that is the program, the module, the name.
"""

import ast
import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader

FOLDER = os.environ.get("RETRO_RECORDED")
SEEN = set()


def note(module: str, name: str) -> None:
    if (module, name) not in SEEN:
        SEEN.add((module, name))
        program = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
        with open(os.path.join(FOLDER, f"{os.getpid()}.txt"), "a") as file:
            file.write(f"{program} {module} {name}\n")


class Loader(SourceFileLoader):
    """Compiles a module with a note at the start of each function."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path))
        for top in tree.body:
            for node in ast.walk(top):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    line = f"__import__('sitecustomize').note({fullname!r}, {getattr(top, 'name', '')!r})"
                    at = int(ast.get_docstring(node, clean=False) is not None)
                    node.body.insert(at, ast.parse(line).body[0])
        return compile(ast.fix_missing_locations(tree), path, "exec")


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if not name.startswith("retro."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


if FOLDER:
    sys.meta_path.insert(0, Finder)
