"""Checkpoints: safetensors files that a run resumes from, exactly or not at all.

`<folder>/<fingerprint>/step-00000200.safetensors` holds weights, optimizer moments and, in its header,
where training stood; a `.sha256` beside it, written after it, says that it is whole. The fingerprint stands
for all that decides the result: recorded config, run settings, code, versions, device. A run with another
fingerprint starts afresh in its own folder and removes the others once it has written a checkpoint itself.
"""

import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from retro.artifacts import canonical, sha256, write_json, write_text
from retro.errors import UserError
from retro.training.fingerprint import differences, name_of
from retro.training.say import warn
from retro.training.weights import read_tensors, write_tensors

KEPT = 2
FOLDER = re.compile(r"^[0-9a-f]{16}$")
FILE = re.compile(r"^step-(\d{8,})\.safetensors$")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; raises UserError if another process on this or, where the file system
    carries locks, another machine holds it. The lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{folder}: another trainer ({holder}) writes these checkpoints. Wait for it, or stop it "
                f"and run this again: it resumes."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class Checkpoints:
    """The checkpoints of one fingerprint (`facts`: what it stands for) below a run's checkpoint folder."""

    def __init__(self, root: Path, facts: dict[str, Any]):
        self.root, self.facts = root, facts
        self.folder = root / name_of(facts)

    def open(self) -> None:
        """Make the folder and remove what a kill left half written; call it with the lock held."""
        for left in self.folder.glob(".*.tmp"):
            left.unlink()
        if not (self.folder / "fingerprint.json").exists():
            write_json(self.folder / "fingerprint.json", self.facts)

    def paths(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in found if FILE.match(path.name)), key=step_of)

    def foreign(self) -> list[Path]:
        """Folders of other fingerprints."""
        found = self.root.iterdir() if self.root.is_dir() else ()
        return sorted(path for path in found if FOLDER.match(path.name) and path != self.folder)

    def stale(self) -> list[str]:
        """For each other fingerprint with checkpoints: what differs from this one."""
        found = []
        for folder in self.foreign():
            if any(FILE.match(path.name) for path in folder.iterdir()):
                try:
                    theirs = json.loads((folder / "fingerprint.json").read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    theirs = {}
                found.append(f"{folder}: {differences(theirs, self.facts)}")
        return found

    def newest(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """State and tensors of the newest whole checkpoint; broken ones are named and set aside."""
        for path in reversed(self.paths()):
            reason = self._broken(path)
            if reason is None:
                tensors, note = read_tensors(path)
                return json.loads(note or "{}"), tensors
            warn(f"{path}: {reason}; it is set aside and the checkpoint before it is used.")
            path.rename(path.with_suffix(".damaged"))
        return None

    def _broken(self, path: Path) -> str | None:
        """Why a checkpoint cannot be used, or None."""
        proof = proof_of(path)
        if not proof.exists():
            return "was not finished (it has no .sha256)"
        wanted = proof.read_text(encoding="utf-8").split()[:1]
        return None if wanted == [sha256(path)] else "content changed or cut short (its sha256 differs)"

    def write(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
        """Write the checkpoint of `state["step"]`, durably; then drop older ones and those of other runs."""
        path = self.folder / f"step-{state['step']:08d}.safetensors"
        proof_of(path).unlink(missing_ok=True)
        write_tensors(path, tensors, canonical(state))
        write_text(proof_of(path), f"{sha256(path)}  {path.name}\n")
        sync(self.folder)
        for old in [*self.paths()[:-KEPT], *self.folder.glob("*.damaged")]:
            old.unlink(missing_ok=True)
            proof_of(old.with_suffix(".safetensors")).unlink(missing_ok=True)
        for folder in self.foreign():
            shutil.rmtree(folder, ignore_errors=True)
        return path


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(FILE.match(path.name).group(1))


def proof_of(path: Path) -> Path:
    """Where a checkpoint's sha256 is written, as `sha256sum -c` reads it."""
    return path.with_name(path.name + ".sha256")


def sync(folder: Path) -> None:
    """Make the renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def pack(
    model_weights: dict[str, torch.Tensor], names: dict[int, str], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """One flat dict of tensors: `model/<name>` and `optimizer/<key>/<name>`. `names`: by id of parameter."""
    tensors = {f"model/{name}": tensor for name, tensor in model_weights.items()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            tensors[f"optimizer/{key}/{names[id(parameter)]}"] = torch.as_tensor(value)
    return tensors


def unpack(
    tensors: dict[str, torch.Tensor],
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> dict[str, torch.Tensor]:
    """Put the optimizer's state of a checkpoint in its place and return the model's tensors."""
    model_weights = {}
    for name, tensor in tensors.items():
        room, _, rest = name.partition("/")
        if room == "model":
            model_weights[rest] = tensor
        else:
            key, _, owner = rest.partition("/")
            parameter = parameters[owner]
            optimizer.state[parameter][key] = tensor.clone().to(parameter.device)
    return model_weights
