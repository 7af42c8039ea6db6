"""Ask a model that was fine-tuned to answer: the answer, and what it was read from.

    python -m retro.qa.ask "How long is the coastline of Sri Lanka?" --show

The question is looked up as in fine-tuning (`retro.qa.questions`). Without --run the newest fine-tuned RETRO answers.
"""

import argparse
import sys
import textwrap
from pathlib import Path

import torch

from retro.base import command
from retro.base.artifacts import read_manifest
from retro.base.machine import best_device
from retro.base.nearest import listed
from retro.base.stage import UserError, whole
from retro.dataset.dataset import Dataset
from retro.dataset.named import RESULTS, run_folder
from retro.qa.answer import answers
from retro.qa.questions import Example, QuestionLookup, neighbours_of
from retro.qa.settings import QuestionSettings
from retro.training.weights import load_model, trained_run

HOW = "Run `retro qa`: it fine-tunes the models of config/qa.yaml"


def fine_tuned() -> list[Path]:
    """Folders of the models fine-tuned to answer, below `results`: those that retrieve first, then the newest."""
    found = []
    for path in RESULTS.glob("*/runs/*/model.json"):
        settings = read_manifest(path, "model").settings
        if settings.get("qa"):
            found.append((settings.get("architecture") != "retro", -path.stat().st_mtime, path.parent))
    return [folder for _, _, folder in sorted(found)]


def chosen(run: Path | None) -> Path:
    """The folder of the run that answers. Raises `UserError` where there is none, or it was not fine-tuned."""
    others = fine_tuned()
    if run is None and not others:
        raise UserError(f"{RESULTS.resolve()}: no model was fine-tuned to answer. {HOW}.")
    if run is not None and not trained_run(read_manifest(run / "model.json", "model")).qa:
        there = f"Take one that was: {listed(map(str, others))}" if others else HOW
        raise UserError(f"{run}: was not fine-tuned to answer. {there}.")
    return run or others[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", help="the question, in quotes")
    parser.add_argument("--run", type=run_folder, help="a fine-tuned run, by name or folder; default: the newest")
    parser.add_argument("--no-retrieval", action="store_true", help="answer without looking anything up")
    parser.add_argument("--show", action="store_true", help="print what was looked up, on stderr")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads (1)")
    options = parser.parse_args()
    if not options.question.strip():
        raise UserError("the question is empty. Write one, in quotes.")
    folder = chosen(options.run)
    if options.run is None:
        print(f"taken: {folder} (--run names another)", file=sys.stderr, flush=True)
    torch.set_num_threads(options.threads)
    dataset = Dataset.open(folder / "../../config.json")
    model, run = load_model(folder / "model.json", dataset, best_device())
    assert run.qa is not None
    settings = QuestionSettings(**run.qa)
    asked = Example("", f"Question: {options.question.strip()}\nAnswer:", (), "", "", None, ())
    seen = None
    if run.retro and not options.no_retrieval:
        lookup = QuestionLookup(
            dataset, settings.neighbours_used, settings.candidates, settings.title_weight, options.threads
        )
        seen = neighbours_of([asked], dataset, lookup, run.train.retrieved_chunks, without_own=False)[0]
    for text in seen.texts(dataset) if seen is not None and options.show else ():
        print(textwrap.fill(" ".join(text.split()), 96, initial_indent="  ", subsequent_indent="  "), file=sys.stderr)
        print(file=sys.stderr)
    print(answers(model, dataset, [asked.prompt], [seen], settings.answer_tokens, 1)[0])


if __name__ == "__main__":
    command.run(main)
