"""Answers to scores: exact match, F1, retrieval's recall, and paired differences, with 95 % intervals over groups."""

import argparse
import csv
import io
import json
import sys
from pathlib import Path

import numpy as np

from retro import errors
from retro.artifacts import write_text
from retro.errors import UserError
from retro.evaluation.bootstrap import by_unit, resampled_sums
from retro.qa.metrics import exact_match, f1

STAGE = "retro.qa.score"
SCORES = ("exact_match", "f1")
SEED = 0


def read(path: Path) -> list[dict]:
    """Lines that `retro.qa.answer` wrote."""
    with open(path, encoding="utf-8") as file:
        found = [json.loads(line) for line in file]  # str.splitlines would also cut at separators inside a text
    if not found:
        raise UserError(f"{path}: no answers. Delete it and run snakemake qa.")
    return found


def scored(lines: list[dict]) -> np.ndarray:
    """Exact match and F1 of each answer: float64 [Q, 2]."""
    return np.array([[score(x["prediction"], x["answers"]) for score in (exact_match, f1)] for x in lines])


def intervals(values: np.ndarray, groups: list[str], resamplings: int) -> list[tuple[float, float, float]]:
    """Mean of each column of `values` [Q, C] and its interval: groups drawn with replacement; NaN for one group."""
    units = np.unique(groups, return_inverse=True)[1]
    sums = by_unit(np.concatenate([values, np.ones((len(values), 1))], axis=1), units)  # (G, C + 1)
    if len(sums) < 2:
        return [(float(mean), float("nan"), float("nan")) for mean in values.mean(0)]
    drawn = resampled_sums(sums, resamplings, SEED)  # (R, C + 1)
    ends = np.quantile(drawn[:, :-1] / drawn[:, -1:], [0.025, 0.975], axis=0)  # (2, C)
    return [tuple(map(float, each)) for each in zip(values.mean(0), *ends, strict=True)]


def row_of(lines: list[dict], resamplings: int) -> dict[str, object]:
    """A row of qa.csv, in percent. recall@1, recall@k: an answer in the first, in one of the neighbours shown."""
    first = lines[0]
    row = {key: first[key] for key in ("run", "retrieval", "split")} | {"questions": len(lines)}
    groups = [line["group"] for line in lines]
    for name, each in zip(SCORES, intervals(100 * scored(lines), groups, resamplings), strict=True):
        row |= {name: each[0], f"{name}_low": each[1], f"{name}_high": each[2]}
    ranks = [line["rank"] for line in lines]
    if None not in ranks:
        row["recall@1"] = 100 * float(np.mean([rank == 0 for rank in ranks]))
        row["recall@k"] = 100 * float(np.mean([rank >= 0 for rank in ranks]))
    return row


def differences(all_lines: list[list[dict]], resamplings: int) -> list[dict[str, object]]:
    """What fine-tuning adds and what retrieval adds, in points of exact match and F1, question by question."""
    known = {(lines[0]["run"], lines[0]["retrieval"]): lines for lines in all_lines}
    pairs = [("fine-tuning", key, (key[0].removesuffix("-qa"), key[1])) for key in known if key[0].endswith("-qa")]
    pairs += [("retrieval", key, (key[0], "off")) for key in known if key[1] == "on"]
    rows = []
    for kind, key, other in pairs:
        if other not in known:
            continue
        ours, theirs = known[key], known[other]
        if [line["id"] for line in ours] != [line["id"] for line in theirs]:
            raise UserError(f"{key} and {other} answered different questions. Run snakemake qa again.")
        row = {"run": key[0], "retrieval": key[1], "kind": kind}
        found = intervals(100 * (scored(ours) - scored(theirs)), [line["group"] for line in ours], resamplings)
        for name, each in zip(SCORES, found, strict=True):
            row |= {name: each[0], f"{name}_low": each[1], f"{name}_high": each[2]}
        rows.append(row)
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
    parser.add_argument("--bootstrap", type=int, default=10_000, help="resamplings of groups")
    parser.add_argument("--scores", required=True, type=Path, help="qa.csv to write")
    parser.add_argument("--differences", required=True, type=Path, help="qa-differences.csv to write")
    options = parser.parse_args()
    all_lines = [read(path) for path in options.answers]
    bounds = [f"{name}{end}" for name in SCORES for end in ("", "_low", "_high")]
    rows = [row_of(lines, options.bootstrap) for lines in all_lines]
    write(options.scores, rows, ["run", "retrieval", "split", "questions", *bounds, "recall@1", "recall@k"])
    gains = differences(all_lines, options.bootstrap)
    write(options.differences, gains, ["run", "retrieval", "kind", *bounds])
    for row in rows:
        print(f"{row['run']}, {row['retrieval']}: exact match {row['exact_match']:.1f} %", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
