"""Values that no key of a config takes, refused before it is validated."""

import math
from typing import Any

from retro.errors import UserError


def refuse_unusable(value: Any, where: str, key: str = "") -> None:
    """Refuse values that no key takes, whatever its type: blank text, infinite numbers, those beyond 64 bits."""
    if isinstance(value, dict):
        for name, inside in value.items():
            path = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str):
                raise UserError(f"{where}: {path}: found the key {name!r}, wanted text. Put it in quotes.")
            if isinstance(inside, str) and not inside.strip():
                raise UserError(f"{where}: {path}: found blank text. Give a value, or leave the key out.")
            refuse_unusable(inside, where, path)
    elif isinstance(value, list | tuple):
        for number, inside in enumerate(value):
            refuse_unusable(inside, where, f"{key}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key}: found {value}. Give a finite number.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{where}: {key}: found {value}. Give a number of at most 64 bits.")
    elif isinstance(value, str) and ("\0" in value or (not value.isascii() and _surrogate(value))):
        raise UserError(f"{where}: {key}: found {value!r}. Give text without null bytes and halves of characters.")


def _surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
