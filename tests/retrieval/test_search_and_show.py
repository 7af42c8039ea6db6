"""Live queries, and the command that shows a chunk's neighbours."""

import json

import numpy as np
import pytest

from retro.base.stage import UserError
from retro.retrieval.search import Searcher
from tests.database.stages import stage
from tests.retrieval.conftest import SAVED


def text_of(dataset, row: int) -> str:
    tokens, mask = dataset.store.tokens(np.array(row))
    return dataset.tokenizer.decode(tokens[mask])


@pytest.fixture(scope="module")
def searcher(dataset) -> Searcher:
    return Searcher(dataset)


def test_a_chunk_s_own_text_finds_it_first(dataset, searcher):
    rows = dataset.database[[0, 10, 100]]
    ids, scores = searcher.search([text_of(dataset, row) for row in rows], 3)
    assert [text_of(dataset, dataset.database[first]) for first in ids[:, 0]] == [text_of(dataset, r) for r in rows]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)


def test_live_queries_find_what_preprocessing_found(dataset, searcher):
    """Without the documents that share the chunk's group, as the dataset excludes them."""
    rows, stored = dataset.rows("test"), dataset.neighbour_ids("test")
    for position in range(0, len(rows), 11):
        row = int(rows[position])
        group = dataset.store.chunks(np.array([row]))["group"][0]
        table = dataset.store.tables[dataset.sources.index("main")]
        documents = np.unique(table["document"][table["group"] == group])
        ids, _ = searcher.search([text_of(dataset, row)], SAVED, [("main", int(number)) for number in documents])
        assert ids[0].tolist() == stored[position].tolist()


def test_excluded_documents_are_not_found(dataset, searcher):
    row = int(dataset.database[50])
    document = dataset.store.document(row)
    ids, _ = searcher.search([text_of(dataset, row)], 20, [(document["source"], document["number"])])
    found = [dataset.store.document(int(r)) for r in dataset.neighbour_rows(ids[0])]
    assert (ids >= 0).all() and document["id"] not in [other["id"] for other in found]


def test_another_encoder_than_the_recorded_one_is_refused(dataset):
    from retro.dataset.dataset import Dataset

    facts = {**dataset.facts, "encoder": {**dataset.facts["encoder"], "width": 32}}
    with pytest.raises(UserError, match="embedded by an encoder of sha256"):
        Searcher(Dataset(dataset.path, facts)).search(["a"], 1)


def test_queries_by_another_model_than_the_recorded_one_are_refused(dataset, tmp_path):
    """A static encoder's database was made for its own queries; here the config names a model for them."""
    from retro.dataset.dataset import Dataset
    from tests.database.test_embedders import make

    encoder = {**dataset.facts["encoder"], "query_path": str(make("bert", tmp_path / "bert"))}
    with pytest.raises(UserError, match=r"made for queries of another encoder than .*bert is now"):
        Searcher(Dataset(dataset.path, {**dataset.facts, "encoder": encoder})).search(["a"], 1)


def show(dataset, capsys, **options) -> str:
    stage("retro.retrieval.search", config=dataset.path, **options)
    return capsys.readouterr().out


def test_show_prints_a_chunk_its_neighbours_and_their_continuations(dataset, capsys):
    out = show(dataset, capsys, split="test", chunk=3, k=4)
    ids = dataset.neighbour_ids("test")[3, :4]
    rows = dataset.neighbour_rows(ids)
    assert out.startswith("test chunk 3: main-")
    for identity, row in zip(ids.tolist(), rows.tolist(), strict=True):
        document = dataset.store.document(row)
        assert f"id {identity}  {document['id']} “{document['title']}”, chunk " in out
        assert document["source"] in out
    following = dataset.store.following(rows)
    assert out.count("… continued:") == int((following >= 0).sum())
    for row in [*rows, *following[following >= 0]]:
        words = text_of(dataset, int(row)).split()
        assert not words or words[-1] in out


def test_show_prints_all_chunks_of_a_document(dataset, capsys):
    row = int(dataset.rows("valid")[0])
    identity = dataset.store.document(row)["id"]
    out = show(dataset, capsys, split="valid", document=identity, k=1)
    table = dataset.store.tables[dataset.sources.index("main")]
    number = dataset.store.document(row)["number"]
    assert out.count("valid chunk ") == int((table["document"] == number).sum())


def test_show_searches_for_any_text(dataset, capsys):
    row = int(dataset.database[7])
    text = text_of(dataset, row)
    out = show(dataset, capsys, text=text, k=2)
    assert dataset.store.document(row)["id"] in out.splitlines()[1] and "score 1.000" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [({"chunk": 10**6}, "has chunks 0 to"), ({"document": "nobody"}, "has no document 'nobody'")],
)
def test_what_does_not_exist_is_told(dataset, options, message):
    with pytest.raises(UserError, match=message):
        stage("retro.retrieval.search", config=dataset.path, split="test", **options)


def test_recorded_neighbours_are_the_ones_shown(dataset):
    """The recorded config names the manifests; the arrays are read through it."""
    facts = json.loads(dataset.path.read_text(encoding="utf-8"))
    assert set(facts["manifests"]) >= {"neighbours/test/manifest.json", "index/manifest.json"}
