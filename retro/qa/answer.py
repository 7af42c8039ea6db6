"""Answer questions with a model, retrieval on or off: JSON lines, one a question, with what was retrieved for it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro import errors
from retro.artifacts import write_text
from retro.device import best_device
from retro.errors import UserError
from retro.evaluation.conditions import ON, usual
from retro.naming import unseeded, untuned
from retro.qa.decode import answers
from retro.qa.files import Example, answerable, read
from retro.qa.lookup import QuestionLookup
from retro.qa.metrics import rank
from retro.qa.prompts import Neighbours, neighbours_of
from retro.qa.settings import QuestionSettings
from retro.recorded import Dataset
from retro.training.load import load_model
from retro.training.run import TrainedRun

STAGE = "retro.qa.answer"


def asked(file: Path, dataset: Dataset, splits: Sequence[str]) -> list[Example]:
    """The questions of some splits about pages of the dataset; raises UserError if there are none."""
    found = [each for each in answerable(read(file, dataset), dataset) if each.split in splits]
    if not found:
        raise UserError(f"{file}: no question of {', '.join(splits)} about pages of the dataset. Change qa.splits.")
    return found


def shown_first(file: Path, dataset: Dataset, shots: int) -> str:
    """Questions of the training split with their answers, drawn by the dataset's seed: text before each prompt."""
    if not shots:
        return ""
    examples = asked(file, dataset, ["train"])
    rng = np.random.default_rng([dataset.facts["seed"], shots])
    drawn = rng.choice(len(examples), min(shots, len(examples)), replace=False)
    return "".join(f"{examples[i].prompt} {examples[i].answers[0]}\n\n" for i in drawn)


def of(run: TrainedRun) -> dict[str, Any]:
    """Which model answers: its run, what that is called in the config, its seed, and whether it was fine-tuned."""
    base = untuned(run.name, run.qa["name"]) if run.qa else run.name
    return {"run": run.name, "model": unseeded(base), "seed": run.seed, "tuned": bool(run.qa)}


def line(example: Example, answer: str, seen: Neighbours | None, dataset: Dataset, who: dict[str, Any]) -> str:
    """A line of the output. `rank`: place of the first neighbour that holds an answer, −1: none; null: none shown."""
    texts = [] if seen is None else seen.texts(dataset)
    facts = {
        **who,
        "split": example.split,
        "id": example.id,
        "group": example.group,
        "prompt": example.prompt,
        "answers": list(example.answers),
        "prediction": answer,
        "rank": None if seen is None else rank(texts, list(example.answers)),
        "neighbours": texts,
    }
    return json.dumps(facts, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="results/<dataset>/config.json")
    parser.add_argument("--model", required=True, type=Path, help="model.json, fine-tuned or not")
    parser.add_argument("--settings", required=True, help="the qa section's answer_facts(), as JSON")
    parser.add_argument("--questions", required=True, type=Path, help="JSON lines of questions")
    parser.add_argument("--retrieval", required=True, choices=[*usual("retro"), *usual("gpt")], help="none: for a gpt")
    parser.add_argument("--output", required=True, type=Path, help="JSON lines to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    settings = QuestionSettings(**json.loads(options.settings))
    torch.set_num_threads(options.threads)
    dataset = Dataset.open(options.config)
    model, run = load_model(options.model, dataset, best_device())
    if options.retrieval == ON and not run.retro:
        raise UserError(f"{options.model}: a gpt, which retrieves nothing. Use --retrieval none.")
    examples = asked(options.questions, dataset, settings.splits)
    seen: Sequence[Neighbours | None] = [None] * len(examples)
    if options.retrieval == ON:
        lookup = QuestionLookup(
            dataset, settings.neighbours_used, settings.candidates, settings.title_weight, options.threads
        )
        seen = neighbours_of(examples, dataset, lookup, run.train.retrieved_chunks, without_own=True)
    who = {**of(run), "retrieval": options.retrieval, "shots": 0 if run.qa else settings.shots}
    before = shown_first(options.questions, dataset, who["shots"])
    prompts = [before + each.prompt for each in examples]
    found = answers(model, dataset, prompts, seen, settings.answer_tokens, settings.batch_size)
    if before:  # which taught that an answer is a line
        found = [answer.partition("\n")[0].strip() for answer in found]
    lines = [
        line(example, answer, near, dataset, who) for example, answer, near in zip(examples, found, seen, strict=True)
    ]
    write_text(options.output, "".join(lines))
    print(f"{run.name}, retrieval {options.retrieval}: {len(lines)} answers → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
