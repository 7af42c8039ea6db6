"""Neighbours that hold the text that is predicted: caught as sets of runs and tokens catch them, and replaced."""

from itertools import chain

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.store import open_store
from retro.retrieval import filter as filtering
from retro.retrieval.filter import Filter, Filtered, common_runs, jaccard
from retro.retrieval.settings import FilterSettings
from retro.validate.database import neighbour_differences
from retro.validate.sample import Sample
from tests.database.stages import M
from tests.retrieval.test_neighbours import case_of
from tests.retrieval.test_retrievers import bm25, neighbours  # noqa: F401 (a fixture)

LENGTH = 6


class Texts:
    """Chunks of one endless document in memory, as `retro.dataset.store.ChunkStore` offers them."""

    length = LENGTH

    def __init__(self, texts: np.ndarray, real: np.ndarray):
        self.texts, self.real = np.append(texts, texts[:1] * 0, 0), np.append(real, real[:1] & False, 0)

    def tokens(self, rows):
        return self.texts[rows], self.real[rows]

    def retrieved(self, rows, count):
        assert count == 2
        both = np.stack([rows, np.where(rows >= 0, rows + 1, -1)], axis=-1)
        shape = (*rows.shape, 2 * LENGTH)
        return self.texts[both].reshape(shape), self.real[both].reshape(shape)


class Ranked:
    """A retriever whose neighbours of each position are given, int64 [q, N], best first."""

    about, complete, fallen_back = None, True, 0

    def __init__(self, order: np.ndarray):
        self.order = order

    def find(self, positions, k, advance=None):
        ids = np.pad(self.order[positions], ((0, 0), (0, k)), constant_values=-1)[:, :k]
        return ids, np.where(ids >= 0, -np.arange(k, dtype=float), -np.inf)


def grams(tokens, run: int) -> set:
    """All runs of that length, None being padding."""
    found = {tuple(tokens[at : at + run]) for at in range(len(tokens) - run + 1)}
    return {gram for gram in found if None not in gram}


def caught(against: list[list], neighbour: list[list], settings: FilterSettings) -> bool:
    """By the definition: `against` and `neighbour` are lists of chunks, which are lists of tokens, None for padding."""
    if settings.run and grams([*chain(*against)], settings.run) & grams([*chain(*neighbour)], settings.run):
        return True
    for mine in against:
        for theirs in neighbour if settings.jaccard else ():
            one, other = set(mine) - {None}, set(theirs) - {None}
            if one | other and len(one & other) / len(one | other) >= settings.jaccard:
                return True
    return False


def made(seed: int, queries: int, size: int) -> tuple[Texts, np.ndarray, np.ndarray, list[list]]:
    """A store of chunks of few different tokens, the rows of a split and of a database, and the chunks as lists."""
    random = np.random.default_rng(seed)
    texts = random.integers(0, 6, (queries + size, LENGTH))
    real = np.arange(LENGTH) < random.integers(1, LENGTH + 1, queries + size)[:, None]
    lists = [[int(t) if r else None for t, r in zip(*row, strict=True)] for row in zip(texts, real, strict=True)]
    return Texts(texts, real), np.arange(queries), np.arange(queries, queries + size), [*lists, [None] * LENGTH]


@pytest.mark.parametrize(
    "bounds",
    [
        {"run": 3},
        {"jaccard": 0.5},
        {"run": 3, "jaccard": 0.6, "against": ["chunk"]},
        {"run": 4, "jaccard": 1.0, "against": ["continuation", "chunk"]},
    ],
)
def test_1000_chunks_are_shown_the_first_that_are_not_caught(bounds, monkeypatch):
    """Against sets, in plain Python; what is left of 30 neighbours, in order, and how many were caught on the way."""
    monkeypatch.setattr(filtering, "CELLS", 50_000)
    settings, k = FilterSettings(**bounds), 4
    store, rows, database, lists = made(seed=1, queries=1000, size=30)
    order = np.stack([np.random.default_rng(number).permutation(30) for number in range(1000)])
    order[::7, 20:] = -1  # holes already
    found = Filtered(Ranked(order), Filter(settings, store, rows, database))
    ids, scores, counts = found.find_and_count(rows, k)
    several = 0
    for position in range(1000):
        read = {"chunk": lists[position], "continuation": lists[position + 1] if position < 999 else lists[-1]}
        against = [read[name] for name in ("chunk", "continuation") if name in settings.against]
        bad = [
            caught(against, [lists[database[place]], lists[min(database[place] + 1, len(lists) - 1)]], settings)
            for place in order[position]
            if place >= 0
        ]
        good = [(place, -at) for at, place in enumerate(order[position, : len(bad)]) if not bad[at]][:k]
        assert ids[position].tolist() == [place for place, _ in good] + [-1] * (k - len(good))
        assert scores[position, : len(good)].tolist() == [score for _, score in good]
        assert counts[position] == sum(bad[: 1 - good[-1][1]] if len(good) == k else bad)
        several += counts[position] > 0
    assert several > 50 and (ids >= 0).all(1).any()


def test_runs_and_similarity_of_each_neighbour():
    mine, real = np.array([[1, 2, 3, 4, 4, 0]]), np.array([[True] * 5 + [False]])
    theirs = np.array([[[9, 1, 2, 3, 9, 9], [4, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 0]]])
    shown = np.array([[[True] * 6, [True] * 5 + [False], [False] * 6]])
    assert common_runs(mine, real, theirs, shown).tolist() == [[3, 2, 0]]
    assert jaccard(mine, real, theirs, shown).tolist() == [[3 / 5, 1.0, 0.0]]


def test_what_is_too_deep_is_a_hole(monkeypatch):
    monkeypatch.setattr(filtering, "DEEPEST", 8)
    store, rows, database, _ = made(seed=2, queries=3, size=40)
    store.texts[database[:20]] = store.texts[1]  # the continuation of the first chunk, twenty times
    store.real[:] = True
    found = Filtered(Ranked(np.arange(40)[None].repeat(3, 0)), Filter(FilterSettings(run=6), store, rows, database))
    ids, _, counts = found.find_and_count(rows, 2)
    assert ids[0].tolist() == [-1, -1] and counts[0] == 8 and (ids[2] >= 0).all()  # the last has no continuation


FILTER = {"run": 2, "jaccard": 0.3, "splits": ["valid"]}


def chunks_of(corpus):
    """The store, its tokenizer, and each chunk's tokens as a list by its global row."""
    tokenizer = Tokenizer.load(corpus.manifest("tokenizer"))
    store = open_store(corpus.manifests("tokens"), corpus.manifests("chunks"), tokenizer)
    tokens, mask = store.tokens(np.arange(len(store)))
    return store, [[int(t) if r else None for t, r in zip(*row, strict=True)] for row in zip(tokens, mask, strict=True)]


def filtered(corpus, output, retriever="dense", index=None, split="valid", **bounds):
    return neighbours(corpus, output, retriever, index, split, filter={**FILTER, **bounds})


def test_a_split_is_filtered_against_the_chunks_that_follow(corpus, tmp_path):
    manifest, case = filtered(corpus, tmp_path / "valid/manifest.json"), case_of(corpus, "valid", ["document"])
    (store, lists), settings = chunks_of(corpus), FilterSettings(**FILTER)
    listed = read_manifest(corpus.manifest("database"))
    database, rows, ranked = listed.array("database.npy"), listed.array("valid.npy"), case.best(len(case.vectors))
    following, count, holes = store.following(database), 0, 0
    for position, ids in enumerate(manifest.array("ids.npy")):
        against = [lists[rows[position + 1]]] if position + 1 < len(rows) else [[None] * M]
        wanted, dropped = [], 0
        for place in ranked[position][ranked[position] >= 0]:
            after = following[place]
            neighbour = [lists[database[place]], lists[after] if after >= 0 else [None] * M]
            if caught(against, neighbour, settings):
                dropped += 1
            else:
                wanted.append(int(place))
            if len(wanted) == 5:
                break
        assert ids.tolist() == wanted + [-1] * (5 - len(wanted))
        count, holes = count + dropped, holes + (len(wanted) < 5)
    told = manifest.counts["filtered"]
    assert told["neighbours"] == count > 0 and 0 < told["chunks"] <= len(rows)
    assert told["chunks_with_holes"] == holes == manifest.counts["chunks_with_holes"]
    assert list(filter(None, neighbour_differences(manifest, Sample(1.0, 0, manifest), 1))) == []


def test_other_splits_and_other_retrievers(corpus, bm25, tmp_path):  # noqa: F811
    """Train is not filtered and says nothing of it; BM25, alone or not, and draws are filtered as well."""
    plain = neighbours(corpus, tmp_path / "plain/manifest.json", "dense")
    train = filtered(corpus, tmp_path / "train/manifest.json", split="train")
    assert (train.array("ids.npy") == plain.array("ids.npy")).all() and "filtered" not in train.counts
    both = [corpus.manifest("index"), bm25]
    others = {"bm25": bm25, "bm25-rerank": both, "hybrid": both, "random": None, "shuffled": None}
    for name, index in others.items():
        found = filtered(corpus, tmp_path / name / "manifest.json", name, index)
        store, lists = chunks_of(corpus)
        rows = read_manifest(corpus.manifest("database")).array("valid.npy")
        database = read_manifest(corpus.manifest("database")).array("database.npy")
        for position, ids in enumerate(found.array("ids.npy")[:-1]):
            for row in database[ids[ids >= 0]]:
                after = int(store.following(np.array([row]))[0])
                neighbour = [lists[row], lists[after] if after >= 0 else [None] * M]
                assert not caught([lists[rows[position + 1]]], neighbour, FilterSettings(**FILTER)), name
        assert found.counts["filtered"]["neighbours"] > 0
