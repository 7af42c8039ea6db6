"""Values that no key of a config takes, refused before it is validated."""

import math
from typing import Any

from retro.errors import UserError
from retro.model.settings import ModelSettings
from retro.settings import takes_truth_as_a_number


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


def refuse_truth(raw: dict[str, Any], where: str) -> None:
    """Refuse true and false where the model section wants a number; other sections do so themselves."""
    runs = raw.get("runs") if isinstance(raw.get("runs"), dict) else {}
    models = {"model": raw.get("model")}
    models |= {f"runs.{name}.model": run.get("model") for name, run in runs.items() if isinstance(run, dict)}
    for place, model in models.items():
        for key, value in (model if isinstance(model, dict) else {}).items():
            field = ModelSettings.model_fields.get(key)
            if field and takes_truth_as_a_number(field.annotation, value):
                raise UserError(
                    f"{where}: {place}.{key}: wanted a number; true would become 1 (found {value!r}; YAML reads on, "
                    f"off, yes and no as true and false)."
                )


def _surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
