"""What every config section shares: frozen, unknown keys refused; and marks for what fields stand for.

No truth value is taken for a number.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation such as `list[int] | None` is made of."""
    inside = get_args(annotation)
    return set().union(*map(_types, inside)) if inside else {annotation}


def _holds_truth(value: Any) -> bool:
    """Whether a value is true or false, or has one in a list or as a value of a mapping."""
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(_holds_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def takes_truth_as_a_number(annotation: Any, value: Any) -> bool:
    """Whether a value holds true or false where the annotation has room for numbers only."""
    types = _types(annotation)
    return bool(types & {int, float}) and not types & {bool, True, False, Any} and _holds_truth(value)


class Settings(BaseModel):
    """A section of the config. Immutable; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true, which YAML reads `yes` and `on` as, where a number is wanted: it would become 1."""
        if takes_truth_as_a_number(cls.model_fields[info.field_name].annotation, value):
            raise ValueError("wanted a number; true would become 1")
        return value

    def facts(self) -> dict:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Names:
    """Marks a field whose text is a path, or a list of paths: `path: Annotated[str, Names("file")]`.

    Every field that can hold a path bears this mark: `retro.config_paths` finds them, and an archive takes along what
    they name. corpus: documents, files or folders. file, folder: read by a stage. model: a run of the config, or the
    path of a model.json or of its folder. preset: another config. results: where everything is made.
    """

    what: Literal["corpus", "file", "folder", "model", "preset", "results"]


@dataclass(frozen=True)
class Overrides:
    """Marks a field that overrides keys of another section: a mapping, validated when it is laid on that one."""

    section: type[BaseModel]
