"""What a config asks of Snakemake: the targets, and what a rule reads where the config decides it.

The rules are its only user; it knows nothing of Snakemake. Paths are those of `retro.paths`.
"""

from pathlib import Path
from typing import Any

from retro import paths
from retro.config import Config
from retro.errors import UserError
from retro.experiments.plan import conditions, fraction_of
from retro.retrievals import Retrievals

SPLITS = ("train", "valid", "test")
FIGURES = ("loss", "bpb", "sections", "cost", "neighbours")
OF_ONE_RUN = ("seeds", "neighbours", "database", "controls", "retrievers")  # the other experiments compare all runs


class Workflow:
    """What a config asks for. Methods that raise `UserError` say what the config lacks."""

    def __init__(self, config: Config):
        self.config, self.dataset = config, config.dataset
        self.facts, self.runs = config.dataset.facts(), config.expanded()
        self.folder = f"{config.results}/{config.dataset.name}"
        self.sources = sorted(config.dataset.sources)
        self.splits = config.evaluate.splits  # those evaluated
        self.retrievals = Retrievals(self.facts, config.retrievals, self.folder)
        self.dense = [name for name in config.retrievals if self.retrievals.facts[name]["retriever"] == "dense"]
        count = self.dataset.shards
        self.shards = [f"{number}-of-{count}" for number in range(count)] if count > 1 else []
        self.retro_runs = [name for name, run in self.runs.items() if run["architecture"] == "retro"]
        # The run that the report is about: the first RETRO run that has a twin.
        self.first = next((name for name in self.retro_runs if self.runs[name]["twin"]), None)

    def path(self, pattern: str, **names: str) -> str:
        """A file below the dataset's folder, by a pattern of `retro.paths`."""
        return f"{self.folder}/{pattern.format(**names)}"

    def manifest(self, pattern: str, **names: str) -> str:
        """The manifest of an artifact."""
        return f"{self.path(pattern, **names)}/manifest.json"

    # Preprocessing

    def read(self) -> dict[str, dict[str, Any]]:
        """What is read of each source; `weight` and `database` only say what is done with it."""
        unread = ("weight", "database")
        return {
            name: {key: value for key, value in source.items() if key not in unread}
            for name, source in self.facts["sources"].items()
        }

    def settings(self, *keys: str) -> dict[str, Any]:
        """Some of the dataset's facts."""
        return {key: self.facts[key] for key in keys}

    def uses(self, *keys: str) -> dict[str, dict[str, bool]]:
        """What is done with each source: `train`, `database` or both."""
        return {name: {key: source[key] for key in keys} for name, source in self.facts["sources"].items()}

    def learned_from(self) -> dict[str, dict[str, Any]]:
        """Sources that the tokenizer is trained on: none where it is given, so that a new one changes no other."""
        learned = self.dataset.tokenizer.type == "bpe"
        return {name: each for name, each in self.read().items() if each["train"] and learned}

    def duplicates(self, *actions: str) -> list[str]:
        """The manifest of duplicate documents, if the config's action is one of these."""
        return [self.manifest(paths.DUPLICATES)] if self.dataset.duplicates.action in actions else []

    def embeddings(self, retrieval: str, file: str) -> list[str]:
        """A file of the embeddings of every source that a retrieval searches."""
        folder = self.retrievals.source(retrieval, "embeddings")
        return [f"{folder}/{source}/{file}" for source in self.sources]

    def neighbours(self, retrieval: str, split: str) -> str:
        """The manifest of a retrieval's neighbours."""
        return self.manifest(paths.NEIGHBOURS, retrieval=paths.prefix(retrieval), split=split)

    def retrieved(self) -> list[str]:
        """Neighbours of the evaluated splits by every retrieval of the config."""
        return [self.neighbours(name, split) for name in self.retrievals.named for split in self.splits]

    def drawn(self) -> list[str]:
        """Names of the retrievals whose indexes are drawn."""
        if not self.dense:
            raise UserError("retrievals: the config names none with an index. Take config/indexes.yaml, or name some.")
        return self.dense

    def preprocessed(self) -> list[str]:
        """Every durable artifact of preprocessing, arrays and manifests."""
        tokens = ("tokens.bin", "tokens.idx", "documents.npy", "documents.jsonl", "skipped.jsonl")
        per_source = [f"{paths.CHUNKS}/chunks.npy", f"{paths.EMBEDDINGS}/embeddings.npy"]
        per_source += [f"{paths.TOKENS}/{file}" for file in tokens]
        per_split = [f"{paths.NEIGHBOURS}/{file}" for file in ("ids.npy", "scores.npy")]
        files = [self.path(pattern, source=name, retrieval="") for name in self.sources for pattern in per_source]
        files += [self.path(pattern, split=split, retrieval="") for split in SPLITS for pattern in per_split]
        files += [self.path(f"{paths.DATABASE}/{name}.npy") for name in ("database", *SPLITS)]
        index = self.path(f"{paths.INDEX}/index.faiss", retrieval="")
        return [f"{self.folder}/config.json", index, *files, *self.manifests()]

    def manifests(self) -> list[str]:
        """Manifests of every artifact of preprocessing; the recorded config names their sha256."""
        own = [paths.TOKENIZER, paths.DATABASE, paths.INDEX]
        own += [paths.BM25] if self.dataset.retriever == "bm25" else []
        found = [self.manifest(pattern, retrieval="") for pattern in own]
        per_source = (paths.TOKENS, paths.CHUNKS, paths.EMBEDDINGS)
        found += [self.manifest(each, source=name, retrieval="") for each in per_source for name in self.sources]
        return found + [self.neighbours("", split) for split in SPLITS] + self.duplicates("report", "exclude", "drop")

    def stored(self, stage: str) -> list[str]:
        """Manifests of the dataset that a stage made, and of those of its retrievals that were made so far."""
        own = [path for path in self.manifests() if path.startswith(f"{self.folder}/{stage}/")]
        folders = [Path(self.retrievals.folder(name), stage) for name in self.retrievals.named]
        return own + [path.as_posix() for folder in folders for path in sorted(folder.glob("**/manifest.json"))]

    def validated(self) -> dict[str, int]:
        """Stages that `snakemake validate` recomputes, each with its number of threads."""
        threads = self.config.resources
        found = {"tokens": threads.tokenize_threads, "chunks": 1, "database": 1, "embeddings": threads.embed_threads}
        return found | dict.fromkeys(("index", "neighbours"), threads.search_threads)

    # Models and their evaluation

    def twins(self) -> dict[str, dict[str, Any]]:
        """Twin and seed of each run, in the config's order: the report is about the first RETRO run."""
        return {name: {"twin": run["twin"], "seed": run["seed"]} for name, run in self.runs.items()}

    def models(self) -> list[str]:
        """Every trained model."""
        names = ("model.safetensors", "model.json", "metrics.jsonl")
        return [self.path(f"{paths.RUN}/{name}", run=run) for run in self.runs for name in names]

    def modes(self, run: str) -> list[str]:
        """Ways a run is evaluated: GPT has none, RETRO has retrieval on, off and, as a control, random."""
        if self.runs[run]["architecture"] == "gpt":
            return ["none"]
        return ["on", "off"] + (["random"] if self.config.evaluate.random_neighbours else [])

    def losses(self, runs: list[str] | None = None) -> list[str]:
        """Manifests of the per-token losses that every evaluation has, of all runs or of these."""
        return [
            self.manifest(paths.LOSSES, run=run, split=split, mode=mode)
            for run in self.runs
            if runs is None or run in runs
            for split in self.splits
            for mode in self.modes(run)
        ]

    def shown(self, mode: str, split: str) -> list[str]:
        """Manifest of the neighbours that a condition shows, where they are not the dataset's own."""
        source = mode.partition("+")[0]
        if fraction_of(source):
            return [self.manifest(paths.FRACTION, retrieval="", fraction=source, split=split)]
        return [self.neighbours(source, split)] if source in self.retrievals.named else []

    def overlap(self) -> dict[str, Any]:
        """How overlap is measured: with how many nearest chunks, and with how many neighbours of how many chunks."""
        evaluate, train = self.config.evaluate, self.config.train
        return {
            "nearest": 10,
            "shown": train.neighbours_used if evaluate.neighbours_used is None else evaluate.neighbours_used,
            "retrieved_chunks": evaluate.retrieved_chunks or train.retrieved_chunks,
        }

    def explored(self) -> list[str]:
        """Losses that the explorer shows side by side: the first RETRO run's, and its twin's."""
        if self.first is None:
            raise UserError("runs: none is a retro with a twin, which the explorer shows. Name a twin.")
        pairs = [(self.runs[self.first]["twin"], "none"), (self.first, "on")]
        return [self.manifest(paths.LOSSES, run=run, split=self.splits[0], mode=mode) for run, mode in pairs]

    def reports(self) -> list[str]:
        """What a reader opens; without a RETRO run that has a twin, tables only."""
        tables = [f"{self.folder}/{name}.csv" for name in ("summary", "comparison", "leakage")]
        if self.first is None:
            return tables
        figures = [self.path(f"{paths.FIGURES}/{name}") for name in (*FIGURES, "leakage")]
        pages = [f"{self.folder}/{name}.html" for name in ("report", "neighbours")]
        return [*tables, *pages, *(f"{figure}.{kind}" for figure in figures for kind in ("svg", "png"))]

    def parts(self) -> list[str]:
        """Sections of the report that other stages write: leakage always, the others once they were made."""
        made = {path.as_posix() for path in Path(self.folder).glob(f"{paths.PARTS}/*.html")}
        return sorted(made | {self.path(f"{paths.PARTS}/leakage.html")})

    # Experiments

    def _seeds_of(self, run: str) -> list[str]:
        """The runs, one a seed, of which this is one."""
        name = run.removesuffix(f"-s{self.runs[run]['seed']}")
        return [f"{name}-s{seed}" for seed in self.config.seeds]

    def measured(self) -> list[str]:
        """The runs, one a seed, that experiments on one model measure: those of `experiments.of`, or the first."""
        name = self.config.experiments.of
        first = f"{name}-s{self.config.seeds[0]}" if name else self.first
        return self._seeds_of(first) if first else []

    def compared(self, experiment: str) -> list[str]:
        """Manifests of the losses that an experiment compares: of one RETRO run and its twin, or of all runs."""
        if experiment not in OF_ONE_RUN:
            return self.losses()
        runs = self.measured()
        return self.losses([*runs, *(self.runs[run]["twin"] for run in runs)]) + [
            self.manifest(paths.LOSSES, run=run, split=self.splits[0], mode=mode)
            for run in runs
            for mode in conditions(
                experiment,
                self.config.experiments,
                self.retrievals.named,
                used=self.runs[run]["train"]["neighbours_used"],
                saved=self.dataset.neighbours.saved,
            )
        ]

    def kept(self, fraction: str) -> dict[str, Any]:
        """What a smaller database keeps: its share and seed, and how many of the candidates of each chunk."""
        saved = min(self.dataset.neighbours.saved, self.config.experiments.candidates)
        return dict(zip(("share", "seed"), fraction_of(fraction), strict=True)) | {"saved": saved}

    def described(self, experiment: str) -> list[str]:
        """Manifests of the neighbours that an experiment tells of: where it compares retrievers, those of each."""
        names = ["", *self.retrievals.named] if experiment == "retrievers" else []
        return [self.neighbours(name, self.splits[0]) for name in names]

    # Questions

    def questions(self) -> str:
        """The file of questions."""
        if self.config.qa.questions is None:
            raise UserError("qa.questions: the config names no questions. Take config/qa.yaml, or give a file.")
        return self.config.qa.questions

    def answering(self, run: str) -> tuple[str, str]:
        """What answers of a run: its model fine-tuned, and as trained."""
        return f"{run}-{self.config.qa.name}", run

    def answered(self) -> list[str]:
        """Answers of every seed of the first RETRO run and its twin, fine-tuned (first) and not, in every mode."""
        self.questions()
        first, tuned = self.runs[self.first or next(iter(self.runs))], self.config.qa.name
        runs = [run for name in (first["name"], first["twin"]) if name for run in self._seeds_of(name)]
        return [
            self.path(f"{tuned}/{paths.ANSWERS}", answering=answering, retrieved=mode)
            for run in runs
            for answering in self.answering(run)
            for mode in (["none"] if self.runs[run]["architecture"] == "gpt" else ["on", "off"])
        ]
