"""leakage.csv: bits per byte of chunks by how much of them overlaps with other text (RETRO §2.6).

`up to` rows hold the chunks of ratio r ≤ alpha, so that alpha 1 is all of them; `bucket` rows those of ratio above
`over` and up to alpha (Norlund et al. 2023). `overlap` says with what: the training data, or what is shown. A run that
is shown more or fewer than the first RETRO run stands under `shown-<neighbours>x<chunks>`, and its twin there, too.

Where documents have dates, `age` rows hold the chunks by the age of what was read while they were predicted: days from
the dates of the neighbours shown, of the chunk before, to their own, on average; above `over` and up to `alpha`, empty
where there is no bound. A chunk that begins a document has read nothing for it.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from retro.base import stage
from retro.base.artifacts import Manifest, read_manifest, write_text
from retro.base.names import ALL, UNDATED, dates_of
from retro.base.stage import UserError, given
from retro.dataset.dataset import Dataset
from retro.evaluation import tables
from retro.evaluation.bits_per_byte import ENOUGH, Documents, bits_per_byte, by_unit, compare, resampled_sums
from retro.evaluation.conditions import ON
from retro.evaluation.leakage import ratio, views
from retro.evaluation.settings import EvaluationSettings
from retro.evaluation.summarise import measure

STAGE = "retro.evaluation.filtered"
ALPHAS = tuple(eighth / 8 for eighth in range(1, 9))
AGES = (0.0, 30.0, 365.0, 1096.0, 3653.0)  # days
COLUMNS = (
    "run", "twin", "model", "seed", "retrieval", "split", "overlap", "kind", "over", "alpha", "chunks", "bytes",
    "bits_per_byte", "bpb_low", "bpb_high", "difference_percent", "low", "high", "off_percent", "off_low", "off_high",
)  # fmt: skip


def slices(ratios: np.ndarray) -> Iterator[tuple[str, float | None, float, np.ndarray]]:
    """(kind, over, alpha, bool [C]) of each row: cumulative, then buckets."""
    for alpha in ALPHAS:
        yield "up to", None, alpha, ratios <= alpha
    for over, alpha in zip((-1.0, *ALPHAS[:-1]), ALPHAS, strict=True):
        yield "bucket", max(over, 0.0), alpha, (ratios > over) & (ratios <= alpha)


def ages(dataset: Dataset, split: str, count: int) -> np.ndarray | None:
    """Age in days of the first `count` neighbours that each chunk's predecessor was shown, float64 [C]: NaN where none
    of them, or not the chunk, has a date, and where a document begins. None where no chunk has one.
    """
    dates = np.concatenate([dates_of(table) for table in dataset.store.tables]).astype(np.float64)
    dates[dates == UNDATED] = np.nan
    rows = dataset.rows(split)
    if np.isnan(dates[rows]).all():
        return None
    near = dataset.neighbour_rows(np.asarray(dataset.neighbour_ids(split)[:, :count]))
    seen = np.where(near >= 0, dates[np.maximum(near, 0)], np.nan)
    known = (~np.isnan(seen)).sum(axis=1)
    mean = np.where(known > 0, np.nansum(seen, axis=1) / np.maximum(known, 1), np.nan)
    goes_on = dataset.store.following(rows[:-1]) == rows[1:]
    return np.append(np.nan, np.where(goes_on, dates[rows[1:]] - mean[:-1], np.nan)) / 86_400


def aged(days: np.ndarray | None) -> Iterator[tuple[str, float | None, float | None, np.ndarray]]:
    """As `slices`, by age."""
    if days is None:
        return
    for over, alpha in pairwise((None, *AGES, None)):
        low, high = -np.inf if over is None else over, np.inf if alpha is None else alpha
        yield "age", over, alpha, (days > low) & (days <= high)


def kept(documents: Documents, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Sums over the chosen chunks of each document, [D], of `values` [C]."""
    return np.add.reduceat(np.where(chosen, values, 0), documents.first)


def interval(
    nats: np.ndarray, size: np.ndarray, units: np.ndarray | None, resamplings: int, seed: int
) -> tuple[float, float]:
    """95 % interval of the bits per byte of documents, nats [D, S] and bytes [D], drawn by unit."""
    each = by_unit(np.stack([nats.mean(1), size], 1), units)
    if (each[:, 1] > 0).sum() < ENOUGH:
        return float("nan"), float("nan")
    sums = resampled_sums(each, resamplings, seed)
    real = sums[sums[:, 1] > 0]
    if len(np.unique(real)) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(bits_per_byte(real[:, 0], real[:, 1]), [0.025, 0.975])
    return float(low), float(high)


def readers(losses: list[Manifest], runs: dict[str, dict], overlap: Manifest) -> dict[str, dict[str, dict]]:
    """The runs that each overlap is of, by the name of its array: all, then those that are shown just that text.

    Raises `UserError` for a run that is shown what the overlap was not measured with.
    """
    seen = {view: name for name, view in views(overlap.settings).items()}
    found: dict[str, dict[str, dict]] = {"training": runs} | {name: {} for name in seen.values()}
    where: dict[str, list[str]] = {}  # the overlaps of each RETRO run and of each twin
    for settings in (manifest.settings for manifest in losses if manifest.settings["mode"] == ON):
        view = (settings["neighbours_used"], settings["retrieved_chunks"])
        if view not in seen:
            raise UserError(
                f"{overlap.path}: overlap was measured with (neighbours, chunks of each) {sorted(seen)}, but "
                f"{settings['run']} was shown {view}. Run snakemake: it measures what the config shows."
            )
        for name in (settings["run"], runs[settings["run"]]["twin"]):
            where.setdefault(name, []).append(seen[view])
    for name, run in runs.items():
        for overlapping in dict.fromkeys(where.get(name, ["shown"])):
            found[overlapping][name] = run
    return found


def rows(
    dataset: Dataset,
    split: str,
    losses: list[Manifest],
    runs: dict[str, dict],
    overlap: Manifest,
    settings: EvaluationSettings,
) -> Iterator[dict[str, Any]]:
    """The rows of one split."""
    measured = measure(dataset, split, losses, settings.bootstrap_unit)
    records = dataset.store.chunks(dataset.rows(split))
    documents, units, draw = measured.documents, measured.units, (settings.bootstrap, dataset.facts["seed"])
    chunk: dict[tuple[str, str], np.ndarray] = {
        (m.settings["run"], m.settings["mode"]): np.asarray(np.nansum(m.array("losses.npy"), 1, np.float64))
        for m in losses
    }
    for name, read in readers(losses, runs, overlap).items():
        ratios = ratio(overlap.array(f"{name}.npy"), records["length"])
        shown = views(overlap.settings).get(name)  # none with the training data
        days = ages(dataset, split, shown[0]) if shown else None
        for kind, over, alpha, chosen in chain(slices(ratios), aged(days)):
            if not chosen.any():
                continue
            size = kept(documents, records["bytes"].astype(np.int64), chosen)
            here = replace(measured, nats={key: kept(documents, nats, chosen) for key, nats in chunk.items()})
            for entry in tables.entries(here, read, pooled=True):
                low, high = interval(entry.nats, size, units, *draw)
                row = {
                    "run": entry.run, "twin": entry.twin or "", "model": entry.model, "seed": ALL,
                    "retrieval": entry.retrieval, "split": split, "overlap": name, "kind": kind, "over": over,
                    "alpha": alpha, "chunks": int(chosen.sum()), "bytes": int(size.sum()),
                    "bits_per_byte": float(bits_per_byte(entry.nats.sum() / entry.nats.shape[1], size.sum())),
                    "bpb_low": low, "bpb_high": high,
                }  # fmt: skip
                for theirs, keys in (
                    (entry.twin_nats, ("difference_percent", "low", "high")),
                    (entry.off_nats, ("off_percent", "off_low", "off_high")),
                ):
                    if theirs is not None and theirs.sum() > 0:
                        inside = size > 0
                        part = None if units is None else units[inside]
                        found = compare(entry.nats[inside], theirs[inside], *draw, part)
                        row |= dict(zip(keys, (found.percent, found.low, found.high), strict=True))
                yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, nargs="+", type=Path, help="manifests of kind losses")
    parser.add_argument("--overlap", required=True, nargs="+", type=Path, help="manifests of kind overlap")
    parser.add_argument("--runs", required=True, type=given, help="each run's twin and seed, as JSON")
    parser.add_argument("--settings", required=True, type=given, help="the evaluate section, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="leakage.csv to write")
    options = parser.parse_args()
    dataset, settings = Dataset.open(options.config), EvaluationSettings(**options.settings)
    losses = [read_manifest(path, "losses") for path in options.losses]
    runs = {name: {"name": name, **facts} for name, facts in options.runs.items()}
    for manifest in losses:
        runs[manifest.settings["run"]]["architecture"] = manifest.settings["architecture"]
    found: list[dict[str, Any]] = []
    for path in options.overlap:
        overlap = read_manifest(path, "overlap")
        split = overlap.settings["split"]
        here = [manifest for manifest in losses if manifest.settings["split"] == split]
        found += rows(dataset, split, here, runs, overlap, settings)
    write_text(options.output, tables.as_csv(COLUMNS, found))
    print(f"{len(found)} rows → {options.output}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
