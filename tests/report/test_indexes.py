"""The report's section Indexes: figure and table of what indexes find and cost."""

import csv
import re

import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.report.indexes import sentence
from tests.database.stages import stage
from tests.retrieval.conftest import SAVED, corpus, dataset  # noqa: F401


@pytest.fixture(scope="module")
def made(corpus, dataset, tmp_path_factory):  # noqa: F811
    """The folder of the figure, the table and the section, of an exact and a coarse index."""
    folder = tmp_path_factory.mktemp("indexes")
    coarse = {"factory": "IVF8,Flat", "nprobe": 1}
    stage(
        "retro.retrieval.index",
        settings={"index": coarse, "seed": 1},
        database=corpus.manifest("database"),
        embeddings=corpus.manifests("embeddings"),
        output=folder / "index/manifest.json",
    )
    exact = dataset.folder / "neighbours/test/manifest.json"
    found = corpus.neighbours("test", folder / "neighbours/manifest.json", index=coarse, saved=SAVED)
    stage(
        "retro.report.indexes",
        config=dataset.path,
        names=["exact", "coarse"],
        neighbours=[exact, found],
        indexes=[corpus.manifest("index"), folder / "index/manifest.json"],
        split="test",
        k=5,
        sample=30,
        **{"left-out": ["small", "large"], "output-folder": folder, "part": folder / "indexes.html"},
    )
    return folder


def test_the_table_holds_what_was_measured(made):
    with open(made / "indexes.csv", newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["exact"]["factory"] == "Flat" and float(rows["exact"]["recall"]) == 1
    assert rows["coarse"]["factory"] == "IVF8,Flat" and float(rows["coarse"]["recall"]) < 1
    width = read_manifest(made / "index/manifest.json").counts["width"]
    assert float(rows["exact"]["bytes"]) == pytest.approx(4 * width, abs=1)
    page = (made / "indexes.html").read_text(encoding="utf-8")
    for name, row in rows.items():
        assert f"<td>{name}</td><td>{row['factory']}</td>" in page
        assert f'<td class="n">{float(row["recall"]):.3f}</td>' in page
    assert re.search(r'<figure id="figure-indexes">.*<svg.*<figcaption>', page, re.DOTALL)
    assert "The cheapest that finds 95%" in page or "None finds 95%" in page


@pytest.mark.parametrize("width", [64, 32], ids=["as wide as the dataset's own", "of another width"])
def test_an_index_over_other_embeddings_is_refused(corpus, dataset, tmp_path, width):  # noqa: F811
    """Recall is of the dataset's own vectors: an index over others would be shown with a wrong one."""
    embeddings = [tmp_path / name / "manifest.json" for name in corpus.names]
    for name, output in zip(corpus.names, embeddings, strict=True):
        encoder = {"type": "static", "width": width, "dtype": "float16"}
        options = corpus.embed_options(name, **encoder) | {"output": output, "blocks": tmp_path / name / "blocks"}
        stage("retro.database.embed", **options)
    index, database = tmp_path / "index/manifest.json", corpus.manifest("database")
    facts = {"index": {}, "seed": 1}
    stage("retro.retrieval.index", settings=facts, database=database, embeddings=embeddings, output=index)
    with pytest.raises(UserError, match="not an index of the dataset's own embeddings"):
        stage(
            "retro.report.indexes",
            config=dataset.path,
            names=["other"],
            neighbours=[dataset.folder / "neighbours/test/manifest.json"],
            indexes=[index],
            split="test",
            **{"output-folder": tmp_path, "part": tmp_path / "indexes.html"},
        )


def test_the_section_names_what_is_not_compared(made):
    assert "Not compared, their encoders being others: small, large." in (made / "indexes.html").read_text()


def test_the_sentence_names_the_cheapest_and_the_smallest_that_find_enough():
    rows = [
        {"factory": "Flat", "recall": 1.0, "ms": 3.0, "bytes": 1536},
        {"factory": "IVF", "recall": 0.96, "ms": 1.0, "bytes": 1544},
        {"factory": "PQ", "recall": 0.95, "ms": 2.0, "bytes": 48},
        {"factory": "RaBitQ", "recall": 0.6, "ms": 0.5, "bytes": 60},
    ]
    told = sentence(rows, 10, 14038, 443)
    assert "14,038 vectors" in told and "10 nearest neighbours of 443 chunks" in told
    assert "is IVF (1.00 ms a query), the smallest PQ (48 bytes a vector)" in told
    assert sentence(rows[3:], 10, 14038, 443).endswith("None finds 95% of them.")
