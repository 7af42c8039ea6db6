"""HTML pages from templates/: everything put into them is escaped, data for scripts included."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from retro.report import palette

FOLDER = Path(__file__).resolve().parent / "templates"


def embedded(value: Any) -> Markup:
    """JSON for the inside of a <script> element: no text in it can end that element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in (
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u2028", "\\u2028"),
        ("\u2029", "\\u2029"),
    ):
        text = text.replace(character, escape)
    return Markup(text)


def render(template: str, /, **values: Any) -> str:
    """A page from `template`; what is missing is an error, what is text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embedded"] = embedded
    environment.globals["colours"] = palette.COLOURS
    return environment.get_template(template).render(**values)
