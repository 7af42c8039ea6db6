"""The rows of summary.csv, comparison.csv and sections.csv, from each document's nats under each run and
mode.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from retro.base.names import ALL, unseeded
from retro.evaluation.bits_per_byte import Difference, Documents, bits_per_byte, compare, perplexity
from retro.evaluation.conditions import NONE, OFF, ordered

SUMMARY = (
    "run", "model", "seed", "retrieval", "split", "source", "documents", "tokens", "bytes", "bits_per_byte",
    "perplexity",
)  # fmt: skip
COMPARISON = (
    "run", "twin", "seed", "retrieval", "split", "source", "documents", "bits_per_byte", "twin_bits_per_byte",
    "difference_percent", "low", "high", "documents_better", "seeds", "seeds_min", "seeds_max", "off_percent",
    "off_low", "off_high", "unit", "units",
)  # fmt: skip
SECTIONS = (
    "run", "model", "seed", "retrieval", "split", "source", "section", "documents", "bytes", "bits_per_byte",
    "difference_percent", "low", "high", "unit", "units",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One split, measured. `names` of the sources; `sections` of each document (None: its title names none).

    `nats`: (run, retrieval) → nats of each document, float64 [D].
    """

    split: str
    names: list[str]
    documents: Documents
    sections: list[str | None]
    nats: dict[tuple[str, str], np.ndarray]
    units: np.ndarray | None = None  # [D], what is drawn in the bootstrap: None is each document by itself

    def compare(
        self, ours: np.ndarray, theirs: np.ndarray, chosen: np.ndarray, resamplings: int, seed: int
    ) -> Difference:
        """`retro.evaluation.bits_per_byte.compare` of the chosen documents, bool [D], of two losses [D, S]."""
        units = None if self.units is None else self.units[chosen]
        return compare(ours[chosen], theirs[chosen], resamplings, seed, units)

    @property
    def retrievals(self) -> list[str]:
        """The conditions measured, the usual ones first, the others by name."""
        return ordered(retrieval for _, retrieval in self.nats)


@dataclass(frozen=True)
class Entry:
    """A run in a mode of retrieval, or all seeds of one: nats [D, S], and those of its twin and of the same
    weights with retrieval off, or None.
    """

    run: str
    model: str
    seed: int | str
    retrieval: str
    nats: np.ndarray
    twin: str | None = None
    twin_nats: np.ndarray | None = field(default=None, repr=False)
    off_nats: np.ndarray | None = field(default=None, repr=False)


def entries(measured: Measured, runs: dict[str, dict], pooled: bool) -> Iterator[Entry]:
    """Each measured run and mode, in the order of `runs`; or each pooled over its seeds.

    `runs`: name → its name, architecture, twin (or None) and seed.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for name, run in runs.items():
        for retrieval in measured.retrievals:
            if (name, retrieval) in measured.nats:
                groups.setdefault((unseeded(name) if pooled else name, retrieval), []).append(run)
    for (name, retrieval), members in groups.items():
        # A GPT that reads neighbours is compared with itself, which then reads none.
        twins = [(member["twin"] or member["name"], NONE) for member in members]
        known = retrieval != NONE and all(twin in measured.nats for twin in twins)
        off = [(member["name"], OFF) for member in members]
        switched = retrieval != OFF and all(key in measured.nats for key in off)
        twin: str | None = twins[0][0] if known else None
        if twin is not None and pooled:
            twin = unseeded(twin)
        yield Entry(
            name,
            members[0]["architecture"],
            ALL if pooled else members[0]["seed"],
            retrieval,
            np.stack([measured.nats[member["name"], retrieval] for member in members], axis=1),
            twin,
            np.stack([measured.nats[key] for key in twins], axis=1) if known else None,
            np.stack([measured.nats[key] for key in off], axis=1) if switched else None,
        )


def summary_rows(measured: Measured, runs: dict[str, dict]) -> Iterator[dict]:
    """Bits per byte and perplexity of each run and mode: all sources, then each."""
    for entry in entries(measured, runs, pooled=False):
        for source, chosen in _slices(measured):
            tokens = int(measured.documents.tokens[chosen].sum())
            nats = float(entry.nats[chosen].sum())
            yield {
                **_names(entry, measured.split, source),
                "model": entry.model,
                **_sizes(measured, chosen),
                "tokens": tokens,
                "bits_per_byte": _bpb(measured, chosen, entry.nats),
                "perplexity": perplexity(nats, tokens),
            }


def comparison_rows(measured: Measured, runs: dict[str, dict], resamplings: int, seed: int) -> Iterator[dict]:
    """Each retro run and mode against its twin, by source; then the same over all seeds of a run."""
    for pooled in (False, True):
        for entry in entries(measured, runs, pooled):
            if entry.twin_nats is None:
                continue
            for source, chosen in _slices(measured):
                ours, theirs = entry.nats[chosen], entry.twin_nats[chosen]
                difference = measured.compare(entry.nats, entry.twin_nats, chosen, resamplings, seed)
                by_seed = 100 * (ours.sum(0) / theirs.sum(0) - 1)
                off = {}
                if entry.off_nats is not None:  # the same weights without retrieval: what the neighbours alone do
                    found = measured.compare(entry.nats, entry.off_nats, chosen, resamplings, seed)
                    off = {"off_percent": found.percent, "off_low": found.low, "off_high": found.high}
                yield {
                    **_names(entry, measured.split, source),
                    "twin": entry.twin,
                    "documents": int(chosen.sum()),
                    "bits_per_byte": _bpb(measured, chosen, entry.nats),
                    "twin_bits_per_byte": _bpb(measured, chosen, entry.twin_nats),
                    "difference_percent": difference.percent,
                    "low": difference.low,
                    "high": difference.high,
                    "documents_better": difference.better,
                    "seeds": len(by_seed),
                    "seeds_min": by_seed.min(),
                    "seeds_max": by_seed.max(),
                    **off,
                    **_drawn(measured, difference),
                }


def section_rows(measured: Measured, runs: dict[str, dict], resamplings: int, seed: int) -> Iterator[dict]:
    """Bits per byte of each section of each source, and the difference from the twin; pooled rows last.

    Nothing for a source whose titles name sections for less than half of its documents: a colon alone makes
    none.
    """
    sections = np.array([name or "" for name in measured.sections], dtype=object)
    for pooled in (False, True):
        for entry in entries(measured, runs, pooled):
            for number, source in enumerate(measured.names):
                inside = measured.documents.source == number
                named = inside & (sections != "")
                if not inside.any() or named.sum() * 2 < inside.sum():
                    continue
                for name in sorted(set(sections[named])):
                    chosen = named & (sections == name)
                    row = {
                        **_names(entry, measured.split, source),
                        "model": entry.model,
                        "section": name,
                        **_sizes(measured, chosen),
                        "bits_per_byte": _bpb(measured, chosen, entry.nats),
                    }
                    if entry.twin_nats is not None:
                        found = measured.compare(entry.nats, entry.twin_nats, chosen, resamplings, seed)
                        row |= {"difference_percent": found.percent, "low": found.low, "high": found.high}
                        row |= _drawn(measured, found)
                    yield row


def as_csv(columns: tuple[str, ...], rows: list[dict]) -> str:
    """Rows as CSV text; floats rounded to six digits, nothing where there is no value."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return out.getvalue()


def _slices(measured: Measured) -> Iterator[tuple[str, np.ndarray]]:
    yield ALL, np.ones(len(measured.documents), bool)
    for number, source in enumerate(measured.names):
        chosen = measured.documents.source == number
        if chosen.any():
            yield source, chosen


def _drawn(measured: Measured, found: Difference) -> dict:
    """What an interval is drawn from, and how many of these there are."""
    return {"unit": "document" if measured.units is None else "group", "units": found.units}


def _names(entry: Entry, split: str, source: str) -> dict:
    return {
        "run": entry.run,
        "seed": entry.seed,
        "retrieval": entry.retrieval,
        "split": split,
        "source": source,
    }


def _sizes(measured: Measured, chosen: np.ndarray) -> dict:
    return {"documents": int(chosen.sum()), "bytes": int(measured.documents.bytes[chosen].sum())}


def _bpb(measured: Measured, chosen: np.ndarray, nats: np.ndarray) -> float:
    """Mean over seeds of the bits per byte of the chosen documents."""
    return float(bits_per_byte(nats[chosen].sum() / nats.shape[1], measured.documents.bytes[chosen].sum()))


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(float(value), 6)
    return value
