"""Sections of the report that stages of other rooms write, each as an HTML fragment D/parts/<name>.html.

The page shows every part it is given, in the order of `PARTS`. A part is trusted HTML: who writes one escapes
what comes from a corpus (`markupsafe.Markup.format`, or a template of `retro.report.pages`).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from retro.errors import UserError


@dataclass(frozen=True)
class Part:
    """A section: its title, the built-in section it stands before, and the command that makes it.

    `html` is empty where it was not made: the page then says how to make it.
    """

    name: str
    title: str
    before: str
    target: str
    html: Markup | str = ""


PARTS = {
    part.name: part
    for part in (
        Part("indexes", "Indexes", "training", "snakemake indexes --configfile config/indexes.yaml"),
        Part("leakage", "Leakage", "generation", "snakemake leakage"),
        Part("experiments", "Experiments", "generation", "snakemake experiments"),
        Part("qa", "Question answering", "cost", "snakemake qa --configfile config/qa.yaml"),
        Part("instruct", "Instructions", "cost", "snakemake qa --configfile config/instruct.yaml"),
    )
}


def read_parts(paths: list[Path]) -> list[Part]:
    """All parts in order, those of `paths` with their HTML. Raises `UserError` for a name that is no part's."""
    given = {path.stem: Markup(path.read_text(encoding="utf-8")) for path in paths}
    unknown = sorted(given.keys() - PARTS.keys())
    if unknown:
        raise UserError(f"parts {', '.join(unknown)}: the report has only {', '.join(PARTS)}. Leave the others out.")
    return [replace(part, html=given.get(name, "")) for name, part in PARTS.items()]
