"""Show a chunk's neighbours and their continuations, or search the database for any text.

python -m retro.retrieval.show --config results/<dataset>/config.json --split test --chunk 12
python -m retro.retrieval.show --config … --split test --document <id>
python -m retro.retrieval.show --config … --text "free text"
python -m retro.retrieval.show --config … --chunk 12 --retrieval <name>      another retrieval of the config
"""

import argparse
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from retro import errors
from retro.artifacts import Manifest
from retro.database.tables import LISTED
from retro.errors import UserError
from retro.recorded import Dataset
from retro.retrieval.search import Searcher

WIDTH = 100


class Shower:
    """Writes chunks of a dataset as text."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.store = dataset, dataset.store

    def text(self, row: int) -> str:
        """A chunk's text, wrapped and indented."""
        tokens, mask = self.store.tokens(np.array(row))
        text = " ".join(self.dataset.tokenizer.decode(tokens[mask]).split())
        return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ") or "    (no text)"

    def place(self, row: int) -> str:
        """Document, title, source, and which of the document's chunks it is."""
        document = self.store.document(row)
        start = int(self.store.chunks(np.array([row]))["start"][0])
        number = int(self.store.source(np.array(row)))
        first = int(self.store.stores[number].offsets[document["number"]])
        title = "" if document["title"] == document["id"] else f" “{document['title']}”"
        which = (start - first) // self.store.length + 1
        return f"{document['id']}{title}, chunk {which}, {document['source']}"

    def neighbours(self, ids: np.ndarray, scores: np.ndarray) -> Iterator[str]:
        """Lines on neighbours given as database ids and scores, with what follows each in its document."""
        for rank, (identity, score) in enumerate(zip(ids, scores, strict=True), start=1):
            if identity < 0:
                yield f"{rank:3}. no other chunk is admissible"
                return
            row = int(self.dataset.neighbour_rows(identity))
            yield f"{rank:3}. score {float(score):.3f}  id {identity}  {self.place(row)}"
            yield self.text(row)
            following = int(self.store.following(np.array([row]))[0])
            if following >= 0:
                yield "    … continued:"
                yield self.text(following)


def positions_of(dataset: Dataset, split: str, identity: str) -> np.ndarray:
    """Positions in a split of the chunks of the document of that id, in any source."""
    rows = dataset.rows(split)
    for number, manifest in enumerate(dataset.store.documents):
        with open(manifest.file("documents.jsonl"), encoding="utf-8") as file:
            for document, line in enumerate(file):
                if json.loads(line)["id"] != identity:
                    continue
                table = dataset.store.tables[number]
                at = np.flatnonzero(table["document"] == document) + dataset.store.offsets[number]
                found = np.flatnonzero(np.isin(rows, at))
                if len(found):
                    return found
    raise UserError(f"{dataset.path}: the {split} split has no document {identity!r}. Try another --split.")


def neighbours_of(dataset: Dataset, retrieval: str | None, split: str) -> Manifest:
    """The manifest of a split's neighbours, of a named retrieval or the dataset's own."""
    if retrieval is None:
        return dataset.manifest(f"neighbours/{split}/manifest.json", "neighbours")
    name = f"retrievals/{retrieval}/neighbours/{split}/manifest.json"
    if not (dataset.folder / name).is_file():
        known = sorted(path.parts[-4] for path in dataset.folder.glob(f"retrievals/*/neighbours/{split}/manifest.json"))
        raise UserError(
            f"--retrieval {retrieval}: no file {dataset.folder / name}; "
            f"made for {split}: {', '.join(known) or 'none'}. Name it under "
            f"retrievals in the config and run: snakemake {dataset.folder / name}"
        )
    return dataset.manifest(name, "neighbours")


def lines(dataset: Dataset, options: argparse.Namespace) -> Iterator[str]:
    """What is to be printed."""
    shower = Shower(dataset)
    if options.text is not None:
        named = neighbours_of(dataset, options.retrieval, options.split) if options.retrieval else None
        ids, scores = Searcher(dataset, options.threads, named).search([options.text], options.k)
        yield f"text: {options.text}"
        yield from shower.neighbours(ids[0], scores[0])
        return
    rows = dataset.rows(options.split)
    if options.document is not None:
        positions = positions_of(dataset, options.split, options.document)
    else:
        positions = np.array([options.chunk])
    if not (positions.min() >= 0 and positions.max() < len(rows)):
        raise UserError(
            f"--chunk {options.chunk}: the {options.split} split has chunks 0 to {len(rows) - 1}; choose one of them."
        )
    manifest = neighbours_of(dataset, options.retrieval, options.split)
    ids, scores = manifest.array("ids.npy"), manifest.array("scores.npy")
    for position in positions.tolist():
        yield f"{options.split} chunk {position}: {shower.place(int(rows[position]))}"
        yield shower.text(int(rows[position]))
        yield from shower.neighbours(ids[position, : options.k], scores[position, : options.k])
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="config.json of the dataset")
    parser.add_argument("--split", default="test", choices=LISTED)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--chunk", type=int, help="position of a chunk in the split")
    chosen.add_argument("--document", help="id of a document: all its chunks in the split")
    chosen.add_argument("--text", help="any text: search for it now")
    parser.add_argument("--retrieval", help="a name under retrievals in the config; default: the dataset's own")
    parser.add_argument("--k", type=int, default=5, help="neighbours to show")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    options = parser.parse_args()
    for line in lines(Dataset.open(options.config), options):
        print(line)


if __name__ == "__main__":
    errors.run(main)
