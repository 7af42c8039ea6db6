"""The pages of docs/ and the README: every page is in the site, every link leads somewhere."""

import gzip
import json
import re
from pathlib import Path

import pytest
import yaml

from retro.base.names import TEST
from retro.config.schema import load
from retro.corpus.documents import split_of

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "config/README.md", *PAGES]
MADE_BY_THE_SITE = {"config.md", "changelog.md"}  # docs/site/hooks.py


def anchors(page: Path) -> set[str]:
    """What headings of a page are called in links."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def links(page: Path) -> list[str]:
    """Relative links and images of a page, outside of code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_the_site_has_every_page_once_and_no_other():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def listed(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in listed(part)]

    found = listed(site["nav"])
    assert len(found) == len(set(found))
    assert set(found) == {str(page.relative_to(DOCS)) for page in PAGES} | MADE_BY_THE_SITE


def test_a_model_of_the_default_run_is_asked_to_write_about_a_country_that_was_held_out():
    dataset, held_out = load(ROOT / "config/config.yaml").dataset, set()
    with gzip.open(ROOT / dataset.sources["factbook"].path, "rt", encoding="utf-8") as lines:
        for page in map(json.loads, lines):
            if split_of(page["group"], page["id"], True, dataset.split, dataset.seed) == TEST:
                held_out.add(page["title"].partition(":")[0])
    prompts = {
        country
        for page in ALL
        for country in re.findall(
            r"(?:retro write .*--prompt \"?|\.write\(\")([A-Z]\w*(?: [A-Z]\w*)*)", page.read_text(encoding="utf-8")
        )
    }
    assert prompts and prompts <= held_out
