"""Values of a record's fields: found by name, and as the text that they stand for."""

import math
from decimal import Decimal
from typing import Any

TYPES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number",
         float: "a number", type(None): "null", bytes: "bytes"}  # fmt: skip
MISSING = object()  # what a record has that lacks a field
WHOLE = 2.0**63  # floats below it that are whole are written as integers


def find(record: dict[str, Any], field: str) -> Any:
    """A field's value, or `MISSING`. A name with dots that no field has leads into objects: `meta.lang`."""
    if field in record:
        return record[field]
    at: Any = record
    for part in field.split("."):
        if not isinstance(at, dict) or part not in at:
            return MISSING
        at = at[part]
    return at


def is_nothing(value: Any) -> bool:
    """Whether a record says nothing: no field, null, empty text, or NaN, which pandas writes for a missing value."""
    return value is MISSING or value is None or value == "" or (isinstance(value, float | Decimal) and value != value)


def plain(value: Any) -> str | None:
    """Text of text, a number or a truth value, as JSON writes it; None for anything else.

    A whole float is an integer: pandas writes 2003 as 2003.0 where a column has missing values.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return repr(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(int(value)) if value.is_integer() and abs(value) < WHOLE else repr(value)
    if isinstance(value, Decimal) and value.is_finite():
        whole = value == value.to_integral_value()
        return str(int(value)) if whole else f"{value.normalize():f}"
    return None


def kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"a number that is not finite ({value})"
    return TYPES.get(type(value), f"of type {type(value).__name__}")


def names(given: Any) -> str:
    """Names in quotes, sorted, the first dozen of them."""
    quoted = sorted(map(repr, given))
    return ", ".join(quoted[:12]) + (", …" if len(quoted) > 12 else "") if quoted else "none"
