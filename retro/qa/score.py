"""Answers to scores: exact match, F1, match, retrieval's recall, and paired differences; 95 % intervals over groups.

Answers are normalised as SQuAD does (Rajpurkar et al. 2016). The seeds of a model are one row: each question's score is
their mean.
"""

import argparse
import csv
import io
import json
import re
import string
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from retro.base import stage
from retro.base.artifacts import read_text, write_text
from retro.base.stage import UserError, whole
from retro.evaluation.bits_per_byte import ENOUGH, by_unit, resampled_sums
from retro.evaluation.conditions import OFF, ON

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, white space made single. In that order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(found: str, answers: list[str]) -> float:
    """1 if the normalised text equals one of the answers, else 0."""
    return float(any(normalise(found) == normalise(answer) for answer in answers))


def match(found: str, answers: list[str]) -> float:
    """1 if one of the answers stands in the text as words, whatever is around it (Mallen et al. 2023), else 0."""
    return float(rank([found], answers) == 0)


def f1(found: str, answers: list[str]) -> float:
    """The best over the answers of the harmonic mean of precision and recall of words."""
    return max((_f1(normalise(found).split(), normalise(answer).split()) for answer in answers), default=0.0)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted))


def rank(texts: list[str], answers: list[str]) -> int:
    """Place, from 0, of the first text that holds one of the answers as words; −1 if none does."""
    wanted = [f" {normalise(answer)} " for answer in answers if normalise(answer)]
    for place, text in enumerate(texts):
        padded = f" {normalise(text)} "
        if any(answer in padded for answer in wanted):
            return place
    return -1


STAGE = "retro.qa.score"
SCORES = ("exact_match", "f1", "match")
WHO = ("model", "tuned", "shots", "retrieval", "split")
SEED = 0

Lines = list[dict]


def read(path: Path) -> Lines:
    """Lines that `retro.qa.answer` wrote."""
    try:
        lines = read_text(path).split("\n")  # str.splitlines would also cut at separators inside a text
        found = [json.loads(line) for line in lines if line]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not lines of JSON ({error}). Delete it and run snakemake qa.") from None
    if not found or not all(isinstance(line, dict) and "prediction" in line for line in found):
        raise UserError(f"{path}: no answers. Delete it and run snakemake qa.")
    return found


def by_model(files: list[Lines]) -> dict[tuple, list[Lines]]:
    """The answers of each model under each mode of retrieval, its seeds side by side."""
    found: dict[tuple, list[Lines]] = {}
    for lines in files:
        found.setdefault(tuple(lines[0][key] for key in WHO), []).append(lines)
    for seeds in found.values():
        same(seeds)
    return found


def same(files: list[Lines]) -> None:
    """Raises UserError unless all answer the same questions."""
    if any([line["id"] for line in lines] != [line["id"] for line in files[0]] for lines in files):
        names = ", ".join(f"{lines[0]['run']} {lines[0]['retrieval']}" for lines in files)
        raise UserError(f"{names}: answered different questions. Run snakemake qa again.")


def scored(seeds: list[Lines]) -> np.ndarray:
    """Exact match, F1 and match of each question, means over seeds: float64 [Q, 3]."""
    taken = (exact_match, f1, match)
    return np.mean([[[s(x["prediction"], x["answers"]) for s in taken] for x in lines] for lines in seeds], axis=0)


def intervals(values: np.ndarray, groups: list[str], resamplings: int) -> list[tuple[float, float, float]]:
    """Mean of each column of `values` [Q, C] and its interval: groups drawn with replacement; NaN for too few."""
    units = np.unique(groups, return_inverse=True)[1]
    sums = by_unit(np.concatenate([values, np.ones((len(values), 1))], axis=1), units)  # (G, C + 1)
    if len(sums) < ENOUGH:
        return [(float(mean), float("nan"), float("nan")) for mean in values.mean(0)]
    drawn = resampled_sums(sums, resamplings, SEED)  # (R, C + 1)
    ends = np.quantile(drawn[:, :-1] / drawn[:, -1:], [0.025, 0.975], axis=0)  # (2, C)
    columns = zip(values.mean(0), *ends, strict=True)
    return [(float(mean), float(low), float(high)) for mean, low, high in columns]


def columns(values: np.ndarray, lines: Lines, resamplings: int) -> dict[str, float]:
    """Means and intervals of `values` [Q, 3], in percent or points."""
    row: dict[str, float] = {}
    groups = [line["group"] for line in lines]
    for name, each in zip(SCORES, intervals(100 * values, groups, resamplings), strict=True):
        row |= {name: each[0], f"{name}_low": each[1], f"{name}_high": each[2]}
    return row


def row_of(seeds: list[Lines], resamplings: int) -> dict[str, object]:
    """A row of qa.csv, in percent. recall@1, recall@k: an answer in the first, in one of the neighbours shown."""
    first = seeds[0]
    row = {key: first[0][key] for key in WHO} | {"tuned": int(first[0]["tuned"])}
    row |= {"seeds": len(seeds), "questions": len(first), **columns(scored(seeds), first, resamplings)}
    ranks = [line["rank"] for lines in seeds for line in lines]
    if None not in ranks:
        row["recall@1"] = 100 * float(np.mean([rank == 0 for rank in ranks]))
        row["recall@k"] = 100 * float(np.mean([rank >= 0 for rank in ranks]))
    return row


def differences(models: dict[tuple, list[Lines]], resamplings: int) -> list[dict[str, object]]:
    """What fine-tuning adds and what retrieval adds, in points, question by question."""
    known = {(model, tuned, retrieval): seeds for (model, tuned, _, retrieval, _), seeds in models.items()}
    pairs = [("fine-tuning", key, (key[0], False, key[2])) for key in known if key[1]]
    pairs += [("retrieval", key, (*key[:2], OFF)) for key in known if key[2] == ON]
    rows = []
    for kind, key, other in pairs:
        if other not in known:
            continue
        ours, theirs = known[key], known[other]
        same([*ours, *theirs])
        shots = ours[0][0]["shots"]
        row = {"model": key[0], "tuned": int(key[1]), "shots": shots, "retrieval": key[2], "kind": kind}
        rows.append(row | columns(scored(ours) - scored(theirs), ours[0], resamplings))
    return rows


def write(path: Path, rows: list[dict[str, object]], columns: list[str]) -> None:
    """A CSV table; numbers to four decimals, NaN as an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: _cell(value) for key, value in row.items()})
    write_text(path, text.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4f}"
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", required=True, nargs="+", type=Path, help="files that retro.qa.answer wrote")
    parser.add_argument("--bootstrap", type=whole, default=10_000, help="resamplings of groups")
    parser.add_argument("--scores", required=True, type=Path, help="qa.csv to write")
    parser.add_argument("--differences", required=True, type=Path, help="qa-differences.csv to write")
    options = parser.parse_args()
    models = by_model([read(path) for path in options.answers])
    bounds = [f"{name}{end}" for name in SCORES for end in ("", "_low", "_high")]
    rows = [row_of(seeds, options.bootstrap) for seeds in models.values()]
    write(options.scores, rows, [*WHO, "seeds", "questions", *bounds, "recall@1", "recall@k"])
    gains = differences(models, options.bootstrap)
    write(options.differences, gains, [*WHO[:-1], "kind", *bounds])
    for row in rows:
        name = f"{row['model']}{', fine-tuned' if row['tuned'] else ''}, {row['retrieval']}"
        print(f"{name}: exact match {row['exact_match']:.1f} %", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
