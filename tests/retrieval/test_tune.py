"""The sweep of search parameters, and live queries of other retrievals."""

import csv

import numpy as np
import pytest

from retro.base.stage import UserError
from retro.retrieval import factory
from retro.retrieval.approximate import Sample
from retro.retrieval.search import Searcher, neighbours_of
from retro.retrieval.settings import TOGETHER
from retro.tools.tune_index import cheapest, settings_of, suggestion
from tests.database.stages import stage
from tests.retrieval.test_retrievers import index_bm25, neighbours

pytestmark = pytest.mark.slow


def test_only_the_parameters_an_index_has_are_swept():
    def swept(name):
        return {key for setting in settings_of(factory.build(name, 32)) for key in setting}

    assert swept("IVF16,Flat") == {"nprobe"} and swept("HNSW16") == {"ef_search"}
    assert swept("IVF16,PQ8x4fs,RFlat") == {"nprobe", "k_factor"} == swept("OPQ8,IVF16_HNSW8,PQ8")


def test_the_cheapest_setting_that_finds_enough_is_suggested():
    rows = [{"recall": 1.0, "ms": 3.0}, {"recall": 0.96, "ms": 1.0}, {"recall": 0.9, "ms": 0.5}]
    assert cheapest(rows, 0.95) is rows[1] and cheapest(rows, 0.99) is rows[0] and cheapest(rows[1:], 0.99) is None


def test_where_there_is_nothing_to_find_exact_search_is_suggested():
    rows = [{"name": "exact search", "recall": 0.0, "ms": 3.0}, {"name": "Flat", "recall": 0.0, "ms": 1.0}]
    assert suggestion("Flat", rows, 0.95) == "cheapest with recall 0.95: exact search (3.000 ms a query)"


@pytest.mark.parametrize("recall", [95, -0.5])
def test_a_recall_that_is_no_share_is_refused_before_anything_is_measured(dataset, tmp_path, recall):
    with pytest.raises(UserError, match=f"--recall {recall}: wanted a share from 0 to 1"):
        stage("retro.tools.tune_index", config=dataset.path, recall=recall, **{"output-folder": tmp_path / "tune"})
    assert not (tmp_path / "tune").exists()


def test_tune_writes_a_table_and_a_figure(dataset, tmp_path, capsys):
    stage(
        "retro.tools.tune_index",
        config=dataset.path,
        factory="IVF8,Flat",
        k=5,
        sample=30,
        split="test",
        recall=1.0,
        **{"output-folder": tmp_path},
    )
    with open(tmp_path / "tune.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["nprobe"] for row in rows] == ["", "1", "2", "4", "8"]
    recalls = [float(row["recall"]) for row in rows]
    assert recalls[0] == recalls[-1] == 1 and recalls[1] < 1 and recalls[1:] == sorted(recalls[1:])
    assert all(float(row["ms"]) > 0 for row in rows)
    assert (tmp_path / "tune.png").stat().st_size and (tmp_path / "tune.svg").stat().st_size
    assert "cheapest with recall 1.0: " in capsys.readouterr().out


def test_what_is_excluded_is_not_counted_as_found(dataset):
    sample = Sample(dataset, "train", 40, 5)
    assert not sample.barred.among(sample.truth).any()


@pytest.fixture(scope="module")
def words(corpus, dataset):
    """A retrieval of the dataset, by BM25."""
    folder = dataset.folder / "retrievals/words"
    index_bm25(corpus, folder / "bm25/manifest.json")
    return neighbours(corpus, folder / "neighbours/test/manifest.json", "bm25", folder / "bm25/manifest.json", "test")


@pytest.mark.parametrize("retriever", ["bm25", *TOGETHER])
def test_a_live_query_of_a_retrieval_finds_what_the_retrieval_stored(corpus, dataset, words, tmp_path, retriever):
    if retriever != "bm25":
        indexes = [corpus.manifest("index"), dataset.folder / "retrievals/words/bm25/manifest.json"]
        words = neighbours(corpus, tmp_path / "n/manifest.json", retriever, indexes, "test", candidates=9)
    searcher, rows = Searcher(dataset, 1, words), dataset.rows("test")
    for position in range(0, len(rows), 13):
        row = int(rows[position])
        tokens, mask = dataset.store.tokens(np.array(row))
        document = dataset.store.document(row)
        text = dataset.tokenizer.decode(tokens[mask])
        ids, _ = searcher.search([text], 5, [(document["source"], document["number"])])
        assert ids[0].tolist() == words.array("ids.npy")[position].tolist()


def test_show_prints_a_named_retrieval(dataset, words, capsys):
    stage("retro.retrieval.search", config=dataset.path, split="test", chunk=3, k=2, retrieval="words")
    out = capsys.readouterr().out
    assert all(f"id {identity} " in out for identity in words.array("ids.npy")[3, :2].tolist())
    stage("retro.retrieval.search", config=dataset.path, text="kalo", k=2, retrieval="words", split="test")
    assert "1. score" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no retrieval 'nobody': retrievals in .* for test: words"):
        neighbours_of(dataset, "nobody", "test")
