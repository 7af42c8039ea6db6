"""What is wrong with a config whose sections are valid by themselves, in the words of the config file.

Names that the project takes for itself, paths (found by the marks of the settings' own fields), text that cannot be
used, and what sections say against each other.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from retro.base.names import ALL, WORD, seeded
from retro.base.nearest import did_you_mean, listed
from retro.base.stage import Names, Overrides, UserError, plain, settings_in, takes_truth_as_a_number
from retro.database.settings import MINILM_WIDTH, EncoderSettings
from retro.evaluation.conditions import BUILT_IN
from retro.model.settings import ModelSettings
from retro.qa.settings import QuestionSettings
from retro.retrieval.settings import FilterSettings
from retro.training.settings import Run


@dataclass(frozen=True)
class Named:
    """A path in a config: the keys that lead to it, the text there, and what it names (`retro.base.stage.Names`)."""

    key: tuple[str, ...]
    value: str
    what: str


def named(config: BaseModel) -> Iterator[Named]:
    """Every path of a validated config; a list's are keyed by their number, a source's too."""
    yield from _within(type(config), config.model_dump(by_alias=True))


def _within(section: type[BaseModel], values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[Named]:
    """The paths of a section, whose values are plain; keys that are not there, as in overrides, name none."""
    for attribute, field in section.model_fields.items():
        name = field.alias or attribute
        key, value, inside = (*above, name), values.get(name), settings_in(field.annotation)
        for mark in field.metadata:
            if isinstance(mark, Names):
                for place, text in items(key, value):
                    yield Named(place, plain(text, mark.what), mark.what)
            elif isinstance(mark, Overrides) and value:
                yield from _within(mark.section, value, key)
        if inside is not None and value:
            parts = value if "dict" in str(field.annotation) else {None: value}
            for part, its_values in parts.items():
                yield from _within(inside, its_values, key if part is None else (*key, part))


def items(key: tuple[str, ...], value: str | list[str] | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """A text, or each of a list, with its key."""
    if isinstance(value, str):
        yield key, value
    for number, text in enumerate(value if isinstance(value, list | tuple) else ()):
        yield (*key, str(number)), text


LONGEST = 64  # characters: file names hold several names and an ending, and may have 255 bytes
TUNINGS = get_args(QuestionSettings.model_fields["name"].annotation)


@dataclass(frozen=True)
class Taken:
    """Names that nothing at `key` of the config may have, and `why`. Capitals do not tell names apart."""

    key: str
    pattern: str
    why: str


TAKEN = (
    Taken("dataset.sources", ALL, "what rows over all sources are called"),
    Taken("dataset.sources", r".*\.\d+-of-\d+", "how the logs of a source's shards are called"),
    Taken("retrievals", "|".join([*BUILT_IN, "stored"]), "the name of a condition"),
    Taken("retrievals", "database-.*", "how conditions of smaller databases are called"),
    Taken("runs", r".*-s\d+", "how a run is called when it is trained with a seed"),
    Taken("runs", rf".*-s\d+-({'|'.join(TUNINGS)})", "how a run is called when it was fine-tuned"),
)


def wrong_names(config: Any) -> Iterator[str]:
    """A line for each name that the config may not give, without the file's name."""
    given = {"dataset.sources": config.dataset.sources, "runs": config.runs, "retrievals": config.retrievals}
    for key, names in {"dataset.name": [config.dataset.name], **given}.items():
        seen: dict[str, str] = {}
        for name in names:
            taken = next((each for each in TAKEN if each.key == key and _is(each.pattern, name)), None)
            twin = seen.setdefault(name.casefold(), name)
            if len(name) > LONGEST:
                yield f"{key}: found {name[:20]!r}… of {len(name)} characters, wanted at most {LONGEST}; shorten it"
            elif not re.fullmatch(WORD, name):
                yield f"{key}: found {name!r}, wanted letters, digits and . _ - only, a letter or digit first"
            elif taken is not None:
                yield f"{key}: found {name!r}, which is {taken.why}; choose another name"
            elif twin != name:
                yield (
                    f"{key}: found {twin!r} and {name!r}, which are one folder where capitals do not count; choose "
                    "another name for one"
                )


def _is(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name, re.IGNORECASE) is not None


def refuse_unusable(value: Any, where: str, key: str = "") -> None:
    """Refuse values that no key takes, whatever its type: blank text, infinite numbers, those beyond 64 bits."""
    if isinstance(value, dict):
        for name, inside in value.items():
            path = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str):
                raise UserError(f"{where}: {path}: found the key {name!r}, wanted text. Put it in quotes.")
            if isinstance(inside, str) and not inside.strip():
                raise UserError(f"{where}: {path}: found blank text. Give a value, or leave the key out.")
            refuse_unusable(inside, where, path)
    elif isinstance(value, list | tuple):
        for number, inside in enumerate(value):
            refuse_unusable(inside, where, f"{key}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key}: found {value}. Give a finite number.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{where}: {key}: found {value}. Give a number of at most 64 bits.")
    elif isinstance(value, str) and ("\0" in value or (not value.isascii() and _surrogate(value))):
        raise UserError(f"{where}: {key}: found {value!r}. Give text without null bytes and halves of characters.")


def refuse_truth(raw: dict[str, Any], where: str) -> None:
    """Refuse true and false where the model section wants a number; other sections do so themselves."""
    given = raw.get("runs")
    runs = given if isinstance(given, dict) else {}
    models = {"model": raw.get("model")}
    models |= {f"runs.{name}.model": run.get("model") for name, run in runs.items() if isinstance(run, dict)}
    for place, model in models.items():
        for key, value in (model if isinstance(model, dict) else {}).items():
            field = ModelSettings.model_fields.get(key)
            if field and takes_truth_as_a_number(field.annotation, value):
                raise UserError(
                    f"{where}: {place}.{key}: wanted a number; true would become 1 (found {value!r}; YAML reads on, "
                    f"off, yes and no as true and false)."
                )


def _surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


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
        processes = config.resources.nodes * config.resources.processes
        if train.optimizer == "muon" and processes > 1 and (train.parallel.fsdp or train.parallel.tensor > 1):
            yield (
                f"runs.{name}: train.optimizer muon needs whole matrices, and train.parallel cuts them over "
                f"{processes} processes (fsdp, or tensor above 1); take adamw and a lr for it, or leave the model whole"
            )
    filters = {"dataset": dataset.neighbours.filter}
    for name, each in config.retrievals.items():
        filters[f"retrievals.{name}"] = FilterSettings(**(each.neighbours.get("filter") or {}))
    shown = {f"runs.{name}: train.retrieved_chunks": run.train.retrieved_chunks for name, run in _retro(config, runs)}
    shown["evaluate.retrieved_chunks"] = evaluate.retrieved_chunks or 0
    for place, kept in filters.items():
        most = length * len(set(kept.against))
        if (kept.run or 0) > most:
            yield (
                f"{place}.neighbours.filter.run: found {kept.run}, but the text that is compared has {most} tokens; "
                "lower it, or compare with chunk and continuation (against)"
            )
        for key, number in shown.items():
            if number > kept.chunks and not kept.off:
                yield (
                    f"{key}: found {number}, but {place}.neighbours.filter.chunks is {kept.chunks}, so that not all "
                    "that is shown is compared; lower the one or raise the other"
                )
    rules = {"dataset": dataset.neighbours.exclude}
    rules |= {f"retrievals.{name}": each.neighbours.get("exclude", ()) for name, each in config.retrievals.items()}
    undated = [name for name, source in dataset.sources.items() if source.fields.date is None]
    for key, excluded in rules.items():
        if "later" in excluded and undated:
            yield (
                f"{key}.neighbours.exclude: later compares dates, but source {undated[0]} has none; name the field in "
                f"dataset.sources.{undated[0]}.fields.date, or leave later out"
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
    yield from unread_of_encoder("dataset.encoder", encoder, encoder.model_fields_set)
    for name, each in config.retrievals.items():
        if each.encoder:
            own = encoder.model_copy(update={**encoder.facts(), **each.encoder})
            yield from unread_of_encoder(f"retrievals.{name}.encoder", own, set(each.encoder))
    if experiments.of is not None and experiments.of not in [name for name, _ in _retro(config, runs)]:
        known = [name for name, _ in _retro(config, runs)]
        near = did_you_mean(experiments.of, known)
        yield f"experiments.of: found {experiments.of!r}, wanted a retro run of this config: {listed(known)}{near}"
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


def unread_of_encoder(section: str, encoder: EncoderSettings, given: set[str]) -> Iterator[str]:
    """A line for each key of an encoder that is given and that its type does not read, or cannot have so large."""
    for key in ("path", "query_path", "pooling"):
        value = getattr(encoder, key)
        if key in given and encoder.type not in ("transformers", "given") and value is not None:
            yield f"{section}.{key}: found {value!r}, but type {encoder.type} has none; set type: transformers"
    for key in ("passage_template", "query_template", "dimensions"):
        value = getattr(encoder, key)
        if key in given and encoder.type == "static" and value != type(encoder).model_fields[key].default:
            yield f"{section}.{key}: found {value!r}, but type static has none; leave it out"
    most = width_of(encoder) if {"dimensions", "type", "path"} & given else None
    if most is not None and (encoder.dimensions or 0) > most:
        yield f"{section}.dimensions: found {encoder.dimensions}, but its vectors have {most}; take at most so many"


def width_of(encoder: EncoderSettings) -> int | None:
    """Dimensions of an encoder's vectors, where that can be told without opening it: at most those of its states."""
    if encoder.type == "minilm":
        return MINILM_WIDTH
    try:
        config = json.loads(Path(encoder.path or "", "config.json").read_text(encoding="utf-8"))
        return config["hidden_size"] if encoder.type == "transformers" and config["hidden_size"] > 0 else None
    except (OSError, ValueError, KeyError, TypeError):  # embedding says what is wrong with it
        return None


def contradicted(config: Any, begun: Mapping[str, tuple[str, Any]], own: Mapping[str, Any]) -> Iterator[str]:
    """A line for each key of a model that the folder it begins with decides otherwise.

    `begun` has of each run the file that decides, and what. `own` is the model section as the config file itself has
    it, which is for all runs: it may not contradict a folder that all of them begin with.
    """
    for name, (start, decoder) in begun.items():
        given = {f"runs.{name}.model": config.runs[name].model}
        given |= {"model": own} if all(other == start for other, _ in begun.values()) else {}
        usual = {"kv_heads": decoder.get("heads"), "qkv_bias": decoder.get("bias")}
        for place, model in given.items():
            for key in [key for key in decoder if key in model]:
                here, there = ((usual.get(key) if value is None else value) for value in (model[key], decoder[key]))
                if here != there:
                    yield f"{place}.{key}: found {model[key]!r}, but {start} decides it: {there!r}; leave it out"


def doubts(config: Any, runs: dict[str, Run]) -> Iterator[str]:
    """A line for each thing that is allowed and hardly meant, as `contradictions` has them."""
    fixed = config.dataset.samples
    most = fixed.train_samples or (None if fixed.epochs else fixed.max_samples)
    for name in config.runs:
        train = runs[seeded(name, config.seeds[0])].train
        samples = max(1, round(most * train.samples_share)) if most else math.inf
        if train.warmup_samples > samples:
            yield (
                f"runs.{name}: train.warmup_samples {train.warmup_samples} is more than the {samples} samples it is "
                f"trained on, so that the learning rate never reaches {train.lr}; lower the one or raise the other"
            )
    qa = config.qa
    if qa.questions is not None and qa.warmup_samples > qa.examples:
        yield (
            f"qa.warmup_samples {qa.warmup_samples} is more than qa.examples {qa.examples}, so that the learning rate "
            f"never reaches qa.lr {qa.lr}; lower the one or raise the other"
        )


def check_runs(runs: dict[str, Any]) -> None:
    """Raise `ValueError` for the first wrong twin or beginning of a config's runs."""
    for name, run in runs.items():
        if run.architecture == "retro" and run.twin is not None:
            twin = runs.get(run.twin)
            if twin is None or twin.architecture != "gpt":
                known = [other for other in runs if runs[other].architecture == "gpt"]
                raise ValueError(
                    f"run {name!r}: twin {run.twin!r} is not a gpt run of this config; name one ({listed(known)}), or "
                    f"leave it out{did_you_mean(run.twin, known)}"
                )
        if run.freeze and run.start is None:
            raise ValueError(f"run {name!r}: freeze: base is for a run that has `from`; leave it out, or add that")
        seen, at = [name], run.start
        while at in runs:
            if at in seen:
                raise ValueError(
                    f"run {name!r}: from {run.start!r} leads back to {at!r}; begin one of them without `from`"
                )
            seen, at = [*seen, at], runs[at].start
        if at is not None and "/" not in at and not at.endswith(".json"):
            known = [other for other in runs if other != seen[-1]]
            raise ValueError(
                f"run {seen[-1]!r}: from {at!r} is neither a run of this config ({listed(known)}) nor a path; give one "
                f"of them{did_you_mean(at, known)}"
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
