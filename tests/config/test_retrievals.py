"""Named retrievals: overrides resolved, and only what they change made."""

import pytest

from retro.base.stage import UserError
from retro.config.layers import Retrievals
from retro.config.schema import parse

DATASET = {"name": "d", "sources": {"a": {"path": "a.jsonl"}}, "encoder": {"type": "static", "width": 64}}


def retrievals(**named) -> Retrievals:
    config = parse({"dataset": DATASET, "retrievals": named})
    return Retrievals(config.dataset.facts(), config.retrievals, "D")


def test_what_is_equal_is_not_made_again():
    found = retrievals(
        words={"retriever": "bm25"},
        more={"retriever": "bm25", "index": {"bm25_b": 0.5}},
        again={"retriever": "bm25", "neighbours": {"saved": 3}},
        probing={"index": {"nprobe": 2}},
        lists={"index": {"factory": "IVF4,Flat"}},
        thorough={"index": {"factory": "IVF4,Flat", "nprobe": 4}},
        wide={"encoder": {"width": 128}},
        both={"retriever": "hybrid"},
    )
    assert found.source("words", "bm25") == found.source("again", "bm25") == "D/retrievals/words/bm25"
    assert found.source("more", "bm25") == "D/retrievals/more/bm25"
    assert found.source("probing", "index") == "D/index"
    assert found.source("lists", "index") == found.source("thorough", "index") == "D/retrievals/lists/index"
    assert found.source("lists", "embeddings") == "D/embeddings"
    assert found.source("wide", "embeddings") == "D/retrievals/wide/embeddings"
    assert found.source("wide", "index") == "D/retrievals/wide/index"
    assert found.searching("again", "test")["neighbours"]["saved"] == 3
    assert found.searched("both") == ["D/index/manifest.json", "D/retrievals/words/bm25/manifest.json"]
    assert found.searched("words") == ["D/retrievals/words/bm25/manifest.json"]
    assert found.words(["a"], "both", "test") == ["D/tokenizer/manifest.json", "D/tokens/a/manifest.json"]


@pytest.mark.parametrize(
    ("splits", "touched"), [(["valid", "test"], "valid test"), (["test"], "test"), (["train"], "train")]
)
def test_a_filter_is_part_of_the_splits_that_it_filters_alone(splits, touched):
    found = retrievals(plain={}, strict={"neighbours": {"filter": {"run": 13, "splits": splits}}})
    for split in ("train", "valid", "test"):
        settings = found.searching("strict", split)
        assert (settings != found.searching("plain", split)) is (split in touched.split())
        assert settings["neighbours"].get("filter", {"splits": [split]})["splits"] == [split]
        assert bool(found.words(["a"], "strict", split)) is (split in touched.split())


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("a", {"index": {"nprob": 1}}, r"retrievals\.a\.index\.nprob: unknown key"),
        ("a", {"neighbours": {"saved": 0}}, r"retrievals\.a\.neighbours\.saved"),
        ("random", {}, "retrievals: found 'random'"),
        ("a/b", {}, "retrievals: found 'a/b'"),
    ],
)
def test_wrong_retrievals_are_refused(name, overrides, message):
    with pytest.raises(UserError, match=message):
        retrievals(**{name: overrides})
