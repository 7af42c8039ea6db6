"""The whole config: its sections, validated, and cut into what stages read.

Imported by the Snakefile and the command-line tools only. A stage is given its own section as canonical JSON,
so that a changed key reruns what read it and nothing else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from retro.base import names
from retro.base.names import NAME, seeded
from retro.base.stage import Names, Overrides, Settings, UserError, explain
from retro.config.checks import (
    braces,
    check_runs,
    contradicted,
    contradictions,
    named,
    refuse_truth,
    refuse_unusable,
    wrong_names,
)
from retro.config.layers import (
    PRESETS,
    RetrievalSettings,
    check,
    laid,
    merged,
    read,
    refuse_recorded,
    suggesting,
    with_presets,
)
from retro.corpus import files, megatron
from retro.corpus.settings import DuplicateSettings, SourceSettings, SplitSettings, TokenizerSettings
from retro.database.settings import EncoderSettings
from retro.dataset.settings import SampleSettings
from retro.evaluation.settings import EvaluationSettings, GenerationSettings
from retro.experiments.settings import ExperimentSettings
from retro.model.settings import ModelSettings
from retro.qa.settings import QuestionSettings
from retro.retrieval.settings import IndexSettings, NeighbourSettings, Retriever
from retro.training import foreign
from retro.training.settings import Run, TrainSettings


class DatasetSettings(Settings):
    """What preprocessing decides, once. Recorded in results/<name>/config.json; training reads it from there."""

    name: str = Field("dataset", pattern=NAME, description="The dataset's folder below the results folder.")
    seed: int = Field(1234, ge=0, description="Seed of splits, samples and searches.")
    sources: dict[str, SourceSettings] = Field(description="Sources of documents, by name.")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="A malformed record stops the run, or is skipped and listed in skipped.jsonl."
    )
    split: SplitSettings = Field(SplitSettings(), description="How documents are split.")
    tokenizer: TokenizerSettings = Field(TokenizerSettings(), description="The language model's tokenizer.")
    shards: int = Field(
        1,
        gt=0,
        le=10_000,
        description="Jobs that tokenizing and embedding (of each source), the index and the neighbours (of each split) "
        "are divided into. What is made does not depend on it.",
    )
    duplicates: DuplicateSettings = Field(
        DuplicateSettings(),
        exclude_if=lambda value: value.action == "off",
        description="What is done about documents that are equal, or nearly.",
    )
    chunk_length: int = Field(64, ge=2, le=1024, description="Tokens a chunk (m).")
    encoder: EncoderSettings = Field(EncoderSettings(), description="What embeds chunks.")
    retriever: Retriever = Field(
        "dense",
        description="dense: nearest embeddings. bm25: shared rare words. bm25-rerank: the nearest embeddings, "
        "in BM25's order. hybrid: both, by their ranks. Controls: random (drawn from the database), shuffled (the "
        "dense neighbours of another chunk of the split).",
    )
    index: IndexSettings = Field(IndexSettings(), description="What searches them.")
    neighbours: NeighbourSettings = Field(NeighbourSettings(), description="Which neighbours are kept.")
    samples: SampleSettings = Field(SampleSettings(), description="What every run trains on.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        samples, length = self.samples, self.chunk_length
        if samples.seq_length % length:
            down = samples.seq_length // length * length
            raise ValueError(
                f"samples.seq_length {samples.seq_length} is not a multiple of chunk_length {length}; "
                f"nearest: {down or length} or {down + length}"
            )
        if not any(source.train for source in self.sources.values()):
            raise ValueError("sources: none has train: true; wanted at least one")
        if not any(source.database for source in self.sources.values()):
            raise ValueError("sources: none has database: true; wanted at least one")
        weighted = [name for name, source in self.sources.items() if source.train and source.weight is not None]
        without = [name for name, source in self.sources.items() if source.train and source.weight is None]
        if weighted and without:
            raise ValueError(f"sources {weighted} have a weight, {without} none; give all trained sources one, or none")
        given = [name for name, source in self.sources.items() if source.type == "megatron"]
        if given and self.tokenizer.type == "bpe":
            raise ValueError(
                f"source {given[0]!r} is tokens already (type: megatron): name the tokenizer that made them, such as "
                f"dataset.tokenizer: {{type: gpt2, path: vocab.json, merges: merges.txt}}"
            )
        return self


class RunSettings(Settings):
    """One trained model, for each seed."""

    architecture: Literal["gpt", "retro"] = Field(description="gpt, or retro: with encoder and cross-attention.")
    twin: str | None = Field(None, description="The GPT run that this RETRO run is compared with.")
    model: Annotated[dict[str, Any], Overrides(ModelSettings)] = Field(
        {}, description="Overrides of the model section."
    )
    train: Annotated[dict[str, Any], Overrides(TrainSettings)] = Field(
        {}, description="Overrides of the train section."
    )
    start: Annotated[str | None, Names("model")] = Field(
        None,
        alias="from",
        description="Begin with trained weights: another run of this config (its model of the same seed), or the path "
        "of a model.json or of its folder, or of a folder of Hugging Face's, whose config.json then says what the "
        "decoder is. A RETRO that begins with a GPT gets a new encoder and cross-attention.",
    )
    freeze: Literal["base"] | None = Field(
        None,
        description="base: train the encoder and chunked cross-attention only. With retrieval off the model is then "
        "the one it began with, bit for bit. Of a gpt nothing is trained: it is evaluated as it is.",
    )


class ResourceSettings(Settings):
    """Threads, processes and GPUs of the stages. They change when things are done and where, not what is made."""

    tokenize_threads: int = Field(2, gt=0, description="Threads of a tokenizing job.")
    embed_threads: int = Field(2, gt=0, description="Threads of an embedding job; a core is left to a training.")
    search_threads: int = Field(2, gt=0, description="Threads of index and neighbour jobs.")
    evaluate_threads: int = Field(1, gt=0, description="Threads of an evaluation job.")
    kept_gb: int = Field(
        10,
        ge=0,
        description="GB of vectors kept in .embeddings of the results folder, so that no chunk is embedded twice by an "
        "encoder, whatever dataset it is in; the oldest go first. 0: none.",
    )
    gpus: int = Field(
        0, ge=0, description="GPUs of an embedding or search job. Above 0, training has one for each process."
    )
    nodes: int = Field(1, gt=0, description="Nodes of a training; several are nodes of one SLURM job.")
    processes: int = Field(
        1,
        gt=0,
        description="Processes of a training on each node; they share its samples, and more as train.parallel says.",
    )


class ValidationSettings(Settings):
    """How much of what preprocessing stored `snakemake validate` recomputes."""

    fraction: float = Field(
        0.05, gt=0, le=1, description="Share of the blocks of every artifact; of each at least one block."
    )
    seed: int = Field(1, ge=0, description="Decides which blocks: another seed, other blocks.")


class Config(Settings):
    """The config file."""

    preset: Annotated[str | None, Names("preset")] = Field(
        None,
        description="Defaults that this config overrides: a file of config/models (its name without .yaml) or the "
        "path of any config file, which may have a preset in its turn.",
    )
    results: Annotated[str, Names("results")] = Field(
        "results", description="Folder of everything made. Here and in every path, ~ and $VARIABLES are written out."
    )
    dataset: DatasetSettings = Field(description="What preprocessing decides.")
    retrievals: dict[str, RetrievalSettings] = Field(
        {}, description="Other retrievals of the same dataset, by name: trained models can be evaluated on them."
    )
    model: ModelSettings = Field(ModelSettings(), description="The model's shape, for all runs.")
    train: TrainSettings = Field(TrainSettings(), description="The optimization, for all runs.")
    runs: dict[str, RunSettings] = Field(
        {"gpt": RunSettings(architecture="gpt"), "retro": RunSettings(architecture="retro", twin="gpt")},
        description="The models to train, by name.",
    )
    seeds: list[int] = Field([1], min_length=1, description="Each run is trained once for each seed.")
    evaluate: EvaluationSettings = Field(EvaluationSettings(), description="How runs are compared.")
    experiments: ExperimentSettings = Field(ExperimentSettings(), description="What `snakemake experiments` measures.")
    qa: QuestionSettings = Field(QuestionSettings(), description="Question answering: what `snakemake qa` does.")
    generate: GenerationSettings = Field(GenerationSettings(), description="The sample in the report.")
    validation: ValidationSettings = Field(
        ValidationSettings(), alias="validate", description="What `snakemake validate` recomputes."
    )
    resources: ResourceSettings = Field(ResourceSettings(), description="Threads and GPUs of the stages.")
    # As written, before a flavour filled in defaults: a run that changes the flavour must not inherit those.
    _model: dict[str, Any] = PrivateAttr({})
    # Of each run the config.json of Hugging Face's that it begins with, directly or not, and the decoder it describes.
    _begun: dict[str, tuple[str, dict[str, Any]]] = PrivateAttr({})

    @model_validator(mode="after")
    def _retrievals(self) -> Self:
        check(self.dataset.facts(), self.retrievals)
        return self

    @field_validator("runs")
    @classmethod
    def _names(cls, runs: dict[str, RunSettings]) -> dict[str, RunSettings]:
        check_runs(runs)
        return runs

    def models(self) -> dict[str, Run]:
        """Every model to train, by its name, `<run>-s<seed>`."""
        found = {}
        for name, run in self.runs.items():
            model = ModelSettings(**self.model_of(name))
            train = TrainSettings(**merged({**self.train.facts(), "trackers": self.train.trackers}, run.train))
            for seed in self.seeds:
                found[seeded(name, seed)] = Run(
                    name=seeded(name, seed),
                    architecture=run.architecture,
                    twin=seeded(run.twin, seed) if run.twin else None,
                    seed=seed,
                    model=model,
                    train=train,
                    start=self._start(run.start, seed),
                    freeze=run.freeze,
                )
        return found

    def _start(self, start: str | None, seed: int) -> str | None:
        """The model.json that a run begins with."""
        if start in self.runs:
            return f"{self.results}/{self.dataset.name}/{names.RUN}/model.json".format(run=seeded(start, seed))
        return None if start is None else foreign.named(start)

    def model_of(self, name: str) -> dict[str, Any]:
        """A run's model as written: the section, what the run overrides, and the decoder of a folder it begins with."""
        return merged(merged(self._model, self.runs[name].model), self._begun[name][1])

    def _decoder(self, name: str) -> tuple[str, dict[str, Any]]:
        """What `_begun` has of a run; nothing where it begins with anything else."""
        at: str | None = name
        while at in self.runs:
            at = self.runs[at].start
        start = None if at is None else foreign.named(at)
        if start is None or not foreign.is_foreign(start) or not Path(start).is_file():
            return "", {}
        return start, foreign.decoder(start, self.dataset.samples.seq_length)

    def paths(self) -> dict[str, str]:
        """Files and folders that Snakemake is told of, by their keys; those of the sources: `files_of`."""
        told = ("file", "model", "results")
        return {".".join(path.key): path.value for path in named(self) if path.what in told}


def load(path: str | Path) -> Config:
    """Read a config file. Raises `UserError` with one line for each wrong key."""
    return parse(read(Path(path)), str(path))


def parse(raw: dict[str, Any], where: str = "config") -> Config:
    """Validate a config mapping, its preset merged underneath."""
    own = raw.get("model")  # without presets, which cannot know of a folder that a run begins with
    try:
        raw = with_presets(raw, where)
        refuse_unusable(raw, where)
    except RecursionError:
        raise UserError(f"{where}: an alias (*name) leads back to itself. Write out what it stands for.") from None
    refuse_recorded(raw, where)
    refuse_truth(raw, where)
    try:
        config = Config(**raw)
    except ValidationError as error:
        raise UserError(explain(suggesting(error), Config, where)) from None
    config._model = raw.get("model") or {}
    config._begun = {name: config._decoder(name) for name in config.runs}
    for name, run in config.runs.items():
        for key, kind, values in (
            ("model", ModelSettings, config.model_of(name)),
            ("train", TrainSettings, merged(config.train.facts(), run.train)),
        ):
            try:
                kind(**values)
            except ValidationError as error:
                raise UserError(explain(suggesting(error), kind, where, ("runs", name, key))) from None
    wrong = [*wrong_names(config), *contradictions(config, config.models()), *braces(config.paths())]
    wrong += contradicted(config, config._begun, own if isinstance(own, dict) else {})
    if wrong:
        raise UserError("\n".join(f"{where}: {line}" for line in wrong))
    return config


def from_snakemake(given: dict[str, Any], files: Sequence[Path] = ()) -> Config:
    """The config Snakemake was given: a whole file, or overrides of config/config.yaml. `files` is where it read it."""
    default = PRESETS.parent / "config.yaml"
    for path in files:
        read(Path(path))  # Snakemake says nothing of a key that stands there twice, or of 0100 that became 64
    where = " and ".join(map(str, files)) or "--config"
    dataset = given.get("dataset")
    if "preset" in given or (isinstance(dataset, dict) and "sources" in dataset):
        return parse(dict(given), where)
    return parse(laid(read(default), dict(given)), where if given else str(default))


def files_of(name: str, source: SourceSettings, on_error: str = "stop") -> list[str]:
    """The files a source is read from, in the order they are read, without those that `on_error="skip"` leaves out."""
    if source.type == "megatron":
        found = [f"{prefix}{end}" for prefix in megatron.find(source.path, name) for end in (".idx", ".bin")]
    else:
        found = [str(file.path) for file in files.find(source.path, name, on_error)[0] if not file.reason]
    for line in braces({f"source {name}": path for path in found}):
        raise UserError(line)
    return found
