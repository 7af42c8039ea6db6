"""What a config asks of Snakemake, without Snakemake."""

from typing import Any

import pytest

from retro.base import names as paths
from retro.base.stage import UserError
from retro.config.layers import merged
from retro.config.schema import load, parse
from retro.config.workflow import Workflow

CONFIG = {
    "results": "R",
    "dataset": {
        "name": "d",
        "sources": {"b": {"path": "b.jsonl"}, "a": {"path": "a.jsonl", "train": False}},
        "encoder": {"type": "static", "width": 64},
    },
    "runs": {
        "gpt": {"architecture": "gpt"},
        "alone": {"architecture": "retro"},
        "retro": {"architecture": "retro", "twin": "gpt"},
    },
}


def workflow(**over: Any) -> Workflow:
    """Of a config of two sources, a GPT, a RETRO without a twin and one with, and of what is given."""
    return Workflow(parse(merged(CONFIG, over)))


def losses(paths: list[str]) -> set[tuple[str, str, str]]:
    """Run, split and condition of manifests of losses."""
    parts = [path.removeprefix("R/d/runs/").split("/") for path in paths]
    assert all(part[1] == "evaluation" and part[4] == "manifest.json" for part in parts)
    return {(part[0], part[2], part[3]) for part in parts}


# Where things lie


def test_the_datasets_own_artifacts_and_those_of_a_named_retrieval_are_laid_out_the_same():
    own, named = (paths.EMBEDDINGS.format(retrieval=paths.prefix(name), source="a") for name in ("", "fast"))
    assert own == "embeddings/a"
    assert named == "retrievals/fast/embeddings/a"


@pytest.mark.parametrize("name", ["", "fast", "retrievals", "a.b-c_d"])
def test_a_retrieval_is_known_by_its_prefix(name):
    assert paths.retrieval(paths.prefix(name)) == name


def test_a_run_that_begins_with_another_of_the_config_reads_the_model_where_it_is_written():
    found = workflow(runs={"retro": {"from": "gpt"}}, seeds=[3])
    assert found.runs["retro-s3"].start == "R/d/runs/gpt-s3/model.json"
    assert found.runs["retro-s3"].start in found.models()


# Preprocessing


def test_preprocessing_is_every_array_and_manifest_and_the_recorded_config():
    found = workflow().preprocessed()
    assert len(set(found)) == len(found)
    folders = {path.removeprefix("R/d/").rpartition("/")[0] for path in found}
    assert folders == {
        "", "tokenizer", "database", "index", "tokens/a", "tokens/b", "chunks/a", "chunks/b", "embeddings/a",
        "embeddings/b", "neighbours/train", "neighbours/valid", "neighbours/test",
    }  # fmt: skip
    assert {f"R/d/config{cut}.json" for cut in ("", "-gpt", "-retro")} <= set(found)
    assert {"R/d/index/index.faiss", "R/d/neighbours/train/ids.npy"} <= set(found)
    assert set(workflow().manifests()) == {path for path in found if path.endswith("/manifest.json")}


@pytest.mark.parametrize(
    ("dataset", "more"),
    [
        ({"retriever": "bm25"}, {"R/d/bm25/manifest.json"}),
        ({"retriever": "hybrid"}, {"R/d/bm25/manifest.json"}),
        ({"retriever": "random"}, set()),
        ({"duplicates": {"action": "report"}}, {"R/d/duplicates/manifest.json"}),
    ],
)
def test_the_recorded_config_names_what_else_the_dataset_is_made_of(dataset, more):
    assert set(workflow(dataset=dataset).manifests()) - set(workflow().manifests()) == more


def below(files: list[str]) -> set[str]:
    return {path.removeprefix("R/d/").removesuffix("/manifest.json") for path in files}


def test_a_gpt_is_trained_on_tokens_and_chunks_of_the_sources_that_are_trained_on_and_on_nothing_else():
    found = workflow()  # a is a book
    assert below(found.manifests("-gpt")) == {"tokenizer", "tokens/b", "chunks/b"}
    assert below(found.text("gpt-s1")) == {"tokens/b/tokens.bin", "chunks/b/chunks.npy"}
    assert found.retrieval("gpt-s1") == []
    assert found.recorded("gpt-s1") == found.recorded("gpt-s1", "none") == "R/d/config-gpt.json"
    assert found.recorded("gpt-s1", "in-context+k2") == "R/d/config.json"  # it is shown what was looked up


def test_a_retro_is_trained_on_the_database_its_index_and_the_neighbours_but_not_on_those_of_test():
    found = workflow()
    wanted = set(found.manifests()) - {"R/d/neighbours/test/manifest.json"}
    assert set(found.manifests("-retro")) == wanted
    wanted = {"database/database.npy", "index/index.faiss", "neighbours/train/ids.npy", "neighbours/valid/ids.npy"}
    read = below(found.retrieval("retro-s1"))
    assert wanted <= read and "neighbours/test/ids.npy" not in read
    assert found.recorded("retro-s1") == "R/d/config-retro.json"
    assert found.recorded("retro-s1", "on") == "R/d/config.json"


@pytest.mark.parametrize(("splits", "same"), [(["test"], True), (["valid", "test"], False), (["train"], False)])
def test_a_retro_is_trained_again_where_neighbours_that_it_reads_are_filtered(splits, same):
    before, after = workflow(), workflow(dataset={"neighbours": {"filter": {"run": 13, "splits": splits}}})
    assert (before.recorded_facts("-retro") == after.recorded_facts("-retro")) is same
    assert before.recorded_facts("") != after.recorded_facts("")


@pytest.mark.parametrize(
    ("dataset", "same"),
    [
        ({"sources": {"another": {"path": "c.jsonl", "train": False}}}, True),
        ({"index": {"factory": "IVF8,Flat"}, "encoder": {"type": "static"}, "retriever": "bm25"}, True),
        ({"neighbours": {"saved": 7}, "duplicates": {"action": "exclude"}, "shards": 3}, True),
        ({"sources": {"b": {"database": False}}}, True),
        ({"sources": {"b": {"weight": 2}}}, False),
        ({"sources": {"c": {"path": "c.jsonl"}}}, False),
        ({"samples": {"seq_length": 1024}}, False),
        ({"seed": 5}, False),
    ],
)
def test_what_is_recorded_for_a_gpt_holds_nothing_of_retrieval(dataset, same):
    before, after = workflow(), workflow(dataset=dataset)
    assert before.recorded_facts("-gpt").keys() == {"chunk_length", "samples", "seed", "sources", "tokenizer"}
    recorded = [(each.manifests("-gpt"), each.recorded_facts("-gpt")) for each in (before, after)]
    assert (recorded[0] == recorded[1]) is same
    assert before.recorded_facts("-retro") != after.recorded_facts("-retro") or "shards" in dataset


def test_where_duplicates_are_dropped_a_gpt_depends_on_all_sources():
    """What is left of each follows from the others, and stands in the database's lists."""
    found = workflow(dataset={"duplicates": {"action": "drop"}})
    each = {f"{kind}/{name}" for kind in ("tokens", "chunks") for name in ("a", "b")}
    assert below(found.manifests("-gpt")) == {"tokenizer", "database", *each}
    assert "database/train.npy" in below(found.retrieval("gpt-s1"))


@pytest.mark.parametrize(
    ("mode", "read"),
    [
        ("none", set()),
        ("off", set()),
        ("on", {"neighbours_used", "retrieved_chunks"}),
        ("random", {"neighbours_used", "retrieved_chunks"}),
        ("on+k5", {"retrieved_chunks"}),
    ],
)
def test_losses_depend_on_how_much_is_shown_only_where_that_counts(mode, read):
    found = workflow(evaluate={"neighbours_used": 1, "retrieved_chunks": 1}).measuring(mode)
    assert found.keys() == {"stride", "batch_size"} | read


@pytest.mark.parametrize(
    ("action", "asked"), [("off", []), ("report", []), ("exclude", ["exclude"]), ("drop", ["drop"])]
)
def test_duplicates_are_read_by_the_stage_that_acts_on_them(action, asked):
    found = workflow(dataset={"duplicates": {"action": action}})
    assert [stage for stage in ("exclude", "drop") if found.duplicates(stage)] == asked


def test_reading_a_source_does_not_depend_on_what_is_done_with_it():
    before, after = workflow(), workflow(dataset={"sources": {"b": {"database": False}}})
    assert before.read() == after.read()
    assert before.uses("database") != after.uses("database")


def test_the_tokenizer_learns_from_trained_sources_and_a_given_one_from_none():
    assert list(workflow().learned_from()) == ["b"]
    given = {"tokenizer": {"type": "gpt2", "path": "v.json", "merges": "m.txt"}}
    assert workflow(dataset=given).learned_from() == {}


def test_one_shard_is_no_shard():
    assert workflow().shards == []
    assert workflow(dataset={"shards": 3}).shards == ["0-of-3", "1-of-3", "2-of-3"]


def test_every_retrieval_finds_neighbours_of_the_evaluated_splits_only():
    found = workflow(retrievals={"words": {"retriever": "bm25"}}, evaluate={"splits": ["valid"]})
    assert found.retrieved() == ["R/d/retrievals/words/neighbours/valid/manifest.json"]


def test_a_retrieval_searches_the_embeddings_of_all_sources_in_order():
    found = workflow(retrievals={"wide": {"encoder": {"width": 128}}, "fast": {"index": {"factory": "Flat"}}})
    wide = [f"R/d/retrievals/wide/embeddings/{source}/embeddings.npy" for source in "ab"]
    assert found.embeddings("wide", "embeddings.npy") == wide
    assert found.embeddings("fast", "embeddings.npy") == [f"R/d/embeddings/{source}/embeddings.npy" for source in "ab"]


def test_of_given_vectors_those_of_the_source_are_read(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("a.npy", "b.npy", "more.npy", "model/config.json", "model/notes.md"):
        (tmp_path / name).touch()
    encoder = {"type": "given", "path": str(tmp_path), "query_path": str(tmp_path / "model")}
    found = workflow(dataset={"encoder": {**encoder, "width": 384}})
    assert found.encoder_files("", "a") == [f"{tmp_path}/a.npy", f"{tmp_path}/model/config.json"]
    both = workflow(dataset={"encoder": {**encoder, "type": "transformers", "path": str(tmp_path / "model")}})
    assert both.encoder_files("", "a") == [f"{tmp_path}/model/config.json"]


def test_indexes_are_drawn_of_dense_retrievals():
    named = {"words": {"retriever": "bm25"}, "fast": {"index": {"factory": "Flat"}}, "drawn": {"retriever": "random"}}
    assert workflow(retrievals=named).drawn() == ["fast"]


OTHER = {"small": {"encoder": {"type": "static", "width": 8}}, "whole": {"encoder": {"max_word_pieces": 99}}}


def test_indexes_over_other_embeddings_are_not_drawn_beside_them():
    found = workflow(retrievals={**OTHER, "fast": {"index": {"factory": "Flat"}}})
    assert (found.drawn(), found.embedded_otherwise) == (["fast"], ["small", "whole"])
    with pytest.raises(UserError, match=r"but small, whole, whose encoders are others\. Take config/indexes\.yaml"):
        workflow(retrievals=OTHER).drawn()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda found: found.drawn(), r"retrievals: .* none with an index"),
        (lambda found: found.questions(), r"qa\.questions: .* names no questions"),
        (lambda found: found.answered(), r"qa\.questions: .* names no questions"),
    ],
    ids=["indexes", "questions", "answers"],
)
def test_asking_for_what_the_config_lacks_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call(workflow())


def test_nothing_to_fine_tune_on_is_refused_before_anything_is_trained():
    with pytest.raises(UserError, match=r"qa\.instructions: the config names no file to fine-tune on\. Name some"):
        workflow(qa={"questions": "q.jsonl"}).answered()


def test_what_validation_recomputes_is_what_was_stored_so_far(tmp_path):
    found = workflow(results=str(tmp_path), retrievals={"fast": {}, "slow": {}})
    made = tmp_path / "d/retrievals/fast/neighbours/test/manifest.json"
    made.parent.mkdir(parents=True)
    made.write_text("{}", encoding="utf-8")
    own = [f"{tmp_path}/d/neighbours/{split}/manifest.json" for split in ("train", "valid", "test")]
    assert found.stored("neighbours") == [*own, str(made)]
    assert found.stored("index") == [f"{tmp_path}/d/index/manifest.json"]
    assert all(found.stored(stage) for stage in found.validated())


# Models and their evaluation


def test_every_run_is_trained_once_a_seed():
    models = [path for path in workflow(seeds=[1, 2]).models() if path.endswith("model.json")]
    assert models == [f"R/d/runs/{run}-s{seed}/model.json" for run in ("gpt", "alone", "retro") for seed in (1, 2)]


def test_a_gpt_is_measured_without_retrieval_and_a_retro_with_it_without_and_by_chance():
    assert losses(workflow().losses()) == {
        ("gpt-s1", "test", "none"),
        *{(run, "test", mode) for run in ("alone-s1", "retro-s1") for mode in ("on", "off", "random")},
    }
    assert workflow(evaluate={"random_neighbours": False}).modes("retro-s1") == ["on", "off"]


def test_each_evaluated_split_is_measured():
    found = losses(workflow(evaluate={"splits": ["valid", "test"]}).losses(["gpt-s1"]))
    assert found == {("gpt-s1", "valid", "none"), ("gpt-s1", "test", "none")}


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("none", []),
        ("on", []),
        ("on+k5", []),
        ("shuffled+k1+neighbour", []),
        ("words", ["R/d/retrievals/words/neighbours/test/manifest.json"]),
        ("words+k2", ["R/d/retrievals/words/neighbours/test/manifest.json"]),
        ("database-0.05-s2", ["R/d/fractions/database-0.05-s2/test/manifest.json"]),
    ],
)
def test_a_condition_shows_the_stored_neighbours_or_those_it_names(condition, wanted):
    assert workflow(retrievals={"words": {"retriever": "bm25"}}).shown(condition, "test") == wanted


@pytest.mark.parametrize(
    ("evaluate", "shown", "chunks"),
    [({}, 2, 2), ({"neighbours_used": 5, "retrieved_chunks": 1}, 5, 1), ({"neighbours_used": 0}, 0, 2)],
    ids=["as in training", "as evaluated", "none shown"],
)
def test_overlap_is_measured_with_what_evaluation_shows(evaluate, shown, chunks):
    found = workflow(train={"neighbours_used": 2, "retrieved_chunks": 2}, evaluate=evaluate).overlap()
    assert (found["shown"], found["retrieved_chunks"]) == (shown, chunks)


def test_what_shows_most_neighbours_is_measured_first():
    modes = ["on", "on+k20", "off", "bm25+k50+neighbour"]
    assert sorted(modes, key=workflow().priority, reverse=True)[:2] == ["bm25+k50+neighbour", "on+k20"]


@pytest.mark.parametrize(
    ("alone", "others"),
    [
        ({}, {}),
        ({"neighbours_used": 7}, {"shown-7x2": [7, 2]}),
        ({"retrieved_chunks": 1}, {"shown-2x1": [2, 1]}),
    ],
    ids=["the same", "more neighbours", "fewer chunks"],
)
def test_overlap_is_measured_for_each_number_of_neighbours_that_a_run_is_shown(alone, others):
    found = workflow(runs={"alone": {"train": alone}})
    assert found.overlap().get("others", {}) == others
    assert found.overlap()["shown"] == 2, "what the run is shown that the report is about"
    assert found.overlaps() == ["training", "shown", *others]


def test_what_no_run_takes_from_the_config_is_not_measured():
    runs = {name: {"train": {"neighbours_used": 3}} for name in ("alone", "retro")}
    assert workflow(train={"neighbours_used": 9}, runs=runs).overlap() == {
        "nearest": 10, "shown": 3, "retrieved_chunks": 2,
    }  # fmt: skip


def test_what_evaluation_shows_to_all_runs_is_measured_once():
    found = workflow(runs={"alone": {"train": {"neighbours_used": 7}}}, evaluate={"neighbours_used": 4}).overlap()
    assert found["shown"] == 4 and "others" not in found


def test_the_number_that_evaluation_shows_is_not_measured_twice_and_the_one_trained_with_is():
    found = losses(workflow(evaluate={"neighbours_used": 5}, experiments={"k": [2, 5]}).compared("neighbours"))
    assert {mode for run, _, mode in found if run == "retro-s1"} == {"on", "off", "random", "on+k2"}


def test_the_report_is_about_the_first_retro_with_a_twin():
    found = workflow()
    assert found.first == "retro-s1"
    retro = {("retro-s1", "test", mode) for mode in ("on", "off", "random")}
    assert losses(found.explored()) == {("gpt-s1", "test", "none"), *retro}
    assert {"R/d/report.html", "R/d/figures/leakage.svg"} <= set(found.reports())


def test_without_a_twin_there_are_tables_and_no_report():
    found = workflow(runs={"retro": {"twin": None}})
    assert found.reports() == [f"R/d/{name}.csv" for name in ("summary", "comparison", "leakage")]
    with pytest.raises(UserError, match="runs: none is a retro with a twin"):
        found.explored()


def test_the_report_takes_the_sections_that_were_made_and_those_of_every_run_in_any_case(tmp_path):
    found = workflow(results=str(tmp_path))
    (tmp_path / "d/parts").mkdir(parents=True)
    assert found.parts() == [f"{tmp_path}/d/parts/{name}.html" for name in ("copying", "leakage")]
    (tmp_path / "d/parts/qa.html").write_text("", encoding="utf-8")
    assert found.parts() == [f"{tmp_path}/d/parts/{name}.html" for name in ("copying", "leakage", "qa")]


# Copying


def test_the_reports_run_and_its_twin_are_mixed_with_a_copier_of_as_many_neighbours_and_of_many():
    assert losses(workflow(seeds=[1, 2]).copiers()) == {
        (run.format(seed), "test", mode)
        for seed in (1, 2)
        for run, modes in {
            "gpt-s{}": ("none", "none+k2+copy", "none+k20+copy"),
            "retro-s{}": ("off", "on", "on+k20", "on+copy", "on+k20+copy"),
        }.items()
        for mode in modes
    }


@pytest.mark.parametrize(
    ("over", "modes"),
    [
        ({"dataset": {"neighbours": {"saved": 7}}}, {"none", "none+k2+copy", "none+k7+copy", "on+k7", "on+k7+copy"}),
        ({"dataset": {"neighbours": {"saved": 2}}}, {"none", "none+k2+copy"}),
        ({"evaluate": {"neighbours_used": 20}}, {"none", "none+k20+copy"}),
        (
            {"runs": {"retro": {"train": {"neighbours_used": 5}}}},
            {"none", "none+k5+copy", "none+k20+copy", "on+k20", "on+k20+copy"},
        ),
    ],
)
def test_a_copier_reads_what_is_stored_and_no_number_twice(over, modes):
    assert {mode for _, _, mode in losses(workflow(**over).copiers())} == {"off", "on", "on+copy", *modes}


@pytest.mark.parametrize(
    "over",
    [
        {"evaluate": {"copy_baseline": False}},
        {"evaluate": {"splits": ["valid"]}},
        {"dataset": {"split": {"valid": 0}}},
        {"runs": {"retro": {"twin": None}}},
    ],
    ids=["not wanted", "what is scored is what is fitted", "nothing is fitted", "no twin"],
)
def test_nothing_is_mixed_where_it_is_not_wanted_or_cannot_be(over):
    found = workflow(**over)
    assert not found.copies
    assert not any("copying" in path for path in [*found.reports(), *found.parts()])
    if over != {"evaluate": {"copy_baseline": False}}:
        assert not any(mode.endswith("+copy") for *_, mode in losses(found.compared("copying")))


@pytest.mark.parametrize(
    ("over", "message"),
    [({"dataset": {"split": {"valid": 0}}}, "valid is 0"), ({"runs": {"retro": {"twin": None}}}, "Name a twin")],
)
def test_asking_for_a_copier_that_cannot_be_is_refused(over, message):
    with pytest.raises(UserError, match=message):
        workflow(**over).copiers()


def test_a_mixture_is_made_of_the_models_own_losses():
    found = workflow()
    for mixed, alone in {
        "none+k20+copy": "none",
        "on+k20+copy": "on+k20",
        "on+copy": "on",
        "off+k2+copy": "off",
    }.items():
        wanted = f"R/d/runs/retro-s1/evaluation/valid/{alone}/manifest.json"
        assert found.beside_copier("retro-s1", "valid", mixed) == wanted


def test_an_experiment_compares_all_that_reads_the_same_neighbours():
    counts = (1, 5, 10, 20)
    gpt = {"none", "none+knn", "in-context+k0", "in-context+k1", "in-context+k2", "none+k2+copy"}
    gpt |= {f"none+k{k}{knn}+copy" for k in (*counts, 2) for knn in ("", "+knn")}
    retro = {"off", "on", "random", "on+copy", "first-in-context"} | {
        f"on+k{k}{copy}" for k in counts for copy in ("", "+copy")
    }
    pairs = [("gpt-s1", mode) for mode in gpt] + [("retro-s1", mode) for mode in retro]
    made = workflow(experiments={"k": [0, 1, 2, *counts[1:]]}).compared("copying")
    assert losses(made) == {(run, "test", mode) for run, mode in pairs} and len(made) == len(pairs)


@pytest.mark.parametrize(
    ("over", "gone"),
    [
        ({"experiments": {"baselines": ["in-context"]}}, {"none+knn", "none+k2+knn+copy"}),
        ({"experiments": {"baselines": []}}, {"none+knn", "in-context+k0", "in-context+k1", "in-context+k2"}),
        ({"experiments": {"baselines": []}}, {"first-in-context"}),
        ({"dataset": {"samples": {"seq_length": 192}}}, {"first-in-context"}),
        ({"evaluate": {"in_context": 0.25}}, {"in-context+k2"}),
        ({"dataset": {"split": {"valid": 0}}}, {"none+knn", "none+k2+copy", "on+copy"}),
    ],
    ids=["no kNN-LM", "neither", "no RETRO++", "no room for a neighbour", "a smaller room", "nothing to fit on"],
)
def test_what_cannot_be_or_is_not_wanted_is_not_compared(over, gone):
    def modes(**more):
        return {mode for *_, mode in losses(workflow(**more).compared("copying"))}

    assert gone <= modes() - modes(**over)


def test_runs_are_told_with_their_twins_in_the_configs_order():
    assert list(workflow().twins().items()) == [
        ("gpt-s1", {"twin": None, "seed": 1}),
        ("alone-s1", {"twin": None, "seed": 1}),
        ("retro-s1", {"twin": "gpt-s1", "seed": 1}),
    ]


# Experiments


def test_an_experiment_on_one_model_compares_all_its_seeds_with_the_twins_and_measures_no_other():
    found = losses(workflow(seeds=[1, 2], experiments={"fractions": [0.5], "fraction_seeds": [4]}).compared("database"))
    assert {run for run, _, _ in found} == {"gpt-s1", "gpt-s2", "retro-s1", "retro-s2"}
    assert {mode for run, _, mode in found if run == "retro-s2"} == {"on", "off", "random", "database-0.5-s4"}


def test_a_model_that_the_config_names_is_measured_instead_of_the_first():
    found = workflow(runs={"later": {"architecture": "retro", "twin": "gpt"}}, experiments={"of": "later"}, seeds=[3])
    assert found.measured() == ["later-s3"]


def test_other_experiments_compare_all_runs():
    assert workflow().compared("architecture") == workflow().losses()


def test_retrievers_are_compared_by_every_retrieval_of_the_config():
    found = workflow(retrievals={"words": {"retriever": "bm25"}})
    assert ("retro-s1", "test", "words") in losses(found.compared("retrievers"))
    told = ["R/d/neighbours/test/manifest.json", "R/d/retrievals/words/neighbours/test/manifest.json"]
    assert found.described("retrievers") == told
    assert found.described("database") == []


@pytest.mark.parametrize(("saved", "candidates", "wanted"), [(20, 1000, 20), (20, 10, 10)])
def test_a_smaller_database_keeps_as_many_neighbours_as_the_dataset_if_it_has_them(saved, candidates, wanted):
    found = workflow(dataset={"neighbours": {"saved": saved}}, experiments={"candidates": candidates})
    assert found.kept("database-0.05-s2") == {"share": 0.05, "seed": 2, "saved": wanted}


def test_without_a_retro_that_has_a_twin_there_is_nothing_to_measure():
    assert workflow(runs={"retro": {"twin": None}}).compared("database") == []


# Questions


ASKING = {"questions": "q.jsonl", "instructions": ["q.jsonl"]}


def test_questions_are_answered_by_a_model_and_its_twin_tuned_and_not_in_every_mode():
    names = [path.removeprefix("R/d/qa/") for path in workflow(qa=ASKING).answered()]
    assert names[0] == "retro-s1-qa.on.jsonl", "the first is what the report shows"
    assert set(names) == {
        "retro-s1-qa.on.jsonl", "retro-s1-qa.off.jsonl", "retro-s1.on.jsonl", "retro-s1.off.jsonl",
        "gpt-s1-qa.none.jsonl", "gpt-s1.none.jsonl",
    }  # fmt: skip


def test_without_a_retro_the_first_run_answers():
    config = parse(CONFIG | {"runs": {"gpt": {"architecture": "gpt"}}, "qa": ASKING})
    assert Workflow(config).answered() == ["R/d/qa/gpt-s1-qa.none.jsonl", "R/d/qa/gpt-s1.none.jsonl"]


@pytest.mark.parametrize("name", ["config", "tiny", "indexes", "experiments", "qa", "factbook-sotu"])
def test_the_configs_that_come_with_the_project_ask_for_each_file_once(name):
    found = Workflow(load(f"config/{name}.yaml"))
    wanted = [*found.preprocessed(), *found.retrieved(), *found.models(), *found.losses(), *found.reports()]
    assert len(set(wanted)) == len(wanted)
    assert all(path.startswith(f"{found.folder}/") and not {"{", "}"} & set(path) for path in wanted)
