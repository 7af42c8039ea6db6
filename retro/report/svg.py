"""Figures for the inside of a page."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from markupsafe import Markup

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
