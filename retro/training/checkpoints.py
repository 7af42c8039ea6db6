"""Checkpoints: safetensors files that a run resumes from, exactly or not at all.

`<folder>/<fingerprint>/step-00000200.safetensors` holds weights, optimizer moments and, in its header,
where training stood; a `.sha256` beside it, written after it, says that it is whole. The fingerprint stands
for all that decides the result: recorded config, run settings, code, versions, device. A run with another
fingerprint starts afresh in its own folder and removes the others once it has written a checkpoint itself.

Where processes hold different parts of a model, each writes `step-00000200-1-of-2.safetensors`, some whole tensors
each; `step-00000200.json`, written last, holds where training stood and the sha256 of every such file. As tensors are
whole and have the model's names, any number of processes resumes from either kind.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retro.base.artifacts import canonical, sha256, write_json, write_text
from retro.base.log import warn
from retro.base.stage import UserError
from retro.training.optimizer import Optimizer
from retro.training.weights import read_note, write_tensors

# Keys of the run that say when things are shown or saved, what it is called, or how it is cut over processes: they
# change no weight, but for the rounding of sums that other numbers of processes take in another order.
WITHOUT_EFFECT = {
    "name": None,
    "twin": None,
    "from": None,  # the weights count, not where they lie
    "train": {
        "checkpoint_interval": None,
        "checkpoint_minutes": None,
        "exit_before": None,
        "exit_minutes": None,
        "log_interval": None,
        "log_norms": None,
        "parallel": None,
        "recompute": None,
    },
}


def run_facts(
    config: str,
    run: dict[str, Any],
    code: str,
    versions: dict[str, str],
    place: str,
    initial: str | None = None,
) -> dict[str, Any]:
    """The parts: sha256 of the recorded config, run settings, digest of the code, versions, device, and sha256 of
    the weights it begins with."""
    return {
        "recorded config": config,
        "run": _without(run, WITHOUT_EFFECT),
        "code": code,
        "versions": versions,
        "place": place,
        "initial weights": initial,
    }


def name_of(parts: dict[str, Any]) -> str:
    """Sixteen hex digits that stand for the parts."""
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What `new` has otherwise than `old`, in words."""
    before, now = _flat(old), _flat(new)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    shown = [f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}" for key in changed[:4]]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return ("; ".join(shown) + more) or "not readable"


def _without(value: dict[str, Any], dropped: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without(item, dropped[key]) if dropped.get(key) else item
        for key, item in value.items()
        if key not in dropped or dropped[key]
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"


KEPT = 2
FOLDER = re.compile(r"^[0-9a-f]{16}$")
FILE = re.compile(r"^step-(\d{8,})\.(safetensors|json)$")
PIECE = re.compile(r"^(step-\d{8,})-\d+-of-\d+\.safetensors")


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
        whole = {path.stem for path in self.paths() if path.suffix == ".json"}
        for left in self.folder.iterdir():
            if (piece := PIECE.match(left.name)) and piece[1] not in whole:
                left.unlink()

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

    def newest(self) -> tuple[dict[str, Any], list[Path]] | None:
        """State and files of the newest whole checkpoint; broken ones are named and set aside."""
        for path in reversed(self.paths()):
            try:
                return self._read(path)
            except (UserError, ValueError, KeyError, TypeError) as error:
                warn(f"{path}: {error}; it is set aside and the checkpoint before it is used.")
                path.rename(path.with_suffix(".damaged"))
        return None

    def _read(self, path: Path) -> tuple[dict[str, Any], list[Path]]:
        """State and files of a checkpoint; raises ValueError if it is not whole."""
        if path.suffix == ".json":
            index = json.loads(path.read_text(encoding="utf-8"))
            files = {path.with_name(name): wanted for name, wanted in index["files"].items()}
        else:
            if not proof_of(path).exists():
                raise ValueError("was not finished (it has no .sha256)")
            files = {path: (proof_of(path).read_text(encoding="utf-8").split() or [""])[0]}
        for file, wanted in files.items():
            if not file.exists():
                raise ValueError(f"{file.name}, a part of it, is missing")
            if sha256(file) != wanted:
                raise ValueError("content changed or cut short (its sha256 differs)")
        return (index["state"] if path.suffix == ".json" else read_note(path)), list(files)

    def write(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
        """Write the checkpoint of `state["step"]`, durably; then drop older ones and those of other runs."""
        path = self.folder / f"step-{state['step']:08d}.safetensors"
        proof_of(path).unlink(missing_ok=True)
        write_tensors(path, tensors, canonical(state))
        write_text(proof_of(path), f"{sha256(path)}  {path.name}\n")
        self._tidy()
        return path

    def write_piece(self, step: int, rank: int, size: int, tensors: dict[str, torch.Tensor]) -> None:
        """Write one process's file of a checkpoint; when all have, the first calls `write_index`."""
        path = self._piece(step, rank, size)
        write_tensors(path, tensors)
        write_text(proof_of(path), f"{sha256(path)}  {path.name}\n")
        sync(self.folder)

    def write_index(self, state: dict[str, Any], size: int) -> Path:
        """Make the files that `size` processes have written a checkpoint; then as `write`."""
        path = self.folder / f"step-{state['step']:08d}.json"
        pieces = [self._piece(state["step"], rank, size) for rank in range(size)]
        files = {piece.name: proof_of(piece).read_text(encoding="utf-8").split()[0] for piece in pieces}
        write_json(path, {"state": state, "files": files})
        self._tidy()
        return path

    def _piece(self, step: int, rank: int, size: int) -> Path:
        return self.folder / f"step-{step:08d}-{rank + 1}-of-{size}.safetensors"

    def _tidy(self) -> None:
        """Make a new checkpoint durable and drop what it replaces."""
        sync(self.folder)
        for old in [*self.paths()[:-KEPT], *self.folder.glob("*.damaged")]:
            old.unlink(missing_ok=True)
            for file in [proof_of(old.with_suffix(".safetensors")), *self.folder.glob(f"{old.stem}-*-of-*")]:
                file.unlink(missing_ok=True)
        for folder in self.foreign():
            shutil.rmtree(folder, ignore_errors=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    found = FILE.match(path.name)
    assert found is not None, path
    return int(found[1])


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
    weights: Mapping[str, torch.Tensor], optimizer: Optimizer, owners: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """One flat dict of tensors: `model/<name>` and `optimizer/<key>/<name>`; `owners`: the optimizer's, by name."""
    tensors = {f"model/{name}": tensor for name, tensor in weights.items()}
    for name, parameter in owners.items():
        for key, value in optimizer.state(parameter).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value)
    return tensors


def unpack(
    tensors: Mapping[str, torch.Tensor], optimizer: Optimizer, owners: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Put the optimizer's state of a checkpoint in its place and return the model's tensors."""
    weights = {}
    for path, tensor in tensors.items():
        room, _, name = path.partition("/")
        if room == "model":
            weights[name] = tensor
        else:
            key, _, owner = name.partition("/")
            parameter = owners[owner]
            device = "cpu" if tensor.dim() == 0 and optimizer.counts_on_cpu(parameter) else parameter.device
            optimizer.state(parameter)[key] = tensor.clone().to(device)
    return weights
