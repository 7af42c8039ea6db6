"""Answer questions with a model, retrieval on or off: JSON lines, one a question, with what was retrieved for it.

Answers are greedy, many questions at once: one that is answered makes room for the next.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro.base import stage
from retro.base.artifacts import write_text
from retro.base.machine import best_device
from retro.base.names import unseeded, untuned
from retro.base.stage import UserError, whole
from retro.dataset.dataset import Dataset
from retro.evaluation.conditions import ON, usual
from retro.generation.decoding import NONE_FOUND, Decoder, Prompt, Sampler, given_passages
from retro.model.language_model import LanguageModel
from retro.qa.questions import Example, Neighbours, QuestionLookup, neighbours_of, padded, read, tell_cut
from retro.qa.score import rank
from retro.qa.settings import QuestionSettings
from retro.training.settings import TrainedRun
from retro.training.weights import load_model


def answers(
    model: LanguageModel,
    dataset: Dataset,
    prompts: list[str],
    seen: Sequence[Neighbours | None],
    most: int,
    batch_size: int,
) -> list[str]:
    """The likeliest continuation of each prompt, up to the end of document or `most` tokens, stripped.

    Prompts are laid out as in fine-tuning; `seen` are their neighbours, the same for every chunk, None: retrieval off.
    """
    laid = [padded(prompt, dataset, most) for prompt in prompts]
    order = sorted(range(len(laid)), key=lambda i: (len(laid[i]), seen[i] is None, i))
    found = [NONE_FOUND if near is None else given_passages(near.tokens, near.mask) for near in seen]
    eod = dataset.tokenizer.eod_id
    decoder = Decoder(
        model,
        dataset.store,
        seq_length=dataset.seq_length,
        eod_id=eod,
        lookup=lambda queries: [found[order[query.text]] for query in queries],
    )
    written: list[list[int]] = [[] for _ in laid]
    for place, step in decoder.write_all([Prompt(laid[i], most, Sampler()) for i in order], batch_size):
        if step.token != eod:
            written[order[place]].append(step.token)
    return [dataset.tokenizer.decode(tokens).strip() for tokens in written]


STAGE = "retro.qa.answer"


def asked(file: Path, dataset: Dataset, splits: Sequence[str], tell: bool = True) -> list[Example]:
    """The questions of some splits about pages of the dataset; raises UserError if there are none."""
    found = [each for each in read(file, dataset, tell) if each.split in splits]
    if not found:
        raise UserError(f"{file}: no question of {', '.join(splits)} about pages of the dataset. Change qa.splits.")
    return found


def shown_first(file: Path, dataset: Dataset, shots: int) -> str:
    """Questions of the training split with their answers, drawn by the dataset's seed: text before each prompt."""
    if not shots:
        return ""
    examples = asked(file, dataset, ["train"], tell=False)
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
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads")
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
    tell_cut(prompts, [], dataset, settings.answer_tokens)
    found = answers(model, dataset, prompts, seen, settings.answer_tokens, settings.batch_size)
    if before:  # which taught that an answer is a line
        found = [answer.partition("\n")[0].strip() for answer in found]
    lines = [
        line(example, answer, near, dataset, who) for example, answer, near in zip(examples, found, seen, strict=True)
    ]
    write_text(options.output, "".join(lines))
    print(f"{run.name}, retrieval {options.retrieval}: {len(lines)} answers → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
