"""What sections of the config that are valid by themselves say against each other.

Stages would say it too, but only when they are reached: an evaluation after hours of training.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from retro.naming import seeded
from retro.training.run import Run


def contradictions(config: Any, runs: dict[str, Run]) -> Iterator[str]:
    """A line for each, without the file's name. `runs` are the expanded ones."""
    dataset, evaluate, experiments = config.dataset, config.evaluate, config.experiments
    length, window, saved = dataset.chunk_length, dataset.samples.seq_length, dataset.neighbours.saved
    if evaluate.stride % length or evaluate.stride > window:
        yield (
            f"evaluate.stride: found {evaluate.stride}, wanted a multiple of dataset.chunk_length {length} up to "
            f"dataset.samples.seq_length {window}, or 0 for half of that"
        )
    used = {f"runs.{name}: train.neighbours_used": run.train.neighbours_used for name, run in _retro(config, runs)}
    used["evaluate.neighbours_used"] = evaluate.neighbours_used or 0
    for key, number in used.items():
        if number > saved:
            yield f"{key}: found {number}, but dataset.neighbours.saved is {saved}; lower the one or raise the other"
    if "k" in experiments.model_fields_set and max(experiments.k) > saved:
        yield (
            f"experiments.k: found {max(experiments.k)}, but dataset.neighbours.saved is {saved}; lower the one "
            "or raise the other"
        )
    for name in config.runs:
        train = runs[seeded(name, config.seeds[0])].train
        if train.min_lr > train.lr and train.schedule != "constant":
            yield (
                f"runs.{name}: train.min_lr {train.min_lr} is above train.lr {train.lr}; lower the one or "
                "raise the other"
            )
    given, encoder = dataset.tokenizer, dataset.encoder
    if given.type == "bpe" and given.path is not None:
        yield (
            f"dataset.tokenizer.path: found {given.path!r}, but type bpe is trained here; leave it out, or give "
            "its type"
        )
    if given.type != "gpt2" and given.merges is not None:
        yield (
            f"dataset.tokenizer.merges: found {given.merges!r}, but type {given.type} has none; leave it out, or "
            "set type: gpt2"
        )
    if encoder.type != "transformers" and encoder.path is not None:
        yield f"dataset.encoder.path: found {encoder.path!r}, but type {encoder.type} has none; set type: transformers"
    if experiments.of is not None and experiments.of not in [name for name, _ in _retro(config, runs)]:
        known = ", ".join(name for name, _ in _retro(config, runs)) or "none"
        yield f"experiments.of: found {experiments.of!r}, wanted a retro run of this config: {known}"
    lists = {
        "seeds": config.seeds,
        "experiments.fraction_seeds": experiments.fraction_seeds,
        "experiments.k": experiments.k,
    }
    for key, values in {**lists, "evaluate.splits": evaluate.splits}.items():
        if len(set(values)) < len(values):
            yield f"{key}: found {values}, wanted each one once"
    for key in ("seeds", "experiments.fraction_seeds"):
        if min(lists[key]) < 0:
            yield f"{key}: found {lists[key]}, wanted numbers from 0 on"


def check_runs(runs: dict[str, Any]) -> None:
    """Raise `ValueError` for the first wrong twin or beginning of a config's runs."""
    for name, run in runs.items():
        if run.architecture == "retro" and run.twin is not None:
            twin = runs.get(run.twin)
            if twin is None or twin.architecture != "gpt":
                raise ValueError(
                    f"run {name!r}: twin {run.twin!r} is not a gpt run of this config; name one, or leave it out"
                )
        if run.freeze and (run.architecture != "retro" or run.start is None):
            raise ValueError(
                f"run {name!r}: freeze: base is for a retro run that has `from`; leave it out, or add that"
            )
        seen, at = [name], run.start
        while at in runs:
            if at in seen:
                raise ValueError(
                    f"run {name!r}: from {run.start!r} leads back to {at!r}; begin one of them without `from`"
                )
            seen, at = [*seen, at], runs[at].start
        if at is not None and "/" not in at and not at.endswith(".json"):
            raise ValueError(
                f"run {seen[-1]!r}: from {at!r} is neither a run of this config nor a path; give one of them"
            )


def braces(paths: Mapping[str, str | None]) -> Iterator[str]:
    """Paths, by their keys, that Snakemake would read as patterns."""
    for key, path in paths.items():
        if path is not None and set(path) & set("{}"):
            yield f"{key}: {path!r} has braces, which Snakemake reads as a pattern; rename it"


def _retro(config: Any, runs: dict[str, Run]) -> list[tuple[str, Run]]:
    """RETRO runs by their name in the config, one of their seeds each."""
    named = [(name, runs[seeded(name, config.seeds[0])]) for name in config.runs]
    return [(name, run) for name, run in named if run.retro]
