"""What is later than a chunk is never its neighbour: whatever searches, stored and live."""

import json

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.names import CHUNK, UNDATED, dated
from retro.base.stage import UserError
from retro.corpus.dates import last_second
from retro.dataset.dataset import Dataset
from retro.dataset.store import Vectors
from retro.retrieval.approximate import ApproximateSearch
from retro.retrieval.bm25 import Bm25Search, build
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Exclusion, read_dates
from retro.retrieval.index import make
from retro.retrieval.retrievers import draw
from retro.retrieval.search import Searcher
from retro.retrieval.settings import TOGETHER, IndexSettings
from tests.database.stages import Corpus
from tests.retrieval.brute import Plain, make_case
from tests.retrieval.test_neighbours import case_of
from tests.retrieval.test_retrievers import index_bm25, neighbours


@pytest.fixture(scope="module")
def dated_corpus(tmp_path_factory) -> Corpus:
    """Of 7 years; each fifth document has no date."""
    corpus = Corpus(tmp_path_factory.mktemp("dated"), documents=20)
    for source in corpus.sources.values():
        source["fields"] = {"date": "date"}
    corpus.tokenize().chunk().embed().assemble().index()
    index_bm25(corpus, corpus.manifest("bm25"))
    return corpus


def dated_case(corpus, split, rules=("document",)):
    """The search of a split as a brute-force case that knows dates."""
    case, listed = case_of(corpus, split, list(rules)), read_manifest(corpus.manifest("database"))
    dates = read_dates(corpus.manifests("chunks"))
    case.database_dates, case.query_dates = (dates[listed.array(f"{name}.npy")] for name in ("database", split))
    return case


def test_a_chunk_has_the_date_of_its_document(dated_corpus):
    for name in dated_corpus.names:
        table = read_manifest(dated_corpus.manifest("chunks", name)).array("chunks.npy")
        wanted = [
            last_second(record["date"], "") if "date" in record else UNDATED
            for record in map(json.loads, (dated_corpus.folder / f"{name}.jsonl").read_text("utf-8").splitlines())
        ]
        assert table.dtype == dated(CHUNK)
        assert table["date"].tolist() == [wanted[number] for number in table["document"]]


@pytest.mark.parametrize("retriever", ["dense", "bm25", *TOGETHER, "random", "shuffled"])
def test_no_retriever_finds_what_is_later_or_has_no_date(dated_corpus, tmp_path, retriever):
    corpus, (dense, words) = dated_corpus, (dated_corpus.manifest(name) for name in ("index", "bm25"))
    index = words if retriever == "bm25" else [dense, words] if retriever in TOGETHER else dense
    found = neighbours(corpus, tmp_path / "manifest.json", retriever, index, saved=30, exclude=("group", "later"))
    ids, case = found.array("ids.npy"), dated_case(corpus, "train", ("document", "group"))
    allowed = case.admissible()
    rows, places = np.nonzero(ids >= 0)
    assert allowed[rows, ids[rows, places]].all() and len(rows)
    if retriever == "dense":
        assert ids.tolist() == case.best(30).tolist()
    if retriever != "shuffled":  # where what either chunk may not have is left out
        assert ((ids >= 0).sum(1) == np.minimum(30, allowed.sum(1))).all()
    undated, theirs = (case.query_dates == UNDATED), case.database_dates
    late = (theirs == UNDATED) | (theirs > case.query_dates[:, None]) | undated[:, None]
    assert found.counts["later"] == {
        "pairs": int(late.sum()),
        "chunks_without_date": int(undated.sum()),
        "database_without_date": int((theirs == UNDATED).sum()),
        "chunks_with_nothing_older": int((late.all(1) & ~undated).sum()),
    }
    assert (ids[undated] < 0).all() and undated.any()


def test_nothing_is_counted_where_dates_do_not_matter(corpus, tmp_path):
    assert "later" not in neighbours(corpus, tmp_path / "manifest.json", "dense").counts


def test_without_dates_nothing_is_found(corpus):
    """The config refuses that; the stage, given it, is not taken in."""
    database = read_manifest(corpus.manifest("database")).array("database.npy")
    barred = Exclusion(["document", "later"], corpus.manifests("chunks"), database).of(database[:3])
    assert barred.among(np.arange(len(database))[None].repeat(3, 0)).all()


def test_1000_queries_of_approximate_search_words_and_draws_against_brute_force(tmp_path):
    """Half of the database is later than the middle query, so that lists are left for all vectors."""
    case = make_case(seed=3, size=600, queries=1000, width=16, documents=60, distinct=400, groups=20, dates=30)
    allowed, k, everywhere = case.admissible(), 12, np.arange(600)
    exact = ExactSearch(Plain(case.vectors), everywhere, 1)
    settings = IndexSettings(factory="IVF8,Flat", nprobe=2)
    index = make("IVF8,Flat", Plain(case.vectors), everywhere, settings, seed=1)
    words = [f"w{number % 40} v{number % 7}" for number in range(600)]
    build(words, tmp_path, 1.5, 0.75)
    barred = case.barred()
    found = {
        "approximate": ApproximateSearch(index, exact, settings).search(case.queries, k, barred)[0],
        "words": Bm25Search(tmp_path).search([f"w{number % 40}" for number in range(1000)], k, barred)[0],
        "draws": draw(np.arange(1000), barred, 600, k, seed=5),
    }
    for name, ids in found.items():
        rows, places = np.nonzero(ids >= 0)
        assert allowed[rows, ids[rows, places]].all(), name
        assert ((ids >= 0).sum(1) == np.minimum(k, allowed.sum(1))).all(), name  # holes only where nothing is left
    assert (allowed.sum(1) == 0).any() and (allowed.sum(1) > k).any()


def test_a_live_lookup_is_given_a_date_or_sees_all(dated_corpus):
    corpus = dated_corpus
    dates = read_dates(corpus.manifests("chunks"))
    manifests = {"database/manifest.json": "", "index/manifest.json": ""}
    facts = {"source_order": corpus.names, "retriever": "dense", "index": {}, "manifests": manifests}
    dataset = Dataset(corpus.folder / "D/config.json", facts)
    searcher, database = Searcher(dataset), dataset.database
    vectors = Vectors(corpus.manifests("embeddings")).read(database[:5])
    until = last_second(2002, "")
    ids, _ = searcher.search_vectors(vectors, len(database), until=until)
    for row in ids:
        seen = dates[database[row[row >= 0]]]
        assert len(seen) == ((dates[database] <= until) & (dates[database] != UNDATED)).sum() and (seen <= until).all()
    assert (searcher.search_vectors(vectors, len(database))[0] >= 0).all()


def test_a_date_is_refused_where_no_document_has_one(dataset):
    with pytest.raises(UserError, match=r"no document of this database has one.*fields\.date"):
        Searcher(dataset).search_vectors(np.zeros((1, 64), np.float32), 1, until=0)
