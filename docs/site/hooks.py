"""What `make docs` adds to the pages of docs/: pages that live elsewhere, and the map of the house as a drawing."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"config.md": ROOT / "config/README.md", "changelog.md": ROOT / "CHANGELOG.md"}
LINKS = {"../config/README.md": "config.md", "../CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that lie outside of docs/."""
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to those pages; in them, links back; a mermaid map as SVG."""
    for outside, inside in LINKS.items():
        markdown = markdown.replace(f"]({outside}", f"]({inside}")
    if page.file.src_uri in ELSEWHERE:
        markdown = markdown.replace("](../docs/", "](").replace("](docs/", "](")
    return re.sub(r"```mermaid\n(.*?)```", lambda found: drawn(found[1]), markdown, flags=re.DOTALL)


def drawn(mermaid: str) -> str:
    """A flowchart of `a --> b` lines as SVG: each node on the floor above all that it leads to."""
    edges = re.findall(r"(\w+) --> (\w+)", mermaid)
    nodes = sorted({name for edge in edges for name in edge})
    floor = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for above, below in edges:
            floor[above] = max(floor[above], floor[below] + 1)
    floors = [[name for name in nodes if floor[name] == level] for level in range(max(floor.values()) + 1)]
    place = {
        name: (60 + 120 * column + 60 * (max(map(len, floors)) - len(names)), 40 + 70 * (len(floors) - 1 - level))
        for level, names in enumerate(floors)
        for column, name in enumerate(names)
    }
    width, height = 120 * max(map(len, floors)), 70 * len(floors) + 10
    lines = [
        f'<path d="M{x} {y + 15} C{x} {y + 45} {u} {v - 45} {u} {v - 15}"/>'
        for (x, y), (u, v) in ((place[above], place[below]) for above, below in edges)
    ]
    boxes = [
        f'<rect x="{x - 50}" y="{y - 15}" width="100" height="30" rx="6"/><text x="{x}" y="{y + 5}">{name}</text>'
        for name, (x, y) in place.items()
    ]
    size = f'style="max-width: {width}px" viewBox="0 0 {width} {height}"'
    return f'<svg class="map" {size} role="img">{"".join(lines + boxes)}</svg>'
