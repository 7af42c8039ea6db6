"""Every key of the config, changed to another valid value: exactly the declared rules run again."""

import pytest

from tests.workflow.conftest import Project
from tests.workflow.keys import BASE, TARGETS, VALUES, changed, keys, prepare
from tests.workflow.plan import Plan

# The rules that read what a rule makes: when it runs, they run, and so on.
FOLLOWS = {
    "train_tokenizer": "tokenize chunk embed retrieval_bm25_index retrieval_neighbours record retro_record gpt_record "
    "train gpt_train",
    "tokenize": "duplicates chunk embed retrieval_bm25_index retrieval_neighbours record retro_record gpt_record "
    "train gpt_train",
    "duplicates": "neighbours candidates retrieval_neighbours record retro_record train",
    "chunk": "embed assemble neighbours candidates retrieval_bm25_index retrieval_neighbours record "
    "retro_record gpt_record train gpt_train",
    "embed": "index neighbours candidates retrieval_index retrieval_neighbours record retro_record train overlap "
    "finetune answer",
    "assemble": "index neighbours candidates retrieval_index retrieval_bm25_index retrieval_neighbours record "
    "retro_record train",
    "index": "neighbours candidates record retro_record train finetune answer",
    "neighbours": "record retro_record train overlap",
    "retrieval_index": "retrieval_neighbours",
    "retrieval_bm25_index": "retrieval_neighbours",
    "retrieval_neighbours": "",
    "retro_record": "train",
    "gpt_record": "gpt_train gpt_losses",
    "record": "losses mixed knn copying summarise overlap filtered sample figures explorer page "
    "experiment_comparison experiment finetune answer",
    "train": "losses sample figures page experiment finetune answer",
    "gpt_train": "losses gpt_losses knn figures page experiment finetune answer",
    "gpt_losses": "mixed knn copying summarise filtered explorer experiment_comparison",
    "losses": "mixed copying summarise filtered explorer experiment_comparison",
    "mixed": "copying experiment_comparison",
    "knn": "experiment_comparison mixed",
    "copying": "page",
    "summarise": "figures page",
    "overlap": "filtered copying",
    "filtered": "leakage",
    "leakage": "page",
    "sample": "page",
    "figures": "page",
    "explorer": "page",
    "page": "",
    "candidates": "subsample",
    "subsample": "losses",
    "experiment_comparison": "experiment",
    "experiment": "experiments_part",
    "experiments_part": "",
    "finetune": "answer",
    "answer": "score qa",
    "score": "qa",
    "qa": "",
}

SEARCH = "neighbours candidates retrieval_neighbours"
# A section, or a key that differs from the rest of its section: the first rules that it makes run again.
CHANGES = {
    "preset": "",  # where settings stand is no setting
    "results": "train_tokenizer",
    "dataset.name": "train_tokenizer",
    "dataset.seed": "train_tokenizer",
    "dataset.sources": "train_tokenizer",
    "dataset.sources.*.database": "duplicates assemble",
    "dataset.sources.*.weight": "record retro_record gpt_record",
    "dataset.on_error": "train_tokenizer",
    "dataset.split": "train_tokenizer",
    "dataset.tokenizer": "train_tokenizer",
    "dataset.shards": "tokenize tokenize_shard embed_shard index_train index_shard neighbours_shard "
    "retrieval_index_train retrieval_index_shard retrieval_neighbours_shard",
    "dataset.duplicates": "duplicates",
    "dataset.duplicates.action": "duplicates assemble gpt_record",
    "dataset.chunk_length": "chunk",
    "dataset.encoder": "embed",
    "dataset.retriever": f"bm25_index {SEARCH}",
    "dataset.index": SEARCH,
    "dataset.index.factory": f"index {SEARCH}",  # the other retrieval names its own
    "dataset.index.train_vectors": "index retrieval_index",
    "dataset.index.gpu": "index retrieval_index",
    "dataset.index.gpu_float16": "index retrieval_index",
    "dataset.index.bm25_k1": f"retrieval_bm25_index {SEARCH}",
    "dataset.index.bm25_b": f"retrieval_bm25_index {SEARCH}",
    "dataset.neighbours": SEARCH,
    "dataset.neighbours.saved": "neighbours subsample retrieval_neighbours",  # candidates have a number of their own
    "dataset.neighbours.recall_sample": "neighbours retrieval_neighbours",
    "dataset.samples": "record retro_record gpt_record",
    "retrievals.*.retriever": "retrieval_neighbours",
    "retrievals.*.encoder": "retrieval_embed retrieval_index",
    "retrievals.*.index": "retrieval_index",
    "retrievals.*.neighbours": "retrieval_neighbours",
    "model": "train gpt_train",
    "train": "train gpt_train",
    "train.trackers": "",
    "train.neighbours_used": "train gpt_train overlap",
    "train.retrieved_chunks": "train gpt_train overlap",
    "runs": "train",
    "runs.*.twin": "train gpt_losses",  # of what is the twin now more is measured
    "seeds": "train gpt_train",
    "evaluate": "losses gpt_losses",
    "evaluate.neighbours_used": "losses overlap",
    "evaluate.retrieved_chunks": "losses overlap",
    "evaluate.random_neighbours": "summarise filtered explorer experiment_comparison",
    "evaluate.copy_baseline": "page",
    "evaluate.bootstrap": "summarise filtered copying experiment_comparison",
    "evaluate.bootstrap_unit": "summarise filtered copying experiment_comparison",
    "experiments": "experiment_comparison",
    "experiments.names": "experiments_part",
    "experiments.of": "",  # the run that is measured anyway
    "qa": "finetune",
    "qa.questions": "answer",
    "qa.splits": "answer",
    "qa.shots": "answer",
    "qa.bootstrap": "score",
    "generate": "sample",
    "validate": "",  # no part of `all`
    "resources": "",  # what a job may use changes no byte
}


# Keys that change some jobs of a rule of which others feed more: all the rules that run.
ONLY = {
    "runs.*.architecture": "train gpt_train losses gpt_losses mixed copying summarise filtered leakage sample figures "
    "explorer page experiment_comparison experiment experiments_part finetune answer score qa",  # the twin stays a GPT
    "evaluate.in_context": "losses experiment_comparison experiment experiments_part",  # of that condition alone
    "evaluate.splits": "losses gpt_losses overlap candidates subsample retrieval_neighbours summarise filtered leakage "
    "figures explorer page experiment_comparison experiment experiments_part",  # valid alone is mixed with no copier
    "dataset.neighbours.filter.splits": "neighbours candidates retrieval_neighbours record subsample losses mixed knn "
    "copying summarise overlap filtered leakage sample figures explorer page experiment_comparison experiment "
    "experiments_part finetune answer score qa",  # of test alone, which no training reads
    "experiments.candidates": "candidates subsample losses experiment_comparison experiment experiments_part",
}


def declared(key: str) -> set[str]:
    """The rules that run when a key changes: those of CHANGES, and all that follows."""
    if key in ONLY:
        return set(ONLY[key].split())
    parts = key.split(".")
    sections = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    waiting, seen = CHANGES[next(name for name in sections if name in CHANGES)].split(), set()
    while waiting:
        rule = waiting.pop()
        if rule not in seen:
            seen.add(rule)
            waiting.extend(FOLLOWS.get(rule, "").split())
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project in which nothing was run."""
    project = Project.create(tmp_path_factory.mktemp("keys") / "project")
    prepare(project.folder)
    return project.folder


@pytest.fixture(scope="module")
def base(folder) -> Plan:
    return Plan.of(folder, BASE, TARGETS)


def test_what_follows_each_rule_is_declared(base):
    found: dict[str, set[str]] = {}
    for (rule, _), jobs in base.dependants.items():
        found.setdefault(rule, set()).update(rule for rule, outputs in jobs if outputs)
    wanted = {rule: set(following.split()) for rule, following in FOLLOWS.items()}
    assert {rule: following for rule, following in found.items() if rule not in TARGETS - {"qa"}} == wanted


@pytest.mark.parametrize(("key", "field"), keys(), ids=[key for key, _ in keys()])
def test_changing_a_key_runs_exactly_the_declared_rules(folder, base, key, field):
    assert Plan.of(folder, changed(key, field), TARGETS).after(base) == declared(key)


def test_every_declaration_is_of_a_key_or_a_section():
    known = {".".join(key.split(".")[:count]) for key, _ in keys() for count in range(1, 9)}
    assert set(CHANGES) | set(ONLY) | set(VALUES) <= known
