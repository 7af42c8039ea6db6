"""State dicts on disk: safetensors, and torch files without running anything that they contain."""

import pickle
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from retro.errors import UserError


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or torch file; wrappers around the state dict are taken off.

    `_extra_state` entries (Transformer Engine's fp8 scales) are left out. Raises UserError for what is no state
    dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path")
    state = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    state = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    while state and len(prefixes := {name.split(".")[0] for name in state}) == 1 and prefixes <= {"module", "model"}:
        state = {name.split(".", 1)[1]: value for name, value in state.items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, wanted a tensor; is this a state dict?")
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from None


def _torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read with weights_only ({reason}); load it where you trust it and save "
            "its state dict as safetensors"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, wanted a state dict")
    return state
