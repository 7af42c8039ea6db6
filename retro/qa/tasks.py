"""A dataset's held-out part as tasks of EleutherAI's lm-eval: a folder for --include_path, which needs no network.

    python -m retro.qa.tasks --config results/open-book/config.json --questions data/qa_factbook.jsonl.gz \\
        --output results/open-book/tasks

<name>_choice   the answer among others to questions of the same kind (multiple_choice)
<name>_open     the answer written out (generate_until); exact match and F1 as `retro.qa.score` takes them
<name>_pages    bits per byte of each held-out page, read by itself (loglikelihood_rolling)
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from retro.base import command
from retro.base.artifacts import write_text
from retro.base.names import HELD_OUT
from retro.base.stage import UserError, whole
from retro.dataset.dataset import Dataset
from retro.dataset.named import recorded_config
from retro.evaluation.bits_per_byte import group_documents
from retro.qa.answer import asked
from retro.qa.questions import Example
from retro.qa.score import normalise

CHOICES = 4
SHARED = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {files}}}
training_split: train
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
target_delimiter: " "
fewshot_delimiter: "\\n\\n"
"""
CHOICE = """\
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1}
"""
OPEN = """\
doc_to_target: "{{{{answers[0]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: {tokens}, do_sample: false}}
process_results: !function scoring.scores
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: f1, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
PAGES = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {files}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 1}}
"""
SCORING = '''\
"""Scores of a written answer, as `retro.qa.score` takes them."""

from retro.qa.score import exact_match, f1


def scores(doc, results):
    return {"exact_match": exact_match(results[0], doc["answers"]), "f1": f1(results[0], doc["answers"])}
'''


def kind_of(example: Example) -> str:
    """What is asked, whatever it is asked about: the example's id without its group."""
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(example.group)}(?![A-Za-z0-9])", "", example.id)


def wrong(example: Example, others: list[str]) -> list[str]:
    """Answers to other questions that are none to this one, each once."""
    taken = {normalise(answer) for answer in example.answers}
    found: dict[str, str] = {}
    for answer in others:
        if normalise(answer) not in taken:
            found.setdefault(normalise(answer), answer)
    return list(found.values())


def choices(example: Example, number: int, others: dict[str, list[str]], seed: int) -> tuple[list[str], int]:
    """Some answers in a random order, one of them right, and which; drawn by `seed` and the example's number.

    The wrong ones answer questions of the same kind, or, where these have too few answers, any.
    """
    rng, offered = np.random.default_rng([seed, number]), wrong(example, others[kind_of(example)])
    if len(offered) < CHOICES - 1:
        offered = wrong(example, [answer for part in others.values() for answer in part])
    if len(offered) < CHOICES - 1:
        raise UserError(f"question {example.id}: {len(offered)} wrong answers in the file, wanted {CHOICES - 1}.")
    drawn = [offered[i] for i in rng.choice(len(offered), CHOICES - 1, replace=False)]
    gold = int(rng.integers(CHOICES))
    return [*drawn[:gold], example.answers[0], *drawn[gold:]], gold


def questions(file: Path, dataset: Dataset, splits: list[str], tell: bool = True) -> list[dict]:
    """A record of each question of some splits; wrong answers come from all questions of those splits."""
    examples = asked(file, dataset, splits, tell)
    others: dict[str, list[str]] = {}
    for each in examples:
        others.setdefault(kind_of(each), []).append(each.answers[0])
    found = []
    for number, each in enumerate(examples):
        answers, gold = choices(each, number, others, dataset.facts["seed"])
        made_from = {"group": each.group, "doc_id": each.document}
        facts = {"id": each.id, **made_from, "prompt": each.prompt, "answers": list(each.answers)}
        found.append({**facts, "choices": answers, "gold": gold})
    return found


def pages(dataset: Dataset, split: str) -> list[dict]:
    """A record of each document of a split, in its order."""
    rows, store = dataset.rows(split), dataset.store
    documents = group_documents(rows, store.source(rows), store.chunks(rows))
    tokens, real = store.tokens(rows)
    found = []
    for first, last in zip(documents.first, [*documents.first[1:], len(rows)], strict=True):
        text = dataset.tokenizer.decode(tokens[first:last][real[first:last]])
        known = store.document(int(rows[first]))
        found.append({"id": known["id"], "group": known.get("group"), "title": known.get("title"), "text": text})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=recorded_config, help="a dataset, by name or folder")
    parser.add_argument("--questions", required=True, type=Path, help="JSON lines of questions")
    parser.add_argument("--name", default="factbook", help="what the tasks' names begin with (factbook)")
    parser.add_argument("--split", default="test", choices=HELD_OUT, help="split that is asked (test)")
    parser.add_argument("--answer-tokens", type=whole, default=24, help="tokens of an answer at most (24)")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    options = parser.parse_args()
    dataset = Dataset.open(options.config)
    records = {
        "train": questions(options.questions, dataset, ["train"], tell=False),
        "test": questions(options.questions, dataset, [options.split]),
        "pages": pages(dataset, options.split),
    }
    files = {}
    for name, part in records.items():
        files[name] = str((options.output / f"{name}.jsonl").resolve())
        write_text(Path(files[name]), "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in part))
    asking, reading = json.dumps({key: files[key] for key in ("train", "test")}), json.dumps({"test": files["pages"]})
    name = options.name
    texts = {
        f"{name}_choice.yaml": SHARED.format(name=f"{name}_choice", files=asking, kind="multiple_choice") + CHOICE,
        f"{name}_open.yaml": SHARED.format(name=f"{name}_open", files=asking, kind="generate_until")
        + OPEN.format(tokens=options.answer_tokens),
        f"{name}_pages.yaml": PAGES.format(name=f"{name}_pages", files=reading),
        "scoring.py": SCORING,
    }
    for file, text in texts.items():
        write_text(options.output / file, text)
    counts = f"{len(records['test'])} questions, {len(records['pages'])} pages"
    print(f"{name}_choice, {name}_open, {name}_pages: {counts} → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main)
