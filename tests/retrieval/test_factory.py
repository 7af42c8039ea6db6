"""Index strings: those the field uses can be trained, filled, stored and searched on a CPU; the rest is refused
well.
"""

import re
from pathlib import Path

import faiss
import numpy as np
import pytest

from retro.base.stage import UserError
from retro.retrieval import approximate, factory
from retro.retrieval import index as training
from retro.retrieval.approximate import ApproximateSearch, open_index
from retro.retrieval.exact import ExactSearch
from retro.retrieval.index import make
from retro.retrieval.settings import IndexSettings
from tests.retrieval.brute import Case, Plain, units

WIDTH, SIZE, QUERIES, K = 32, 3000, 40, 10
SETTINGS = IndexSettings(nprobe=8, ef_search=64)
STRINGS = {  # string: least recall@10 of candidates scored exactly
    "Flat": 1.0,
    "IVF16,Flat": 0.9,
    "IVF16,SQ8": 0.9,
    "IVF16,PQ16x4fs,RFlat": 0.8,
    "OPQ8_16,IVF16_HNSW8,PQ8": 0.7,
    "HNSW16": 0.9,
    "RaBitQ": 0.6,
    "IVF16,RaBitQ": 0.6,
    "PQ16": 0.8,
    "PCA16,SQ8": 0.7,
}


@pytest.fixture(scope="module")
def case() -> Case:
    """Clustered vectors of documents of 20 chunks."""
    random = np.random.default_rng(0)
    vectors = units(random, SIZE, WIDTH) + units(random, 150, WIDTH)[random.integers(0, 150, SIZE)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    document = np.arange(SIZE, dtype=np.uint64) // np.uint64(20)
    chosen = random.choice(SIZE, QUERIES, replace=False)
    return Case(vectors.astype(np.float32), vectors[chosen].astype(np.float32), [document], [document[chosen]])


def build(case: Case, name: str) -> faiss.Index:
    return make(name, Plain(case.vectors), np.arange(len(case.vectors)), SETTINGS, seed=1)


def by_parts(monkeypatch, few: int) -> None:
    """Let indexes be trained by parts whose sample is larger than `few`, with few vectors for each centroid."""
    monkeypatch.setattr(training, "FEW", few)
    monkeypatch.setattr(training, "PIECE", 100)
    monkeypatch.setattr(training, "EACH", 1)


@pytest.mark.parametrize("few", [training.FEW, 1500], ids=["at once", "by parts"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("OPQ" in name)) for name in STRINGS])
def test_a_string_trains_fills_stores_maps_and_searches(case, name, few, tmp_path, monkeypatch):
    by_parts(monkeypatch, few)
    faiss.omp_set_num_threads(1)
    index = build(case, name)
    assert index.ntotal == SIZE and factory.is_exact(index) == (name == "Flat")
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    exact = ExactSearch(Plain(case.vectors), np.arange(SIZE), 1)
    search = ApproximateSearch(open_index(tmp_path / "index.faiss", SETTINGS), exact, SETTINGS)
    ids, scores = search.search(case.queries, K, case.barred())
    truth, best = case.best(K), case.scores() / 2.0**50
    shared = [len(set(ours) & set(theirs)) / K for ours, theirs in zip(ids.tolist(), truth.tolist(), strict=True)]
    assert np.mean(shared) >= STRINGS[name]
    assert (ids >= 0).all() and case.admissible()[np.arange(QUERIES)[:, None], ids].all()
    assert (scores == np.take_along_axis(best, ids, 1)).all() and (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("name", ["IVF64,SQ8", pytest.param("OPQ8_16,IVF64_HNSW8,PQ8", marks=pytest.mark.slow)])
def test_lists_trained_by_parts_are_as_even_as_the_whole_sample_makes_them(case, name, monkeypatch):
    """What training by parts is for: with the same vectors but less memory, not the lists of a tenth of them."""
    faiss.omp_set_num_threads(1)
    whole = build(case, name)
    by_parts(monkeypatch, SIZE // 10)
    parts = build(case, name)
    assert faiss.serialize_index(parts).tobytes() == faiss.serialize_index(build(case, name)).tobytes()
    few = make(name, Plain(case.vectors), np.arange(SIZE), SETTINGS.model_copy(update={"train_vectors": 300}), seed=1)
    uneven = [faiss.extract_index_ivf(index).invlists.imbalance_factor() for index in (whole, parts, few)]
    assert uneven[1] < (uneven[0] + uneven[2]) / 2 and uneven[0] < uneven[2]


def resident(path: Path) -> int:
    """KiB of a file that this process has mapped and touched."""
    lines, found, inside = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines(), 0, False
    for line in lines:
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is mapped")
def test_what_was_read_of_a_mapped_index_is_handed_back(case, tmp_path, monkeypatch):
    path, exact = tmp_path / "index.faiss", ExactSearch(Plain(case.vectors), np.arange(SIZE), 1)
    faiss.write_index(build(case, "IVF16,SQ8"), str(path))
    monkeypatch.setattr(approximate, "FEWEST", 8)
    monkeypatch.setattr(approximate, "RESIDENT", 1)
    found = []
    for mapped in (None, path):
        search = ApproximateSearch(open_index(path, SETTINGS), exact, SETTINGS, mapped)
        if mapped:
            assert approximate.queries_a_call(search.lists, path.stat().st_size) == 8
        found.append(search.search(case.queries, K, case.barred())[0].tolist())
        assert (resident(path) == 0) == (mapped is not None)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["IVF16,SQ8", "IVF16_HNSW8,PQ8", "HNSW16"])
def test_the_same_index_is_built_again(case, name):
    first, second = (faiss.serialize_index(build(case, name)) for _ in range(2))
    assert (first == second).all()


def test_holes_are_left_only_where_nothing_is_left(case):
    """One list visited of 16, and all but three chunks excluded: the index alone would leave holes."""
    document = np.zeros(SIZE, np.uint64)
    document[[5, 77, 2000]] = 1
    lonely = Case(case.vectors, case.queries, [document], [np.zeros(QUERIES, np.uint64)])
    settings = IndexSettings(nprobe=1)
    index = build(case, "IVF16,Flat")
    factory.prepare(index, settings)
    search = ApproximateSearch(index, ExactSearch(Plain(case.vectors), np.arange(SIZE), 1), settings)
    ids, _ = search.search(lonely.queries, 5, lonely.barred())
    assert ids.tolist() == lonely.best(5).tolist()
    assert search.fallen_back == QUERIES


def test_training_uses_a_random_sample_of_the_whole_database(case):
    """Vectors of the last tenth are unlike the rest; with a sample of the first ones no list would be theirs."""
    vectors = case.vectors.copy()
    vectors[-300:] = -vectors[:1] + 0.1 * vectors[-300:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    settings = IndexSettings(train_vectors=400)
    index = make("IVF8,Flat", Plain(vectors), np.arange(SIZE), settings, seed=1)
    centroids = index.quantizer.reconstruct_n(0, 8)
    assert (centroids @ -vectors[0] > 0.8).any()


def test_polysemous_training_is_off():
    for name in ("PQ8", "IVF4,PQ8", "OPQ8,IVF4_HNSW8,PQ8", "IVF4,PQ8,RFlat"):
        index = factory.build(name, 32)
        codes = [layer for layer in factory.layers(index) if hasattr(layer, "do_polysemous_training")]
        assert codes and not any(layer.do_polysemous_training for layer in codes)


def test_search_settings_reach_every_layer():
    index = factory.build("OPQ8,IVF100_HNSW8,PQ8,RFlat", 32)
    factory.prepare(index, IndexSettings(nprobe=500, ef_search=16, k_factor=3))
    layers = list(factory.layers(index))
    assert [layer.nprobe for layer in layers if isinstance(layer, faiss.IndexIVF)] == [100]
    assert [layer.hnsw.efSearch for layer in layers if isinstance(layer, faiss.IndexHNSW)] == [500]
    assert [layer.k_factor for layer in layers if isinstance(layer, faiss.IndexRefine)] == [3]


@pytest.mark.parametrize(
    ("name", "size", "wanted", "fitting"),
    [
        ("IVF4096,Flat", 1000, 4096, "IVF16,Flat"),
        ("OPQ32_64,IVF65536_HNSW8,PQ32", 3000, 65536, "OPQ32_64,IVF64_HNSW8,PQ32"),
        ("OPQ32_64,IVF65536_HNSW8,PQ32", 200, 65536, "IVF4_HNSW8,PQ32x4"),
        ("IVF64,PQ16x4fs,RFlat", 50, 64, "Flat"),
        ("PQ32", 200, 256, "PQ32x4"),
    ],
)
def test_too_few_vectors_are_refused_with_the_number_needed_and_what_fits(name, size, wanted, fitting):
    with pytest.raises(UserError) as caught:
        factory.check_size(name, 128, size, 10**6)
    message = str(caught.value)
    assert f"needs at least {wanted} vectors, but the database has {size}" in message
    assert f"The nearest that fits: {fitting!r}" in message
    factory.check_size(fitting, 128, size, 10**6)
    if fitting.startswith("OPQ"):
        return  # learning a rotation of this size takes half a minute
    random = np.random.default_rng(0)
    make(fitting, Plain(units(random, size, 128)), np.arange(size), IndexSettings(), 1)


def test_too_few_training_vectors_are_told_apart_from_too_few_vectors():
    with pytest.raises(UserError, match=r"trains on at least 64 vectors, but dataset\.index\.train_vectors is 50"):
        factory.check_size("IVF64,Flat", 32, 1000, 50)


@pytest.mark.parametrize("name", ["nonsense", "IVF16,PQ7", "LSH"])
def test_a_string_faiss_does_not_take_is_refused_with_its_reason(name):
    with pytest.raises(
        UserError, match=r"dataset\.index\.factory .*faiss does not take it for 32 dimensions.*Try auto"
    ):
        factory.build(name, 32)


@pytest.mark.parametrize("name", ["IDMap,Flat", "IDMap2,IVF16,SQ8", "PCA16,IDMap,Flat", "IVF16,Flat,IDMap"])
def test_a_string_that_numbers_vectors_itself_is_refused(name):
    with pytest.raises(UserError, match=r"dataset\.index\.factory .*IDMap wants others; leave it out"):
        factory.build(name, 32)


@pytest.mark.parametrize(
    "name",
    ["IVF0,SQ8", "HNSW0", "HNSW1", "IVF16_HNSW0,Flat", "NSG2", "PCA0,Flat", "OPQ0,Flat", "RQ4x0", "PQ8x0", "PQ8x4fs_0"],
)
def test_a_string_on_which_faiss_would_hang_or_end_the_process_is_refused(name):
    with pytest.raises(UserError, match=r"dataset\.index\.factory .*Try auto"):
        factory.build(name, 32)


@pytest.mark.parametrize(
    ("vectors", "queries", "wanted"),
    [
        (1, 1, "Flat"),
        (200_000, 200_000, "Flat"),
        (2_000_000, 10_000, "Flat"),
        (300_000, 300_000, "IVF2048,SQ8"),
        (20_000_000, 20_000_000, "OPQ64_384,IVF16384_HNSW32,PQ64"),
    ],
)
def test_auto_is_exact_while_that_is_affordable(vectors, queries, wanted):
    chosen, why = factory.choose(vectors, queries, 384)
    assert chosen == wanted
    assert f"{vectors} vectors" in why
    assert factory.needed(factory.build(chosen, 384)) <= vectors
