"""What is wrong with a config, in the words of the config file."""

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from retro.errors import UserError
from retro.model.settings import ModelSettings
from retro.settings import takes_truth_as_a_number

BRANCH = re.compile(r"(str|int|float|bool)|(list|tuple|dict|literal|function-[a-z]+)\[.*\]", re.DOTALL)
WORDS = {
    "missing": "is missing; every config needs it",
    "string_pattern_mismatch": "wanted letters, digits and . _ - only, a letter or digit first",
    "model_type": "wanted a mapping of keys to values",
}
SHOWN = 80  # characters of a value


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation such as `X` or `dict[str, X]`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def explain(error: ValidationError, kind: type[BaseModel], where: str, prefix: tuple[str, ...] = ()) -> str:
    """A line for each key that is wrong. `kind` is the section that was validated, `prefix` its own key."""
    found: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        location = [part for part in item["loc"] if not (isinstance(part, str) and BRANCH.fullmatch(part))]
        key = ".".join(map(str, [*prefix, *location]))
        if item["type"] == "extra_forbidden":
            message = f"unknown key; {_nearest(kind, location, prefix)}config/README.md lists all keys"
        else:
            message = WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
            message = message.replace("Input should be", "wanted")
            if item["type"] != "missing" and not isinstance(item["input"], dict):
                values[key] = item["input"]
        found.setdefault(key, []).append(message)
    return "\n".join(
        f"{where}: {key + ': ' if key else ''}{', or '.join(dict.fromkeys(messages))}{_shown(values, key)}"
        for key, messages in found.items()
    )


def _shown(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return ""
    text = "nothing" if values[key] is None else repr(values[key])
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    quotes = (
        "; YAML reads on, off, yes and no as these: put the word in quotes" if "True" in text or "False" in text else ""
    )
    return f" (found {text}{quotes})"


def _nearest(kind: type[BaseModel], location: list[Any], prefix: tuple[str, ...]) -> str:
    """`did you mean …? ` with a key of the same section that is spelt nearly so, or one of another spelt just so."""
    wrong, section = str(location[-1]), ".".join(map(str, location[:-1]))
    keys = list(_keys(kind, location))
    beside = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == section}
    near = difflib.get_close_matches(wrong, beside, n=1)
    meant = beside[near[0]] if near else next((key for key in keys if key.rpartition(".")[2] == wrong), None)
    return f"did you mean {'.'.join([*prefix, meant])}? " if meant else ""


def _keys(kind: type[BaseModel], location: list[Any], prefix: str = "") -> Iterator[str]:
    """All keys; what the user named (a source, a run) is called as in `location`, or <name>."""
    for attribute, field in kind.model_fields.items():
        key = f"{prefix}{field.alias or attribute}"
        yield key
        inside = settings_in(field.annotation)
        if inside is not None:
            parts = key.split(".")
            named = "dict" in str(field.annotation)
            same = [str(part) for part in location[: len(parts)]] == parts and len(location) > len(parts)
            name = f"{location[len(parts)] if same else '<name>'}." if named else ""
            yield from _keys(inside, location, f"{key}.{name}")


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
