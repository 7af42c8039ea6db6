"""JSON that a stage is given on its command line."""

import json
from argparse import ArgumentTypeError
from typing import Any

from retro.errors import UserError


class Given(dict):
    """A JSON object in which a key that is not there is a `UserError` that names it."""

    def __missing__(self, key: str) -> Any:
        found = ", ".join(self) or "nothing"
        raise UserError(f"--settings: lacks {key!r}, has {found}. Give this stage's part of the config.")


def given(text: str) -> Given:
    """The type of such an argument, for argparse."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"not JSON ({error}); wanted an object, such as {{}}") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"found {text}; wanted a JSON object")
    return Given(value)
