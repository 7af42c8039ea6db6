"""The paths that a config names, wherever they stand: found by the marks of the settings' own fields."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from retro.refusals import settings_in
from retro.settings import Names, Overrides


@dataclass(frozen=True)
class Named:
    """A path in a config: the keys that lead to it, the text there, and what it names (`retro.settings.Names`)."""

    key: tuple[str, ...]
    value: str
    what: str


def named(config: BaseModel) -> Iterator[Named]:
    """Every path of a validated config; a list's are keyed by their number, a source's too."""
    yield from _within(type(config), config.model_dump(by_alias=True))


def _within(section: type[BaseModel], values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[Named]:
    """The paths of a section, whose values are plain; keys that are not there, as in overrides, name none."""
    for attribute, field in section.model_fields.items():
        name = field.alias or attribute
        key, value, inside = (*above, name), values.get(name), settings_in(field.annotation)
        for mark in field.metadata:
            if isinstance(mark, Names):
                for place, text in items(key, value):
                    yield Named(place, text, mark.what)
            elif isinstance(mark, Overrides) and value:
                yield from _within(mark.section, value, key)
        if inside is not None and value:
            parts = value if "dict" in str(field.annotation) else {None: value}
            for part, its_values in parts.items():
                yield from _within(inside, its_values, key if part is None else (*key, part))


def items(key: tuple[str, ...], value: str | list[str] | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """A text, or each of a list, with its key."""
    if isinstance(value, str):
        yield key, value
    for number, text in enumerate(value if isinstance(value, list | tuple) else ()):
        yield (*key, str(number)), text
