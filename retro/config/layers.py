"""What a config file says before it is validated, and what its named retrievals say of the dataset.

A file is read, laid on its presets, and free of what preprocessing decides.

Alternative retrievals of a dataset are other retrievers, encoders, indexes or exclusions over the same chunks. Each
overrides sections of the dataset, and only what it changes is made again: an equal embedding or index is taken from the
dataset, or from the first retrieval that has it. Artifacts lie in D/retrievals/<name>, laid out as the dataset's own.
"""

import copy
import json
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError
from pydantic_core import InitErrorDetails

from retro.base.artifacts import read_json, read_text
from retro.base.names import BM25_FILES, prefix
from retro.base.nearest import did_you_mean
from retro.base.stage import Overrides, Settings, UserError, plain, reasons
from retro.corpus.records import DECODER, Repeated
from retro.database.settings import EncoderSettings
from retro.dataset.settings import SampleSettings
from retro.retrieval.settings import TOGETHER, IndexSettings, NeighbourSettings, Retriever

PRESETS = Path(__file__).resolve().parents[2] / "config" / "models"
# Keys that a training section may not set.
RECORDED_KEYS = {*SampleSettings.model_fields, "chunk_length", "vocab_size", "tokenizer", "eod_id", "pad_id"}


def with_presets(raw: dict[str, Any], where: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """`raw` laid on its preset, and that on its own, as far as they go."""
    name = raw.get("preset")
    if name is None:
        return raw
    try:
        name = plain(str(name))
    except ValueError as error:
        raise UserError(f"{where}: preset: {error} (found {name!r})") from None
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in PRESETS.glob("*.yaml"))
        raise UserError(
            f"{where}: preset: no file {path}. Give the path of a config, or one of the presets: "
            f"{', '.join(known)}{did_you_mean(name, known)}"
        )
    if path in seen:
        raise UserError(f"{where}: preset: {path} leads back to itself. Give another preset in one of them.")
    return laid(with_presets(read(path), str(path), (*seen, path)), raw)


OCTAL = re.compile(r"[-+]?0[0-7_]+")


class _Loader(yaml.SafeLoader):
    """YAML in which what it would change without a word is an error: a key that stands twice in a mapping, of which the
    first would be lost, and numbers that YAML 1.1 reads to the base of 8 or 60.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if name.value in seen and name.tag != "tag:yaml.org,2002:merge":
                line = name.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"line {line}: {name.value} stands here a second time"
                )
            seen.add(name.value)
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """An int or a float, as it is written."""
        whole = node.tag.endswith(":int")
        value = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        base = 60 if ":" in node.value else 8 if whole and OCTAL.fullmatch(node.value) else 10
        if base != 10:
            line = node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"line {line}: {node.value} would become {value}, as YAML 1.1 reads it to the base of {base}. "
                f"Write the number without zeros and colons, or put it in quotes if it is text",
            )
        return value


for tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{tag}", _Loader.number)


def read(path: Path) -> dict[str, Any]:
    """A config file as it is written. Raises `UserError` for what is not one."""
    try:
        text = read_text(path) if path.exists() else path.read_text()
        try:  # first as JSON, as Snakemake does, whatever the file's name
            raw = DECODER.decode(text)
        except json.JSONDecodeError:
            raw = _Loader(text).get_single_data()
    except FileNotFoundError:
        shipped = ", ".join(sorted(str(file.name) for file in PRESETS.parent.glob("*.yaml")))
        raise UserError(
            f"{path}: no such config file (working folder {Path.cwd()}). Give one, or one of config/: {shipped}."
        ) from None
    except Repeated as error:
        raise UserError(f"{path}: {error} stands there a second time; one value would be lost. Remove one.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}. Correct it.") from None
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else type(raw).__name__
        raise UserError(f"{path}: wanted a mapping of sections, found {found}. See config/tiny.yaml for an example.")
    return raw


EITHER = ("epochs", "train_samples")  # two ways to say one thing, in dataset.samples


def laid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A config laid on another: where it gives `epochs` or `train_samples`, the other one's number goes."""

    def samples(raw: dict[str, Any]) -> dict[str, Any]:
        dataset = raw.get("dataset")
        found = dataset.get("samples") if isinstance(dataset, dict) else None
        return found if isinstance(found, dict) else {}

    result, given = merged(under, over), samples(over)
    if any(key in given for key in EITHER):
        for key in set(EITHER) - given.keys():
            samples(result).pop(key, None)
    return result


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping."""
    result = copy.deepcopy(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def refuse_recorded(raw: dict[str, Any], where: str) -> None:
    """A training section may not set what preprocessing decided: name both values and the two ways out."""
    runs = raw.get("runs")
    places = [("train", raw.get("train")), ("model", raw.get("model"))]
    for name, run in runs.items() if isinstance(runs, dict) else ():
        if isinstance(run, dict):
            places += [(f"runs.{name}.{key}", run.get(key)) for key in ("train", "model")]
    for place, section in places:
        if not isinstance(section, dict):
            continue
        for key in sorted(RECORDED_KEYS & section.keys()):
            decided = _decided(raw, key)
            raise UserError(
                f"{where}: {place}.{key} is decided by preprocessing: {decided}, wanted {section[key]!r}. Either "
                f"remove it from {place}, or change it in the dataset section and let what depends on it be "
                f"made again."
            )


def _decided(raw: dict[str, Any], key: str) -> str:
    """Where and as what a key that training must not set is decided."""
    found = raw.get("dataset")
    dataset = found if isinstance(found, dict) else {}
    recorded = Path(str(raw.get("results", "results"))) / str(dataset.get("name", "dataset")) / "config.json"
    if recorded.is_file():
        facts = read_json(recorded)
        value = {**facts, **facts.get("samples", {}), **facts.get("tokenizer", {})}.get(key)
        return f"recorded as {value!r} in {recorded}"
    section = dataset.get("samples") if key in SampleSettings.model_fields else dataset
    value = section.get(key, "its default") if isinstance(section, dict) else "its default"
    return f"{value!r} in the dataset section"


def suggesting(error: ValidationError) -> ValidationError:
    """The same error, in which a word that is none of those wanted is answered with the one that is most like it."""
    found: list[InitErrorDetails] = []
    for item in error.errors():
        context = item.get("ctx", {})
        if item["type"] == "literal_error" and isinstance(item["input"], str):
            near = did_you_mean(item["input"], re.findall(r"'([^']*)'", context["expected"]))
            context = {"expected": f"{context['expected']}{near}"}
        found.append(InitErrorDetails(type=item["type"], loc=item["loc"], input=item["input"], ctx=context))
    return ValidationError.from_exception_data(error.title, found)


BUILT = {  # the index settings an index is built with; the others say how it is searched
    "index": ("factory", "train_vectors", "gpu", "gpu_float16"),
    "bm25": ("bm25_k1", "bm25_b"),
}
SECTIONS: dict[str, type[Settings]] = {
    "encoder": EncoderSettings,
    "index": IndexSettings,
    "neighbours": NeighbourSettings,
}


class RetrievalSettings(Settings):
    """A retrieval to compare with the dataset's own, which it overrides key by key."""

    retriever: Retriever | None = Field(None, description="Another retriever; default: the dataset's.")
    encoder: Annotated[dict[str, Any], Overrides(EncoderSettings)] = Field(
        {}, description="Overrides of dataset.encoder; chunks are embedded again."
    )
    index: Annotated[dict[str, Any], Overrides(IndexSettings)] = Field({}, description="Overrides of dataset.index.")
    neighbours: Annotated[dict[str, Any], Overrides(NeighbourSettings)] = Field(
        {}, description="Overrides of dataset.neighbours."
    )


def resolve(dataset: dict[str, Any], overrides: RetrievalSettings) -> dict[str, Any]:
    """The facts of a retrieval: retriever, encoder, index, neighbours. Raises `ValueError` for a wrong key."""
    facts = {"retriever": overrides.retriever or dataset["retriever"]}
    for section, kind in SECTIONS.items():
        try:
            facts[section] = kind(**{**dataset[section], **getattr(overrides, section)}).facts()
        except ValidationError as error:
            raise ValueError(reasons(suggesting(error), kind, (section,))[0]) from None
    return facts


def filtered(neighbours: dict[str, Any], *splits: str) -> dict[str, Any]:
    """The facts of neighbours as they hold for some splits: a filter of none of them is left out."""
    kept = [split for split in neighbours.get("filter", {}).get("splits", []) if split in splits]
    others = {key: value for key, value in neighbours.items() if key != "filter"}
    return {**others, "filter": {**neighbours["filter"], "splits": kept}} if kept else others


def made_of(facts: dict[str, Any], kind: str) -> dict[str, Any]:
    """The settings that decide a retrieval's `kind` of artifact: embeddings, index or bm25."""
    encoder = {} if kind == "bm25" else {"encoder": facts["encoder"]}
    return encoder | {key: facts["index"][key] for key in BUILT.get(kind, ())}


def check(dataset: dict[str, Any], named: dict[str, RetrievalSettings]) -> None:
    """Raise `ValueError` for the first wrong key of a config's retrievals."""
    for name, overrides in named.items():
        try:
            resolve(dataset, overrides)
        except ValueError as error:
            raise ValueError(f"retrievals.{name}.{error}") from None


class Retrievals:
    """The retrievals of a config, and the folder each of their artifacts lies in."""

    def __init__(self, dataset: dict[str, Any], named: dict[str, RetrievalSettings], folder: str):
        """`dataset` are the dataset's facts, `folder` is D."""
        self.facts = {"": {key: dataset[key] for key in ("retriever", *SECTIONS)}}
        self.facts |= {name: resolve(dataset, overrides) for name, overrides in named.items()}
        self.named, self._folder = list(named), folder

    def folder(self, name: str) -> str:
        """Of a retrieval; the dataset's own is called ''."""
        return f"{self._folder}/{prefix(name)}".rstrip("/")

    def indexes(self, name: str) -> tuple[str, ...]:
        """The folder names of what a retrieval searches: index, bm25 or both."""
        retriever = self.facts[name]["retriever"]
        return ("bm25",) if retriever == "bm25" else ("index", "bm25") if retriever in TOGETHER else ("index",)

    def has(self, name: str, kind: str) -> bool:
        """Whether a retrieval needs that kind of artifact; the dataset always has embeddings and their index."""
        return kind == "embeddings" or kind in self.indexes(name) or (name == "" and kind == "index")

    def source(self, name: str, kind: str) -> str:
        """The folder D/…/<kind> with the artifact of a retrieval: that of the first that has an equal one."""
        wanted = made_of(self.facts[name], kind)
        for other, facts in self.facts.items():
            if self.has(other, kind) and made_of(facts, kind) == wanted:
                return f"{self.folder(other)}/{kind}"
        raise KeyError(name)

    def embedded(self, name: str) -> dict[str, Any]:
        """The encoder that a retrieval's chunks are embedded with, as a stage's settings."""
        return {"encoder": self.facts[name]["encoder"]}

    def built(self, name: str, kind: str) -> dict[str, Any]:
        """The index settings that a retrieval's index or bm25 is built with."""
        return {key: self.facts[name]["index"][key] for key in BUILT[kind]}

    def searching(self, name: str, split: str, **neighbours: Any) -> dict[str, Any]:
        """Settings of a retrieval's neighbours stage for a split; `neighbours` override some of which are kept."""
        facts = {key: self.facts[name][key] for key in ("retriever", "neighbours", "index")}
        return facts | {"neighbours": filtered(facts["neighbours"], split) | neighbours}

    def searched(self, name: str = "") -> list[str]:
        """Manifests of the indexes that a retrieval searches."""
        return [f"{self.source(name, kind)}/manifest.json" for kind in self.indexes(name)]

    def searched_files(self, name: str = "") -> list[str]:
        """Files of the indexes that a retrieval searches."""
        files = {"index": ["index.faiss"], "bm25": BM25_FILES}
        return [f"{self.source(name, kind)}/{file}" for kind in self.indexes(name) for file in files[kind]]

    def words(self, sources: list[str], name: str, split: str) -> list[str]:
        """Manifests of the tokenizer and the tokens, which BM25 and a filter of the split read; nothing for others."""
        names = ["tokenizer", *(f"tokens/{source}" for source in sources)]
        read = "bm25" in self.indexes(name) or "filter" in filtered(self.facts[name]["neighbours"], split)
        return [f"{self._folder}/{n}/manifest.json" for n in names] if read else []
