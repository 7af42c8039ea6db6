"""A Python that starts at once: a fork of a process in which the libraries, but nothing of this project, are imported.

Most of what a short stage costs is the import of torch. `Warm` starts one process that imports it, and what else the
stages and Snakemake use, and writes a program `python` that asks this process for a fork of itself. The fork gets the
asker's arguments, environment, folder and open files, and imports the project's modules from where the asker would.
A library is seen in it when it is imported (`Libraries`), since manifests tell which were. It differs from the real
Python in its process group, its parent and its hash seed, which are the server's: a test of kills, of signals or of
what a process uses starts the real one.
"""

import array
import atexit
import builtins
import contextlib
import gc
import importlib.util
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import threading
import traceback
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = """
asyncio concurrent.futures decimal html multiprocessing numpy pandas yaml pydantic tokenizers regex faiss bm25s psutil
jinja2 tqdm pygments matplotlib.figure matplotlib.backends.backend_agg matplotlib.backends.backend_svg safetensors
torch torch._dynamo torch.distributed.run torch.distributed.tensor torch.utils.tensorboard
snakemake.cli snakemake.executors.local
"""

# Asks for a fork, gives it the open files, waits for its status. Imports no more than it needs.
PROGRAM = """#!{python} -IS
import os, sys
words = sys.argv[1:]
if words[:1] == ["-c"] or words[:1] == ["-m"] and words[1].partition(".")[0] in ("retro", "snakemake"):
    import array, json, socket
    asking = socket.socket(socket.AF_UNIX)
    asking.connect({address!r})
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    asking.sendmsg([b"."], files)
    asking.sendall(json.dumps([sys.argv, dict(os.environ), os.getcwd()]).encode())
    asking.shutdown(socket.SHUT_WR)
    status = int(asking.recv(8) or 255)
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)
os.execv({python!r}, [{python!r}, *words])
"""


class Warm:
    """The program `python` in `folder`, and a share in its server, which ends when nobody has one any more."""

    def __init__(self, folder: Path):
        self.python = folder / "python"
        self._share = os.open(folder / "shares", os.O_WRONLY)

    @classmethod
    def start(cls, folder: Path) -> "Warm":
        """Start a server in a new folder."""
        folder.mkdir()
        address = str(folder / "socket")
        text = PROGRAM.format(python=sys.executable, address=address)
        (folder / "python").write_text(text, encoding="utf-8")
        (folder / "python").chmod(0o755)
        os.mkfifo(folder / "shares")
        reading = os.open(folder / "shares", os.O_RDONLY | os.O_NONBLOCK)
        made = cls(folder)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, __file__, address]
        server = subprocess.Popen(command, env=environment, stdin=reading, stdout=subprocess.PIPE)
        os.close(reading)
        assert server.stdout.readline() == b"ready\n"
        return made

    def close(self) -> None:
        os.close(self._share)


class Libraries:
    """Modules that are imported and hidden; a finder of modules that shows them to who imports them again."""

    def __init__(self, names: list[str]):
        """Import them. Who imports what is noted, by names of top level."""
        self.needs: dict[str, set[str]] = {}
        self.hidden: dict[str, dict[str, types.ModuleType]] = {}
        statement, function = builtins.__import__, importlib.import_module

        def note(importer: str, name: str) -> None:
            self.needs.setdefault(top(importer), set()).add(top(name))

        def noted(name, globals=None, locals=None, fromlist=(), level=0):
            if level == 0:
                note((globals or {}).get("__name__") or "", name)
            return statement(name, globals, locals, fromlist, level)

        def noted_too(name, package=None):
            note(sys._getframe(1).f_globals["__name__"], name)
            return function(name, package)

        builtins.__import__, importlib.import_module = noted, noted_too
        for name in names:
            function(name)
        builtins.__import__, importlib.import_module = statement, function

    def hide(self) -> None:
        """Take all modules but Python's own out of sight."""
        for name in [name for name in sys.modules if top(name) not in {*sys.stdlib_module_names, "__main__"}]:
            self.hidden.setdefault(top(name), {})[name] = sys.modules.pop(name)
        sys.meta_path.insert(0, self)

    def show(self, package: str) -> None:
        """Put the modules of a package, and of those that it imported, in their place."""
        sys.modules.update(self.hidden.pop(package, {}))
        for name in self.needs.get(package, set()) & self.hidden.keys():
            self.show(name)

    def find_spec(self, name: str, _path=None, _target=None) -> ModuleSpec | None:
        if name not in self.hidden:
            return None
        real = self.hidden[name][name].__spec__
        spec = ModuleSpec(name, self, origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        self.show(spec.name)
        self.real = sys.modules[spec.name].__spec__
        return sys.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self.real


def top(name: str) -> str:
    return name.partition(".")[0]


def serve(address: str) -> None:
    """Fork for whoever asks, until stdin ends."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    os.write(1, b"ready\n")  # who asks now waits until the libraries are imported
    os.dup2(2, 1)
    libraries = Libraries(LIBRARIES.split())
    gc.collect()
    gc.freeze()
    forks: dict[int, tuple[int, socket.socket]] = {}  # handle of a fork: its process number, who waits for it
    with selectors.DefaultSelector() as ready:
        ready.register(listening, selectors.EVENT_READ)
        ready.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fd == 0:
                    return
                if key.fd in forks:
                    number, asker = forks.pop(key.fd)
                    ready.unregister(key.fd)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
                    with asker, contextlib.suppress(OSError):  # it may have been killed
                        asker.sendall(str(status).encode())
                    continue
                asker = listening.accept()[0]
                files, request = received(asker)
                number = os.fork()
                if number == 0:
                    for other in [listening, asker, *(waiting for _, waiting in forks.values())]:
                        other.close()
                    for handle in forks:
                        os.close(handle)
                    ready.close()
                    libraries.hide()
                    become(files, *request)
                for file in files:
                    os.close(file)
                handle = os.pidfd_open(number)
                forks[handle] = (number, asker)
                ready.register(handle, selectors.EVENT_READ)


def received(asker: socket.socket) -> tuple[list[int], list]:
    """The open files and the arguments, environment and folder that `PROGRAM` sends."""
    files = array.array("i")
    _, [(_, _, sent)], _, _ = asker.recvmsg(1, socket.CMSG_SPACE(3 * files.itemsize))
    files.frombytes(sent)
    content = b"".join(iter(lambda: asker.recv(1 << 20), b""))
    return list(files), json.loads(content)


def become(files: list[int], words: list[str], environment: dict[str, str], folder: str) -> NoReturn:
    """Run `python -m module …` or `python -c code …` in this process."""
    for standard, file in enumerate(files):
        os.dup2(file, standard)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    program, kind, what, *arguments = words
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [folder if kind == "-m" else "", *filter(None, given)]
    sys.executable = program
    sys.argv = [what if kind == "-m" else kind, *arguments]
    status: Any = 0
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
    except SystemExit as ended:
        status = ended.code or 0
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    # As the interpreter ends, but for taking its memory apart, all of which would be copied for it.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    serve(sys.argv[1])
