"""One look for figures and pages: a calm palette that colour-blind readers can tell apart, no chart junk.

The colours are after Okabe and Ito. Numbers are written as a reader wants them. Everything put into a template is
escaped, data for scripts included.
"""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retro.base.artifacts import write_text
from retro.evaluation.conditions import COPY, FIRST_IN_CONTEXT, IN_CONTEXT, KNN, NONE, OFF, ON, RANDOM, Condition

INK, SOFT, FAINT, PAPER = "#1f2933", "#64707d", "#e3e7eb", "#ffffff"
COLOURS = {NONE: "#7b8794", ON: "#0072b2", OFF: "#e69f00", RANDOM: "#cc79a7", COPY: "#009e73", KNN: "#d55e00"}
COLOURS |= {IN_CONTEXT: "#56b4e9", FIRST_IN_CONTEXT: "#004d77"}
BETTER, WORSE = "#0072b2", "#d55e00"
SOURCES = ["#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#7b8794"]
# What the colours of a figure are called in templates/base.css, so that a page draws it light or dark.
VARIABLES = {
    INK: "ink", SOFT: "soft", FAINT: "faint", PAPER: "card", COLOURS[NONE]: "gpt", COLOURS[ON]: "on",
    COLOURS[OFF]: "off", COLOURS[RANDOM]: "random", COLOURS[COPY]: "copy", WORSE: "worse", SOURCES[1]: "sky",
}  # fmt: skip


def colour(condition: str) -> str:
    """What a condition is drawn in."""
    return COLOURS[Condition.parse(condition).colour]


matplotlib.use("Agg")


LINES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5))]  # one a run name
WIDTH = 8.2  # inches
SMALL = 8.5  # points, the smallest text: 9 CSS pixels where a page shows a figure at its least width (report.css)

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.dpi": 100,
    "svg.fonttype": "none",  # text stays text: it is found, copied, and takes a page's colours
}


@contextmanager
def figure(folder: Path, name: str, height: float, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure that becomes <folder>/<name>.svg and .png, the same bytes for the same content.

    `options` go to `plt.subplots`; yields what that returns: the figure and its `Axes`, one or an array.
    """
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        drawn, axes = plt.subplots(figsize=(WIDTH, height), **options)
        try:
            yield drawn, axes
            folder.mkdir(parents=True, exist_ok=True)
            drawn.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            _title(folder / f"{name}.svg")
            drawn.savefig(folder / f"{name}.png", dpi=200, metadata={"Software": None})
        finally:
            plt.close(drawn)


TELLS = "tells: "  # ids that begin so become titles


def tell(artist: Artist, text: str) -> None:
    """What a page shows of a drawn thing when the mouse is on it."""
    artist.set_gid(TELLS + text)


def points(axes: Axes, xs: Sequence[float], ys: Sequence[float], texts: Sequence[str]) -> None:
    """What a page says of each point of a line: places for the mouse, which are not seen."""
    for x, y, text in zip(xs, ys, texts, strict=True):
        tell(axes.plot([x], [y], "o", color=SOFT, alpha=0, markersize=9)[0], text)


def _title(path: Path) -> None:
    """Turn what things of a figure say into <title> elements."""
    _names()
    tree = ElementTree.parse(path)
    tree.getroot().set("{http://www.w3.org/XML/1998/namespace}space", "preserve")  # labels keep their distance
    for element in tree.iter():
        if element.get("id", "").startswith(TELLS):
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = element.attrib.pop("id").removeprefix(TELLS)
            element.insert(0, title)
    write_text(path, ElementTree.tostring(tree.getroot(), encoding="unicode"))


def bars(axes: Axes) -> None:
    """Horizontal bars at 0, 1, …: only the vertical grid, no left spine, first bar on top."""
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", labelcolor=INK)
    low, high = sorted(axes.get_ylim())
    axes.set_ylim(max(high, low + 3.2), low)  # a single bar is no thicker than one of three


def whisker(axes: Axes, low: float, high: float, position: float) -> None:
    """A 95 % interval across a horizontal bar, edged in white so that it stands out on any colour."""
    for colour, width in ((PAPER, 3.2), (INK, 1.3)):
        axes.plot(
            [low, high],
            [position] * 2,
            "|-",
            color=colour,
            linewidth=width,
            markersize=6,
            markeredgewidth=width,
        )


def nothing(axes: Axes, text: str) -> None:
    """An empty panel that says why it is empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=SOFT, transform=axes.transAxes, wrap=True)


def percent(value: float) -> str:
    """A difference in percent with its sign; a real minus."""
    return f"{round(value, 1) + 0.0:+.1f} %".replace("-", "−").replace("+0.0", "±0.0")


def interval(row: dict[str, Any]) -> str:
    """The 95 % interval of a comparison; where there is none, of how few, if the row tells, or nothing."""
    if row["low"] is None:
        return f"too few ({row['units']:.0f})" if row.get("units") else ""
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
    environment.globals["colours"] = COLOURS
    return environment.get_template(template).render(**values)


SVG, LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"


def _names() -> None:
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def inline_svg(path: Path, name: str) -> Markup:
    """A figure's SVG for the inside of a page: no prolog, metadata or background; ids its own, colours the page's."""
    _names()
    root = ElementTree.parse(path).getroot()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata") or child.get("id") == "patch_1":  # the first patch is the background
                parent.remove(child)
    prefix = f"{name}-"
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, prefix + value)
            elif key == LINK and value.startswith("#"):
                element.set(key, "#" + prefix + value[1:])
            elif key == "style" or "url(#" in value:
                value = re.sub(r"url\(#", f"url(#{prefix}", value)
                element.set(key, re.sub("#[0-9a-f]{6}", _variable, value))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", name)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _variable(found: re.Match[str]) -> str:
    name = VARIABLES.get(found[0])
    return f"var(--{name})" if name else found[0]


def figure_html(path: Path, caption: str, name: str | None = None, table: str | None = None) -> Markup:
    """A figure with its caption, which is escaped: <figure id="figure-NAME">. `name`, by default the file's, is
    unique on a page.

    Below it are links to the files, as they lie from the report: <folder>/<name>.svg, and the `table` of its values,
    a path below the dataset's folder.
    """
    name = name or path.stem
    files = [(f"{path.parent.name}/{path.name}", "SVG")]
    files += [(table, "CSV")] if table else []
    links = Markup(" · ").join(Markup('<a href="{}">{}</a>').format(*each) for each in files)
    shown = Markup(
        '<figure id="figure-{}"><div class="sheet">{}</div><figcaption>{} <span class="files">{}</span></figcaption>'
        "</figure>\n"
    )
    return shown.format(name, inline_svg(path, name), caption, links)
