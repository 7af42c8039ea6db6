"""Draws what `make run` shows, docs/images/run.svg and run-end.svg: a real run in a terminal, half way and at its end.

python -m tests.tools.picture          some minutes
"""

import io
import re
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from tests.tools.terminal import Screen, Terminal
from tests.workflow.conftest import ROOT, Project

WIDTH = 120
COMMAND = ["-m", "retro.tools.run", "--config", "config/tiny.yaml", "--cores", "2"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = Project.create(Path(folder) / "retro")
        environment = {key: value for key, value in project.environment.items() if key != "NO_COLOR"}
        terminal = Terminal([sys.executable, *COMMAND], WIDTH, environment, project.folder)
        terminal.read()
    draw(half_way(terminal.written), "run")
    end = Screen(WIDTH)
    end.feed(terminal.written)
    draw(end, "run-end")


def half_way(written: str) -> Screen:
    """The screen when two trainings were seen side by side, in the middle of that."""
    side_by_side = list(re.finditer(r"loss \d[^\n]*\n[^\n]*loss \d[^\n]*\n[^\r]*", written))
    side_by_side = [found for found in side_by_side if "100 %" not in found[0]] or side_by_side
    screen = Screen(WIDTH)
    screen.feed(written[: side_by_side[len(side_by_side) // 2].end()])
    return screen


def draw(screen: Screen, name: str) -> None:
    """An SVG of a screen, without fonts from elsewhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi(screen.coloured()), soft_wrap=True)
    form = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace("Fira Code, ", "")
    title = "make run CONFIG=config/tiny.yaml"
    console.save_svg(str(ROOT / f"docs/images/{name}.svg"), title=title, code_format=form, unique_id=name)


if __name__ == "__main__":
    main()
