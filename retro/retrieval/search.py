"""Live queries: text to its nearest database chunks, as a dataset, or one of its other retrievals, finds them.

As a command it shows a chunk's neighbours and their continuations, or searches the database for any text:

    python -m retro.retrieval.search --config results/open-book/config.json --text "Sri Lanka: Communications"
"""

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import faiss
import numpy as np

from retro.base import command
from retro.base.artifacts import Manifest, read_manifest
from retro.base.names import LISTED
from retro.base.nearest import did_you_mean, unknown
from retro.base.stage import UserError, natural, whole
from retro.corpus.dates import date_argument
from retro.database.encoders import Encoder, GivenEncoder, asking_identity, open_for_queries, settings_of
from retro.dataset.dataset import Dataset
from retro.dataset.named import recorded_config
from retro.dataset.store import Vectors
from retro.retrieval.approximate import ApproximateSearch, open_index
from retro.retrieval.bm25 import Bm25Search
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import NEVER, Barred, Rule, as_neighbours, read_dates, read_keys
from retro.retrieval.retrievers import BM25_INDEX, fuse, rerank
from retro.retrieval.settings import TOGETHER, IndexSettings


class Searcher:
    """Searches the database of a dataset, on `threads` CPU cores. Opened on first use, kept open.

    `neighbours`, a manifest, stands for the retrieval that made it: the dataset's own if there is none. Controls
    (random, shuffled) are no search: text is looked up in the index they were made beside.
    """

    def __init__(self, dataset: Dataset, threads: int = 1, neighbours: Manifest | None = None):
        self.dataset, self.threads, self._neighbours = dataset, threads, neighbours

    def search(
        self,
        texts: list[str],
        k: int,
        exclude_documents: Iterable[tuple[str, int]] = (),
        exclude_each: Sequence[Sequence[tuple[str, int]]] | None = None,
        until: int | Sequence[int | None] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Database ids int64 and scores float64 [n, k] of each text's neighbours, best first.

        Chunks of `exclude_documents`, pairs of a source's name and the number of one of its documents, are
        left out, and for each text those of its own in `exclude_each`. With `until`, a date of
        `retro.corpus.dates` for all texts or one for each, so is what is later or has no date; without it all dates
        are found, whatever the dataset excludes: a text has no date of its own. Ids are −1 and scores −∞ where the
        database has fewer than k others. `Dataset.neighbour_rows` turns ids into global rows. Candidates come
        from the index; their scores are exact.
        """
        documents = [[*exclude_documents]] * len(texts)
        if exclude_each is not None:
            documents = [[*each, *own] for each, own in zip(documents, exclude_each, strict=True)]
        asked, barred = list(texts), self._barred(documents, until)
        if self._retriever == "bm25":
            return self._words.search(asked, k, barred)
        together = self._retriever in TOGETHER
        vectors, count = self.encoder.encode_queries(asked), self._settings.candidates
        ids, scores = self._search.search(vectors, max(k, count) if together else k, barred)
        if self._retriever == "hybrid":
            return fuse(ids, self._words.search(asked, count, barred)[0], k)
        if together:
            ids, scores = rerank(ids, self._words.score(asked, ids), count)
        return ids[:, :k], scores[:, :k]

    def search_vectors(
        self,
        vectors: np.ndarray,
        k: int,
        exclude_documents: Iterable[tuple[str, int]] = (),
        until: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for unit vectors float32 [n, d]; always dense."""
        return self._search.search(vectors, k, self._barred([[*exclude_documents]] * len(vectors), until))

    def _barred(self, documents: list[list[tuple[str, int]]], until: int | Sequence[int | None] | None) -> Barred:
        """The chunks of each query's `documents`, and what is later than its date."""
        parts = []
        for each in zip_longest(*documents):  # one more of every query that has so many
            keys = [0 if one is None else (self.dataset.sources.index(one[0]) << 32) + one[1] for one in each]
            ranks = self._documents.look_up(np.array(keys, np.uint64))
            parts.append((self._documents, np.where([one is None for one in each], -1, ranks)))
        given = until if isinstance(until, Sequence) else [until] * len(documents)
        if all(date is None for date in given):
            return Barred(parts)
        dates = [NEVER if date is None else date for date in given]  # NEVER is later than all, so that none is later
        return Barred(parts, [(self._dates, np.array(dates, np.int64))])

    @cached_property
    def _dates(self) -> np.ndarray:
        """int64 [N]: date of each database position, NEVER where it has none."""
        dates = as_neighbours(read_dates(self._paths("chunks")), self.dataset.database)
        if len(dates) and dates.min() == NEVER:
            raise UserError(
                f"{self.dataset.path}: a date was given, but no document of this database has one. Name "
                f"dataset.sources.<name>.fields.date in its config, or give no date."
            )
        return dates

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the database. Raises `UserError` if the one installed is not the one recorded."""
        facts = self._vectors.encoder | ({} if self._neighbours else self.dataset.facts["encoder"])
        encoder, recorded = open_for_queries(facts, self.threads), facts["identity"]
        if isinstance(encoder, GivenEncoder):
            encoder.of(self.dataset.sources[0])
        if encoder.identity != recorded:
            raise UserError(
                f"{self.dataset.folder / 'embeddings'}: embedded by an encoder of sha256 {recorded[:16]}…, "
                f"but {facts['type']} {facts.get('path') or ''} now has {encoder.identity[:16]}…. Restore the "
                f"encoder, or run snakemake to embed again."
            )
        here = asking_identity(settings_of(facts)).get("query_identity")
        if here != facts.get("query_identity"):
            raise UserError(
                f"{self.dataset.folder / 'embeddings'}: made for queries of another encoder than "
                f"{facts.get('query_path')} is now. Restore it, or run snakemake to embed again."
            )
        return encoder

    @property
    def _made(self) -> dict:
        """What the neighbours were found by: retriever, index."""
        return self._neighbours.settings if self._neighbours else self.dataset.facts

    @property
    def _retriever(self) -> str:
        return self._made["retriever"]

    @property
    def _settings(self) -> IndexSettings:
        return IndexSettings(**self._made["index"])

    def _paths(self, kind: str) -> list[Path]:
        if self._neighbours and kind == "embeddings":
            return self._made_from(self._neighbours, "embeddings")
        return [self.dataset.folder / kind / name / "manifest.json" for name in self.dataset.sources]

    def _made_from(self, neighbours: Manifest, kind: str) -> list[Path]:
        """Manifests of that kind that the neighbours were made from, in order."""
        paths = [neighbours.folder / name for name in neighbours.facts["inputs"]]
        return sorted(path for path in paths if read_manifest(path).facts["kind"] == kind)

    def _index(self, name: str) -> Manifest:
        paths = [self.dataset.folder / name / "manifest.json"]
        if self._neighbours:
            paths = self._made_from(self._neighbours, "index")
        found = [read_manifest(path, "index") for path in paths]
        return next(each for each in found if (BM25_INDEX in each.facts["files"]) == (name == "bm25"))

    @cached_property
    def _words(self) -> Bm25Search:
        return Bm25Search(self._index("bm25").folder, self.threads)

    @cached_property
    def _vectors(self) -> Vectors:
        return Vectors(self._paths("embeddings"))

    @cached_property
    def _documents(self) -> Rule:
        return Rule(read_keys("document", self._paths("chunks"))[self.dataset.database])

    @cached_property
    def _search(self) -> ApproximateSearch:
        faiss.omp_set_num_threads(self.threads)
        path = self._index("index").file("index.faiss")
        exact = ExactSearch(self._vectors, self.dataset.database, self.threads)
        return ApproximateSearch(open_index(path, self._settings), exact, self._settings)


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
    rows, known = dataset.rows(split), []
    for number, manifest in enumerate(dataset.store.documents):
        with open(manifest.file("documents.jsonl"), encoding="utf-8") as file:
            for document, line in enumerate(file):
                known.append(json.loads(line)["id"])
                if known[-1] != identity:
                    continue
                table = dataset.store.tables[number]
                at = np.flatnonzero(table["document"] == document) + dataset.store.offsets[number]
                found = np.flatnonzero(np.isin(rows, at))
                if len(found):
                    return found
    place = "another has: try another --split" if identity in known else "nor has another: give an id that there is"
    near = "" if identity in known else did_you_mean(identity, known)
    raise UserError(f"--document: the {split} split has no document {identity!r}; {place}{near or '.'}")


def neighbours_of(dataset: Dataset, retrieval: str | None, split: str) -> Manifest:
    """The manifest of a split's neighbours, of a named retrieval or the dataset's own."""
    if retrieval is None:
        return dataset.manifest(f"neighbours/{split}/manifest.json", "neighbours")
    name = f"retrievals/{retrieval}/neighbours/{split}/manifest.json"
    if not (dataset.folder / name).is_file():
        known = sorted(path.parts[-4] for path in dataset.folder.glob(f"retrievals/*/neighbours/{split}/manifest.json"))
        raise UserError(
            f"--retrieval: {unknown('retrieval', retrieval, known, f'{dataset.folder} for {split}')} To make it, name "
            f"it under retrievals in the config and run: snakemake {dataset.folder / name}"
        )
    return dataset.manifest(name, "neighbours")


def lines(dataset: Dataset, options: argparse.Namespace) -> Iterator[str]:
    """What is to be printed."""
    shower = Shower(dataset)
    if options.text is not None:
        named = neighbours_of(dataset, options.retrieval, options.split) if options.retrieval else None
        searcher = Searcher(dataset, options.threads, named)
        ids, scores = searcher.search([options.text], options.k, until=options.date)
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
    parser.add_argument(
        "--config", required=True, type=recorded_config, help="a dataset, by name, folder or config.json"
    )
    parser.add_argument("--split", default="test", choices=LISTED)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--chunk", type=natural, help="position of a chunk in the split")
    chosen.add_argument("--document", help="id of a document: all its chunks in the split")
    chosen.add_argument("--text", help="any text: search for it now")
    parser.add_argument("--date", type=date_argument, help="with --text: nothing later than this, such as 2015-03")
    parser.add_argument("--retrieval", help="a name under retrievals in the config; default: the dataset's own")
    parser.add_argument("--k", type=whole, default=5, help="neighbours to show")
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
    options = parser.parse_args()
    for line in lines(Dataset.open(options.config), options):
        print(line)


if __name__ == "__main__":
    command.run(main)
