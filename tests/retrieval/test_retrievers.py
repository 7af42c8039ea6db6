"""Other retrievers than the dense one: BM25 against its formula, and controls against their definitions."""

import math
from collections import Counter

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.names import BM25_FILES
from retro.base.stage import UserError
from retro.dataset.store import open_store, texts
from retro.retrieval.bm25 import Bm25Search, build, check, first, words
from retro.retrieval.exclusion import Barred, Rule, read_keys
from retro.retrieval.retrievers import draw, fuse, others, rerank
from retro.retrieval.settings import CANDIDATES, TOGETHER
from tests.database.stages import stage
from tests.retrieval.test_neighbours import bytes_of, case_of

K1, B = 1.2, 0.6


@pytest.fixture(scope="module")
def bm25(corpus, tmp_path_factory):
    """The manifest of a BM25 index of the corpus."""
    output = tmp_path_factory.mktemp("bm25") / "manifest.json"
    index_bm25(corpus, output)
    return output


def index_bm25(corpus, output, **more):
    stage(
        "retro.retrieval.bm25",
        settings={"index": {"bm25_k1": K1, "bm25_b": B}},
        database=corpus.manifest("database"),
        tokenizer=corpus.manifest("tokenizer"),
        tokens=corpus.manifests("tokens"),
        chunks=corpus.manifests("chunks"),
        output=output,
        **more,
    )


def test_a_bm25_index_larger_than_the_jobs_memory_is_refused_before_it_is_built(corpus, tmp_path, monkeypatch):
    check(1_000_000, 64, 2560)
    with pytest.raises(UserError, match=r"1,000,000 chunks of 64 tokens takes up to 2,560 MB.*the job has 2,559"):
        check(1_000_000, 64, 2559)
    monkeypatch.setattr("retro.retrieval.bm25.BYTES", 1_000_000)
    with pytest.raises(UserError, match=r"--set-resources bm25_index:mem_mb=\d+"):
        index_bm25(corpus, tmp_path / "manifest.json", memory=1)
    assert not list(tmp_path.iterdir())


def neighbours(
    corpus,
    output,
    retriever,
    index=None,
    split="train",
    saved=5,
    exclude=("document",),
    filter=None,
    candidates=CANDIDATES,
    **more,
):
    lexical = {"tokenizer": corpus.manifest("tokenizer"), "tokens": corpus.manifests("tokens")}
    settings = {"saved": saved, "exclude": exclude, **({"filter": filter} if filter else {})}
    stage(
        "retro.retrieval.neighbours",
        settings={
            "retriever": retriever,
            "neighbours": settings,
            "index": {"nprobe": 1} | ({} if candidates == CANDIDATES else {"candidates": candidates}),
            "seed": 1,
        },
        split=split,
        database=corpus.manifest("database"),
        chunks=corpus.manifests("chunks"),
        embeddings=corpus.manifests("embeddings"),
        index=index or corpus.manifest("index"),
        output=output,
        **(lexical if retriever in ("bm25", *TOGETHER) or filter else {}),
        **more,
    )
    return read_manifest(output, "neighbours")


def all_texts(corpus, name):
    """The text of each chunk listed in an array of the database's manifest."""
    from retro.corpus.tokenizers import Tokenizer

    tokenizer = Tokenizer.load(corpus.manifest("tokenizer"))
    store = open_store(corpus.manifests("tokens"), corpus.manifests("chunks"), tokenizer)
    return texts(store, tokenizer, read_manifest(corpus.manifest("database")).array(name))


def formula(query: str, documents: list[str]) -> np.ndarray:
    """BM25 as Lucene computes it, without its constant factor k1 + 1, in float64."""
    counts = [Counter(words(text)) for text in documents]
    lengths = np.array([sum(count.values()) for count in counts])
    scores = np.zeros(len(documents))
    for word in words(query):
        tf = np.array([count[word] for count in counts], float)
        df = int((tf > 0).sum())
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        scores += idf * tf / (tf + K1 * (1 - B + B * lengths / lengths.mean()))
    return scores


def test_bm25_neighbours_are_those_of_the_formula(corpus, bm25, tmp_path):
    """Ids differ from the formula's only between chunks whose scores are equal up to rounding."""
    manifest = neighbours(corpus, tmp_path / "manifest.json", "bm25", bm25, split="test")
    ids, allowed = manifest.array("ids.npy"), case_of(corpus, "test", ["document"]).admissible()
    database, queries = all_texts(corpus, "database.npy"), all_texts(corpus, "test.npy")
    for row, query in enumerate(queries):
        scores = np.where(allowed[row], formula(query, database), -np.inf)
        np.testing.assert_allclose(scores[ids[row]], np.sort(scores)[::-1][:5], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(manifest.array("scores.npy")[row], scores[ids[row]], rtol=1e-3)
    assert manifest.counts["recall"]["5"] == 1 and "BM25" in manifest.settings["factory"]
    assert manifest.counts["holes"] == 0


def test_the_same_bm25_index_and_neighbours_are_made_again(corpus, bm25, tmp_path):
    index_bm25(corpus, tmp_path / "again/manifest.json")
    for name in (*BM25_FILES, "manifest.json"):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (bm25.parent / name).read_bytes() or name == "manifest.json"
    one = neighbours(corpus, tmp_path / "one/manifest.json", "bm25", bm25)
    two = neighbours(corpus, tmp_path / "two/manifest.json", "bm25", bm25, threads=2, block=17)
    assert bytes_of(one.path) == bytes_of(two.path)


def test_equal_scores_are_ordered_by_id_and_holes_only_left_where_nothing_is(tmp_path):
    build(["a b", "b a", "c", "a b", "d"], tmp_path, K1, B)
    search = Bm25Search(tmp_path)
    nothing = Barred([])
    assert search.search(["a b"], 5, nothing)[0].tolist() == [[0, 1, 3, 2, 4]]
    assert search.search(["unheard of"], 3, nothing)[0].tolist() == [[0, 1, 2]]
    rule = Rule(np.array([7, 7, 8, 9, 7], np.uint64))
    ids, scores = search.search(["a b"], 3, Barred([(rule, rule.look_up(np.array([7], np.uint64)))]))
    assert ids.tolist() == [[3, 2, -1]] and scores[0, 1] == 0 and scores[0, 2] == -np.inf


def test_first_is_a_stable_sort():
    random = np.random.default_rng(0)
    for size in (1, 3, 50):
        scores = random.integers(0, 4, size).astype(np.float32)
        scores[random.random(size) < 0.3] = -np.inf
        order = np.argsort(-scores, kind="stable")
        wanted = order[scores[order] > -np.inf]
        for k in (1, 2, 7, 60):
            assert first(scores, k).tolist() == wanted[:k].tolist()


def test_words_of_any_script():
    assert words("The Ｃat's 2nd STRASSE, Straße!") == ["the", "cat", "s", "2nd", "strasse", "strasse"]
    assert words("東京タワー") == ["東", "京", "タ", "ワ", "ー"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words(" … —") == []


def together(retriever: str, dense: list[int], scores: np.ndarray, candidates: int, k: int) -> list[int]:
    """By hand: `dense` all that is admissible, nearest first, and the BM25 score of every chunk of the database."""
    first, rest = dense[:candidates], dense[candidates:]
    by_words = sorted(dense, key=lambda chunk: (-scores[chunk], chunk))[:candidates]
    if retriever == "bm25-rerank":
        return (sorted(first, key=lambda chunk: (-scores[chunk], chunk)) + rest)[:k]
    value: Counter = Counter()
    for listed in (first, by_words):
        for rank, chunk in enumerate(listed, start=1):
            value[chunk] += 1 / (60 + rank)
    fused = sorted(value, key=lambda chunk: (-value[chunk], chunk))
    return (fused + [chunk for chunk in rest if chunk not in value])[:k]


@pytest.mark.parametrize("seed", range(4))
def test_small_rankings_are_put_together_as_by_hand(seed):
    """Of 12 chunks, some with equal words, some excluded; from a single candidate to more than there are."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, 12).astype(np.float64)
    dense = random.permutation(12)[: random.integers(3, 12)]
    words = np.array(sorted(dense, key=lambda chunk: (-scores[chunk], chunk)))
    for candidates in (1, 2, 5, 20):
        for k in (1, 3, 12, 30):
            size = max(k, candidates)
            found = np.pad(dense, (0, size))[None, :size]
            found[:, len(dense) :] = -1
            listed = np.pad(words, (0, candidates))[None, :candidates]
            listed[:, len(dense) :] = -1
            given = np.where(found < 0, -np.inf, scores[found])
            results = {"bm25-rerank": rerank(found, given, candidates), "hybrid": fuse(found, listed, k)}
            for name, (ids, value) in results.items():
                wanted = together(name, dense.tolist(), scores, candidates, k)
                assert ids[0, :k].tolist() == wanted + [-1] * (k - len(wanted)), (name, candidates, k)
                assert (np.isneginf(value) == (ids < 0)).all()


@pytest.mark.parametrize("retriever", TOGETHER)
@pytest.mark.parametrize("candidates", [3, 20])
def test_dense_search_and_bm25_together_are_those_of_brute_force(corpus, bm25, tmp_path, retriever, candidates):
    indexes, options = [corpus.manifest("index"), bm25], {"split": "test", "exclude": ("group",)}
    options |= {"candidates": candidates, "saved": 8}
    found = neighbours(corpus, tmp_path / "a/manifest.json", retriever, indexes, **options)
    case, search = case_of(corpus, "test", ["document", "group"]), Bm25Search(bm25.parent)
    dense = case.best(len(case.vectors))
    for row, query in enumerate(all_texts(corpus, "test.npy")):
        nearest = [chunk for chunk in dense[row].tolist() if chunk >= 0]
        wanted = together(retriever, nearest, search.scores(query), candidates, 8)
        assert found.array("ids.npy")[row].tolist() == wanted
    assert found.counts["recall"]["8"] == 1 and found.settings["factory"].startswith("Flat, BM25")
    again = neighbours(corpus, tmp_path / "b/manifest.json", retriever, indexes[::-1], threads=2, block=7, **options)
    assert bytes_of(again.path)[:2] == bytes_of(found.path)[:2]
    fewer = neighbours(corpus, tmp_path / "c/manifest.json", retriever, indexes, **{**options, "saved": 2})
    assert (fewer.array("ids.npy") == found.array("ids.npy")[:, :2]).all()


def test_what_is_found_together_is_compared_with_the_same_by_exact_search(corpus, bm25, tmp_path):
    """Of an approximate index: recall is of what an exact one gives, put together in the same way."""
    few, built = tmp_path / "index/manifest.json", {"index": {"factory": "IVF8,Flat"}, "seed": 1}
    listed = {"database": corpus.manifest("database"), "embeddings": corpus.manifests("embeddings")}
    stage("retro.retrieval.index", settings=built, output=few, **listed)
    options = {"split": "test", "candidates": 6}
    found = neighbours(corpus, tmp_path / "a/manifest.json", "bm25-rerank", [few, bm25], **options)
    exact = neighbours(
        corpus, tmp_path / "b/manifest.json", "bm25-rerank", [corpus.manifest("index"), bm25], **options
    ).array("ids.npy")
    ids = found.array("ids.npy")
    hits = [len(set(mine) & set(theirs)) for mine, theirs in zip(ids.tolist(), exact.tolist(), strict=True)]
    assert found.counts["recall"]["5"] == round(sum(hits) / ids.size, 4) < 1


@pytest.mark.parametrize("lacking", [0, 1])
def test_dense_search_and_bm25_together_need_both_indexes(corpus, bm25, tmp_path, lacking):
    with pytest.raises(UserError, match="not an index for retriever hybrid"):
        neighbours(corpus, tmp_path / "manifest.json", "hybrid", [[corpus.manifest("index"), bm25][lacking]])


def test_random_neighbours_are_admissible_different_and_even(corpus, tmp_path):
    manifest = neighbours(corpus, tmp_path / "a/manifest.json", "random", saved=20)
    ids, case = manifest.array("ids.npy"), case_of(corpus, "train", ["document"])
    assert case.admissible()[np.arange(len(ids))[:, None], ids].all()
    assert all(len(set(row)) == 20 for row in ids.tolist())
    expected = ids.size / len(case.vectors)
    drawn = np.bincount(ids.reshape(-1), minlength=len(case.vectors))
    assert ((drawn - expected) ** 2 / expected).sum() < 1.5 * len(case.vectors)  # chi-squared: its mean is N
    wanted = np.take_along_axis(case.scores(), ids.astype(int), 1) / 2.0**50
    assert (manifest.array("scores.npy") == wanted.astype(np.float16)).all()
    assert manifest.counts["recall"] == {} and "control" in manifest.counts["recall_of"]
    again = neighbours(corpus, tmp_path / "b/manifest.json", "random", saved=20, block=13)
    assert bytes_of(again.path) == bytes_of(manifest.path)


def test_random_neighbours_of_a_chunk_with_hardly_any_admissible():
    keys = np.zeros(4000, np.uint64)
    keys[[3, 70, 3999]] = [1, 2, 3]
    rule = Rule(keys)
    barred = Barred([(rule, rule.look_up(np.array([0, 9], np.uint64)))])
    found = draw(np.arange(2), barred, len(keys), 5, seed=1)
    assert sorted(found[0].tolist()) == [-1, -1, 3, 70, 3999] and found[0, 3:].tolist() == [-1, -1]
    assert (found[1] >= 0).all()


def test_shuffled_neighbours_are_those_of_another_chunk(corpus, tmp_path):
    """Found by brute force for the other chunk, without what either may not have."""
    manifest = neighbours(corpus, tmp_path / "a/manifest.json", "shuffled", exclude=("group",))
    ids, case = manifest.array("ids.npy"), case_of(corpus, "train", ["document", "group"])
    other = others(len(ids), 1)
    allowed, scores = case.admissible() & case.admissible()[other], case.scores()[other]
    for row in range(len(ids)):
        places = np.flatnonzero(allowed[row])
        assert ids[row].tolist() == sorted(places, key=lambda place: (-int(scores[row, place]), place))[:5]
    again = neighbours(corpus, tmp_path / "b/manifest.json", "shuffled", exclude=("group",), threads=2, block=11)
    assert bytes_of(again.path) == bytes_of(manifest.path)


@pytest.mark.parametrize("count", [0, 2, 3, 1000])
def test_a_shuffle_has_no_fixed_point(count):
    found = others(count, seed=5)
    assert sorted(found.tolist()) == list(range(count)) and (found != np.arange(count)).all()


def test_a_single_chunk_cannot_be_shuffled():
    with pytest.raises(UserError, match="no other chunk"):
        others(1, seed=5)


def test_an_index_of_another_kind_is_refused(corpus, bm25, tmp_path):
    with pytest.raises(UserError, match="not an index for retriever dense"):
        neighbours(corpus, tmp_path / "manifest.json", "dense", bm25)


def test_documents_are_excluded_whatever_the_retriever(corpus, bm25, tmp_path):
    keys = read_keys("document", corpus.manifests("chunks"))
    listed = read_manifest(corpus.manifest("database"))
    database, rows = listed.array("database.npy"), listed.array("train.npy")
    for name, index in {"bm25": bm25, "random": None, "shuffled": None}.items():
        ids = neighbours(corpus, tmp_path / name / "manifest.json", name, index).array("ids.npy")
        assert (keys[database][ids] != keys[rows][:, None]).all()
