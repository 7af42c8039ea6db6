"""What a config asks of Snakemake: the targets, and what a rule reads where the config decides it.

The rules are its only user; it knows nothing of Snakemake. Paths are those of `retro.base.names`.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from retro.base.artifacts import read_manifest
from retro.base.names import (
    ANSWERS,
    CHUNKS,
    DATABASE,
    FIGURES,
    INDEX,
    LISTED,
    LOSSES,
    NEIGHBOURS,
    PARTS,
    RECORDED,
    RUN,
    SPLITS,
    TEST,
    TOKENS,
    VALID,
    seeded,
    tuned,
    unseeded,
)
from retro.base.stage import UserError
from retro.config.preprocessing import Preprocessing
from retro.config.schema import Config
from retro.evaluation.conditions import NONE, OFF, ON, Condition, usual
from retro.experiments.catalogue import CATALOGUE, Offered
from retro.training import foreign

DRAWN = ("loss", "bpb", "sections", "cost", "neighbours")
TABLED = ("loss", "cost", "neighbours")  # those whose values no table of the evaluation has
MANY = 20  # neighbours that a copier is given besides as many as the run is shown, if so many are stored


class Workflow(Preprocessing):
    """What a config asks for, preprocessing included. Methods that raise `UserError` say what the config lacks."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.runs = config.models()
        self.retro_runs = [name for name, run in self.runs.items() if run.retro]
        # The run that the report is about: the first RETRO run that has a twin.
        self.first = next((name for name in self.retro_runs if self.runs[name].twin), None)
        for name in self.runs:
            if begun := self.begun(name)[1]:
                foreign.refuse_absent(begun[0], f"runs.{unseeded(name)}.from")

    # Models and their evaluation

    def cut(self, run: str) -> str:
        """Which cut of the recorded config a run is trained on (`retro.base.names.CUTS`)."""
        return f"-{self.runs[run].architecture}"

    def recorded(self, run: str, mode: str = NONE) -> str:
        """The recorded config that a run is trained on, or measured under a condition: what looks up, by all."""
        cut = self.cut(run) if mode == NONE else ""
        return self.path(RECORDED, cut=cut)

    def text(self, run: str) -> list[str]:
        """Arrays of the tokens and chunks that a run is trained on."""
        sources = self.sources if self.runs[run].retro else self.texts
        return [self.path(f"{TOKENS}/tokens.bin", source=name) for name in sources] + [
            self.path(f"{CHUNKS}/chunks.npy", source=name) for name in sources
        ]

    def retrieval(self, run: str) -> list[str]:
        """Arrays of the database, its index and the neighbours that a RETRO is trained on; nothing for a
        GPT, but for its lists where duplicates are dropped.
        """
        retro = self.runs[run].retro
        found = [self.path(f"{DATABASE}/{name}.npy") for name in ("database", *LISTED) if retro or self.dropping]
        found += [self.path(f"{INDEX}/index.faiss", retrieval="")] if retro else []
        neighbours = LISTED[:TEST] if retro else ()
        return found + [self.path(f"{NEIGHBOURS}/ids.npy", retrieval="", split=split) for split in neighbours]

    def measuring(self, mode: str) -> dict[str, Any]:
        """What per-token losses under a condition depend on: how many neighbours only where it is not in its name."""
        condition, facts = Condition.parse(mode), self.config.evaluate.losses_facts(mode)
        unread = {"neighbours_used"} if condition.empty or condition.k is not None else set()
        unread |= {"retrieved_chunks"} if condition.empty else set()
        return {key: value for key, value in facts.items() if key not in unread}

    def priority(self, mode: str) -> int:
        """Which losses are measured first: those that take longest, with most neighbours."""
        return Condition.parse(mode).k or 0

    def twins(self) -> dict[str, dict[str, Any]]:
        """Twin and seed of each run, in the config's order: the report is about the first RETRO run."""
        return {name: {"twin": run.twin, "seed": run.seed} for name, run in self.runs.items()}

    def begun(self, run: str) -> tuple[str | None, list[str]]:
        """The model.json that a run begins with if it is trained here; else that model's files, made elsewhere.

        Those are its model.json and what that lists beside it, or config.json and the weights of a folder of Hugging
        Face's, so that other weights are another beginning.
        """
        start = self.runs[run].start
        if start is None:
            return None, []
        here = {os.path.abspath(path): path for path in self.models() if path.endswith(".json")}
        if (made := here.get(os.path.abspath(start))) is not None:
            return made, []
        try:
            if foreign.is_foreign(start):
                return None, [str(path) for path in foreign.files(start)]
            files = list(read_manifest(start, "model").facts["files"])
        except UserError:  # the training says what is wrong with it
            files = []
        return None, [start, *(str(Path(start).parent / file) for file in files)]

    def models(self) -> list[str]:
        """Every trained model."""
        names = ("model.safetensors", "model.json", "metrics.jsonl")
        return [self.path(f"{RUN}/{name}", run=run) for run in self.runs for name in names]

    def modes(self, run: str) -> list[str]:
        """Ways a run is evaluated: GPT has none, RETRO has retrieval on, off and, as a control, random."""
        return usual(self.runs[run].architecture, controls=self.config.evaluate.random_neighbours)

    def losses(self, runs: list[str] | None = None) -> list[str]:
        """Manifests of the per-token losses that every evaluation has, of all runs or of these."""
        return [
            self.manifest(LOSSES, run=run, split=split, mode=mode)
            for run in self.runs
            if runs is None or run in runs
            for split in self.splits
            for mode in self.modes(run)
        ]

    def shown(self, mode: str, *splits: str) -> list[str]:
        """Manifests of the neighbours that a condition shows, where they are not the dataset's own."""
        found = [Condition.parse(mode).manifest(split, self.retrievals.named) for split in splits]
        return [f"{self.folder}/{manifest}" for manifest in found if manifest]

    def neighbours_shown(self, run: str | None = None) -> int:
        """Neighbours a chunk sees when a run is evaluated."""
        train, evaluate = self.runs[run].train if run else self.config.train, self.config.evaluate
        return train.neighbours_used if evaluate.neighbours_used is None else evaluate.neighbours_used

    def overlap(self) -> dict[str, Any]:
        """How overlap is measured: with how many nearest chunks, and with how many neighbours of how many chunks.

        That is what the first RETRO run is shown; `others`, by the name of their array, is what runs are that see more
        or less.
        """
        chosen = self.config.evaluate.retrieved_chunks
        runs: list[str | None] = [*filter(None, [self.first]), *self.retro_runs]
        trains = [(run, self.runs[run].train if run else self.config.train) for run in runs or [None]]
        views = [(self.neighbours_shown(run), chosen or train.retrieved_chunks) for run, train in trains]
        (shown, retrieved), *others = dict.fromkeys(views)
        named = {"others": {f"shown-{k}x{count}": [k, count] for k, count in others}} if others else {}
        return {"nearest": 10, "shown": shown, "retrieved_chunks": retrieved, **named}

    def overlaps(self) -> list[str]:
        """Names of the arrays of overlap."""
        return ["training", "shown", *self.overlap().get("others", {})]

    # Copying

    @property
    def copies(self) -> bool:
        """Whether the first RETRO run and its twin are mixed with a copier without being asked to."""
        can = self.first is not None and any(map(self._can_copy, self.splits))
        return can and self.config.evaluate.copy_baseline

    def _can_copy(self, split: str) -> bool:
        """Whether losses of a split can be mixed: by weights fitted on valid, so never those of valid."""
        return split != SPLITS[VALID] and self.dataset.split.valid > 0

    def beside_copier(self, run: str, split: str, mixed: str) -> str:
        """Manifest of the losses that a condition with a copier, or a kNN-LM, mixes."""
        return self.manifest(LOSSES, run=run, split=split, mode=Condition.parse(mixed).model.name)

    def copiers(self) -> list[str]:
        """Manifests of the losses that tell what a copier does: of every seed of the first RETRO run and of its twin.

        Each alone and mixed, with as many neighbours as the run is shown and with `MANY`. Raises `UserError` where
        there is nothing to mix, to fit the weights on or to score.
        """
        if self.first is None:
            raise UserError("runs: none is a retro with a twin, which copying is compared with. Name a twin.")
        if not self.dataset.split.valid:
            raise UserError("dataset.split.valid is 0, but weights of a copier are fitted on valid. Give it a share.")
        used, found = self.neighbours_shown(self.first), []
        counts = sorted({used, min(MANY, self.dataset.neighbours.saved)} - {0})
        shown = [Condition(ON, None if k == used else k) for k in counts]
        for run in self._seeds_of(self.first):
            mixed = [replace(each, copy=True) for each in shown]
            found += [(run, each.name) for each in (Condition(OFF), Condition(ON), *shown, *mixed)]
            twin = self.runs[run].twin or ""
            found += [(twin, each.name) for each in (Condition(NONE), *(Condition(NONE, k, copy=True) for k in counts))]
        return [self.manifest(LOSSES, run=run, split=SPLITS[TEST], mode=mode) for run, mode in dict.fromkeys(found)]

    def explored(self) -> list[str]:
        """Losses that the explorer shows: of a GPT, and of RETRO runs that it is the twin of.

        Of the first under every usual condition, of the others, a seed of each, with retrieval on.
        """
        if self.first is None:
            raise UserError("runs: none is a retro with a twin, which the explorer shows. Name a twin.")
        twin, bases = self.runs[self.first].twin, {unseeded(self.first)}
        pairs = [(twin, NONE), *((self.first, mode) for mode in usual("retro", self.config.evaluate.random_neighbours))]
        for name in self.retro_runs:
            if self.runs[name].twin == twin and unseeded(name) not in bases:
                bases.add(unseeded(name))
                pairs.append((name, ON))
        return [self.manifest(LOSSES, run=run, split=self.splits[0], mode=mode) for run, mode in pairs if run]

    def reports(self) -> list[str]:
        """What a reader opens; without a RETRO run that has a twin, tables only."""
        more = ["copying"] if self.copies else []
        tables = [f"{self.folder}/{name}.csv" for name in ("summary", "comparison", "leakage", *more)]
        if self.first is None:
            return tables
        figures = [self.path(f"{FIGURES}/{name}") for name in (*DRAWN, "leakage", *more)]
        pages = [f"{self.folder}/{name}.html" for name in ("report", "neighbours")]
        return [*tables, *pages, *(f"{figure}.{kind}" for figure in figures for kind in ("svg", "png"))]

    def parts(self) -> list[str]:
        """Sections of the report that other stages write: those of every run, the others once they were made."""
        made = {path.as_posix() for path in Path(self.folder).glob(f"{PARTS}/*.html")}
        always = ["leakage", *(["copying"] if self.copies else [])]
        return sorted(made | {self.path(f"{PARTS}/{name}.html") for name in always})

    # Experiments

    def _seeds_of(self, run: str) -> list[str]:
        """The runs, one a seed, of which this is one."""
        return [seeded(unseeded(run), seed) for seed in self.config.seeds]

    def measured(self) -> list[str]:
        """The runs, one a seed, that experiments on one model measure: those of `experiments.of`, or the first."""
        name = self.config.experiments.of
        first = seeded(name, self.config.seeds[0]) if name else self.first
        return self._seeds_of(first) if first else []

    def compared(self, experiment: str) -> list[str]:
        """Manifests of the losses that an experiment compares: of one RETRO run and its twin, or of all runs."""
        if not CATALOGUE[experiment].one_run:
            return self.losses()
        runs = self.measured()
        return self.losses([*runs, *(twin for run in runs if (twin := self.runs[run].twin))]) + [
            self.manifest(LOSSES, run=measured, split=self.splits[0], mode=mode)
            for run in runs
            for mode in CATALOGUE[experiment].conditions(self._offered(run))
            if not Condition.parse(mode).mixed or self._can_copy(self.splits[0])
            if (measured := self.runs[run].twin if Condition.parse(mode).gpt else run)
        ]

    def _offered(self, run: str) -> Offered:
        """What conditions of a run, and of its twin, can be made of."""
        chunks = self.config.evaluate.retrieved_chunks or self.runs[run].train.retrieved_chunks
        room = self.config.evaluate.in_context * self.dataset.samples.seq_length
        return self.config.experiments.offered(
            self.retrievals.named,
            used=self.neighbours_shown(run),
            saved=self.dataset.neighbours.saved,
            fit=int(room) // (chunks * self.dataset.chunk_length),
            first_fits=self.dataset.samples.seq_length // self.dataset.chunk_length >= chunks + 2,
        )

    def kept(self, fraction: str) -> dict[str, Any]:
        """What a smaller database keeps: its share and seed, and how many of the candidates of each chunk."""
        saved = min(self.dataset.neighbours.saved, self.config.experiments.candidates)
        kept = Condition.parse(fraction).fraction
        if kept is None:
            raise UserError(f"condition {fraction!r}: wanted a smaller database, such as database-0.05-s1.")
        return {"share": kept[0], "seed": kept[1], "saved": saved}

    def described(self, experiment: str) -> list[str]:
        """Manifests of the neighbours that an experiment tells of: where it compares retrievers, those of each."""
        names = ["", *self.retrievals.named] if CATALOGUE[experiment].recall else []
        return [self.neighbours(name, self.splits[0]) for name in names]

    # Questions

    def questions(self) -> str:
        """The file of questions."""
        if self.config.qa.questions is None:
            raise UserError("qa.questions: the config names no questions. Take config/qa.yaml, or give a file.")
        return self.config.qa.questions

    def answering(self, run: str) -> tuple[str, str]:
        """What answers of a run: its model fine-tuned, and as trained."""
        return tuned(run, self.config.qa.name), run

    def answered(self) -> list[str]:
        """Answers of every seed of the first RETRO run and its twin, fine-tuned (first) and not, in every mode."""
        self.questions()
        if not self.config.qa.instructions:
            raise UserError(
                "qa.instructions: the config names no file to fine-tune on. Name some, such as that of qa.questions, "
                "of which only questions of the training split are learnt."
            )
        first, tuning = self.runs[self.first or next(iter(self.runs))], self.config.qa.name
        runs = [run for name in (first.name, first.twin) if name for run in self._seeds_of(name)]
        return [
            self.path(f"{tuning}/{ANSWERS}", answering=answering, retrieved=mode)
            for run in runs
            for answering in self.answering(run)
            for mode in usual(self.runs[run].architecture)
        ]
