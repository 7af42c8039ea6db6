"""What settings refuse, in the words of the one who wrote them: a line for each key that is wrong."""

import difflib
import re
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from retro.errors import UserError

BRANCH = re.compile(r"(str|int|float|bool)|(list|tuple|dict|literal|function-[a-z]+)\[.*\]", re.DOTALL)
WORDS = {
    "missing": "is missing; every config needs it",
    "string_pattern_mismatch": "wanted letters, digits and . _ - only, a letter or digit first",
    "model_type": "wanted a mapping of keys to values",
}
SHOWN = 80  # characters of a value
S = TypeVar("S", bound=BaseModel)


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation such as `X` or `dict[str, X]`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def explain(error: ValidationError, kind: type[BaseModel], where: str, prefix: tuple[str, ...] = ()) -> str:
    """A line for each key that is wrong, with `where` before it."""
    return "\n".join(f"{where}: {reason}" for reason in reasons(error, kind, prefix))


def reasons(
    error: ValidationError,
    kind: type[BaseModel],
    prefix: tuple[str, ...] = (),
    listed: str = "config/README.md lists all keys",
) -> list[str]:
    """The same without a place. `kind` is the section that was validated, `prefix` its own key; `listed` says where
    a reader finds the keys that there are."""
    found: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        location = [part for part in item["loc"] if not (isinstance(part, str) and BRANCH.fullmatch(part))]
        key = ".".join(map(str, [*prefix, *location]))
        if item["type"] == "extra_forbidden":
            message = f"unknown key; {_nearest(kind, location, prefix)}{listed}"
        else:
            message = WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
            message = message.replace("Input should be", "wanted")
            if item["type"] != "missing" and not isinstance(item["input"], dict):
                values[key] = item["input"]
        found.setdefault(key, []).append(message)
    return [
        f"{key + ': ' if key else ''}{', or '.join(dict.fromkeys(messages))}{_shown(values, key)}"
        for key, messages in found.items()
    ]


def read_section(kind: type[S], facts: dict[str, Any], name: str = "") -> S:
    """A section of a stage's --settings, or all of them; a wrong key or value is a `UserError` that names it."""
    try:
        return kind(**facts)
    except ValidationError as error:
        raise UserError(explain(error, kind, "--settings", (name,) if name else ())) from None


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
