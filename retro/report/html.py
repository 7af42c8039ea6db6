"""What pages are made of: numbers as a reader wants them, templates, figures.

Everything put into a template is escaped, data for scripts included.
"""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from retro.report import style


def percent(value: float) -> str:
    """A difference in percent with its sign; a real minus."""
    return f"{round(value, 1) + 0.0:+.1f} %".replace("-", "−").replace("+0.0", "±0.0")


def interval(row: dict[str, Any]) -> str:
    """The 95 % interval of a comparison, or nothing where there is none."""
    if row["low"] is None:
        return ""
    return f"({row['low']:+.1f} … {row['high']:+.1f})".replace("-", "−")


def short(value: float, _: int = 0) -> str:
    """A number, short: 600k, 1.2M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


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
    environment.globals["colours"] = style.COLOURS
    return environment.get_template(template).render(**values)


SVG, LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"


def inline_svg(path: Path, name: str) -> Markup:
    """A figure's SVG for the inside of a page: no prolog, comments or metadata, ids that are its own."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.parse(path).getroot()
    for child in list(root):
        if child.tag.endswith("}metadata"):
            root.remove(child)
    prefix = f"{name}-"
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, prefix + value)
            elif key == LINK and value.startswith("#"):
                element.set(key, "#" + prefix + value[1:])
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#", f"url(#{prefix}", value))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", name)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def figure(path: Path, caption: str, name: str | None = None) -> Markup:
    """A figure with its caption, which is escaped: <figure id="figure-NAME">. `name`, by default the file's, is unique
    on a page.
    """
    name = name or path.stem
    drawn = inline_svg(path, name)
    shown = Markup('<figure id="figure-{}"><div class="sheet">{}</div><figcaption>{}</figcaption></figure>\n')
    return shown.format(name, drawn, caption)
