"""What every config section shares: frozen, unknown keys refused, no truth value taken for a number."""

from typing import Any, get_args

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
