"""Losses of a model mixed with a copier: losses.npy float32 [C, m] as those of the model, and lengths.npy uint8 [C, m].

The copier is trained on nothing. It takes the last tokens before a target, at most `LONGEST`, finds the longest suffix
of them that stands in a neighbour shown there, and says of each token how often it followed:

    p(v) = (1 − w_L) p_model(v) + w_L p_copy(v)

L is the length of the suffix, 0 where no token matches, and p_copy(v) the share of its occurrences in the neighbours
that v follows. The weights w_1 … w_8 are those that fit the valid split best (EM); w_0 is 0. What a retrieval model
gains beyond this mixture it does not gain by copying.

The copier reads what the model could have read: the neighbours of the chunk before the target's, and no token before
the window that scores it (`retro.evaluation.losses`). Padding equals nothing and follows nothing.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retro.base import stage
from retro.base.artifacts import Manifest, growing_array, read_manifest, write_manifest
from retro.base.log import bar
from retro.base.names import SPLITS, VALID
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.evaluation.bits_per_byte import bits_per_byte
from retro.evaluation.conditions import Condition
from retro.evaluation.losses import Windows, neighbours, plan
from retro.evaluation.shown import Shown

STAGE = "retro.evaluation.copying"
LONGEST = 8  # tokens of the longest suffix that is looked for
NOTHING, HIDDEN = -1, -2  # stand for no token, in the stream and in a neighbour; equal to none, and to each other
CELLS = 1 << 22  # pairs of a chunk and a neighbour's token held at a time
FEW = 50  # targets below which no weight is fitted
ROUNDS, CLOSE = 10_000, 1e-9  # EM ends when a weight moves less, or after so many rounds


def follow(
    tokens: np.ndarray, neighbours: np.ndarray, shown: np.ndarray, reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The longest suffix before each target that stands in its neighbours, and how often the target follows it there.

    `tokens` int [c, h + m]: the targets of each chunk after the h tokens before them, NOTHING where there is none.
    `neighbours` int [c, k, r] and `shown` bool, what there is to see. `reach` int [c, m]: how many of the tokens before
    a target count, at most `LONGEST`. Gives the suffix' length, uint8 [c, m], and the share of its occurrences that
    the target follows, float32 [c, m], 0 where the length is. Time c·(h + m)·k·r, memory a constant.
    """
    count, m = reach.shape
    lengths, shares = np.zeros((count, m), np.uint8), np.zeros((count, m), np.float32)
    step = max(1, CELLS // max(1, neighbours.shape[1] * neighbours.shape[2]))
    for low in range(0, count, step):
        here = slice(low, low + step)
        _follow(tokens[here], np.where(shown[here], neighbours[here], HIDDEN), reach[here], lengths[here], shares[here])
    return lengths, shares


def _follow(tokens: np.ndarray, there: np.ndarray, reach: np.ndarray, lengths: np.ndarray, shares: np.ndarray) -> None:
    """One block of `follow`, written into `lengths` and `shares`."""
    there, before = there.astype(np.int32), tokens.shape[1] - reach.shape[1]
    real = (there >= 0).astype(np.uint8)  # only a token follows
    run = np.zeros(there.shape, np.uint8)  # tokens before each place that agree with those before the target
    for at in range(tokens.shape[1]):
        token = tokens[:, at].astype(np.int32)[:, None, None]
        if (to := at - before) >= 0:
            agree = np.minimum(run, reach[:, to].astype(np.uint8)[:, None, None]) * real
            longest = agree.max(axis=(1, 2), initial=0)
            places = (agree == longest[:, None, None]) & (agree > 0)
            found = places.sum(axis=(1, 2))
            hits = (places & (there == token)).sum(axis=(1, 2))
            lengths[:, to] = np.where(tokens[:, at] >= 0, longest, 0)
            shares[:, to] = hits / np.maximum(found, 1)
        longer = np.minimum(run[..., :-1] + 1, LONGEST)
        run[..., 1:] = np.where(there[..., :-1] == token, longer, 0)
        run[..., :1] = 0


@dataclass(frozen=True)
class Copier:
    """What a copier finds in the neighbours of a split, block by block of its chunks."""

    batcher: Shown
    windows: Windows

    @classmethod
    def of(cls, losses: Manifest, dataset: Dataset, condition: Condition, ids: np.ndarray | None) -> "Copier":
        """Beside the model of some `losses`, under `condition`; `ids` of the neighbours if they are not the stored."""
        settings, split = losses.settings, losses.settings["split"]
        used = settings["neighbours_used"] if condition.k is None else condition.k
        retrieved = settings["retrieved_chunks"]
        batcher = Shown(dataset, split, condition.copied, used=used, retrieved_chunks=retrieved, ids=ids)
        m, length = dataset.chunk_length, settings["seq_length"]
        return cls(batcher, plan(len(batcher.rows), m, length, settings["stride"]))

    def blocks(self, what: str) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """All chunks of the split, some at a time: which, and `find` of them."""
        chunks, m = len(self.batcher.rows), self.batcher.store.length
        size = max(1, CELLS // max(1, self.batcher.used * self.batcher.retrieved * m))
        with bar(chunks, what, "chunk") as shown:
            for low in range(0, chunks, size):
                high = min(low + size, chunks)
                yield slice(low, high), *self.find(low, high)
                shown.update(high - low)

    def find(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """`follow` of the targets of chunks low … high of the split: uint8 and float32 [high − low, m]."""
        store, rows = self.batcher.store, self.batcher.rows
        m, chunks = store.length, np.arange(low, high)
        back = -(-LONGEST // m)  # chunks that the tokens before a target may lie in
        first = max(0, low - back)
        tokens, real = store.tokens(rows[first:high])
        stream = np.where(real, tokens, NOTHING).reshape(-1)
        stream = np.concatenate([np.full(LONGEST, NOTHING), stream])  # its token p of the block is at p + LONGEST
        at = (chunks - first)[:, None] * m + np.arange(LONGEST + m)
        places = chunks[:, None] * m + np.arange(m)
        read = self.windows.read_before(places)
        reach = np.clip(read, 0, LONGEST)
        reach[read - places % m < m] = 0  # the window begins after the chunk whose neighbours these would be
        batch = self.batcher.batch(np.stack([chunks - 1, chunks], axis=1))
        if batch.neighbours is None or batch.mask is None:
            return np.zeros(reach.shape, np.uint8), np.zeros(reach.shape, np.float32)
        return follow(stream[at], batch.neighbours[:, 0].numpy(), batch.mask[:, 0].numpy(), reach)


def fit(losses: np.ndarray, shares: np.ndarray) -> float:
    """The weight that makes targets likeliest, by EM: nats of the model and the copier's shares of each, float [n].

    At most n / (n + 1), so that a copier that was always right is not trusted wholly.
    """
    model, copy = np.exp(-np.asarray(losses, np.float64)), np.asarray(shares, np.float64)
    weight = 0.5
    for _ in range(ROUNDS):
        weight, before = step(weight, model, copy), weight
        if abs(weight - before) < CLOSE:
            break
    return min(weight, len(copy) / (len(copy) + 1))


def step(weight: float, model: np.ndarray, copy: np.ndarray) -> float:
    """One round of EM: the mean chance that a target came from the copier; probabilities float64 [n] of each."""
    copied = weight * copy
    return float(np.mean(copied / np.maximum((1 - weight) * model + copied, np.finfo(np.float64).tiny)))


def fit_lengths(losses: np.ndarray, lengths: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The weight of each length of match, float64 [LONGEST + 1], six digits; 0 for length 0.

    From the longest on, lengths with fewer than `FEW` targets are fitted together with the next shorter ones; all are 0
    where all together have fewer.
    """
    counts = np.bincount(lengths[np.isfinite(losses)].reshape(-1), minlength=LONGEST + 1)
    groups: list[list[int]] = [[]]
    for length in range(LONGEST, 0, -1):
        groups[-1].append(length)
        if counts[groups[-1]].sum() >= FEW:
            groups.append([])
    rest = groups.pop()
    weights = np.zeros(LONGEST + 1)
    if groups:
        groups[-1] += rest
    for group in groups:
        chosen = np.isfinite(losses) & np.isin(lengths, group)
        weights[group] = round(fit(losses[chosen], shares[chosen]), 6)
    return weights


def mix(losses: np.ndarray, lengths: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Nats of the mixture, float32 like the model's `losses`; `weights` [LONGEST + 1] by length of match.

    NaN stays NaN, and where the weight is 0 every bit stays.
    """
    weight = weights[lengths]
    with np.errstate(divide="ignore", invalid="ignore"):  # the logarithm of 0 is that of no chance; NaN stays
        copied = np.log(weight * shares.astype(np.float64))
        mixed = -np.logaddexp(np.log1p(-weight) - losses.astype(np.float64), copied)
    return np.where(weight > 0, mixed.astype(np.float32), losses)


def checked(losses: Manifest, fitted: Manifest, condition: Condition) -> None:
    """Raise `UserError` unless both are the losses of one model under what `condition` mixes, the second on valid.

    The first may be the same, of a kNN-LM alone: a copier beside it is fitted on what it gives valid.
    """
    for manifest in (losses, fitted):
        mode = manifest.settings["mode"]
        if mode != condition.model.name:
            raise UserError(
                f"{manifest.path}: losses under {mode!r}; wanted those under {condition.model.name!r}, which "
                f"{condition.name!r} mixes. Name them."
            )
    for key in ("run", "neighbours_used", "retrieved_chunks", "seq_length", "stride"):
        if losses.settings[key] != fitted.settings[key]:
            raise UserError(
                f"{fitted.path}: losses with {key} {fitted.settings[key]}, {losses.path} has {losses.settings[key]}. "
                f"Weights are fitted on losses of the same model, measured alike: run snakemake."
            )
    splits = (losses.settings["split"], fitted.settings["split"])
    same = losses.path == fitted.path and not condition.copy
    if splits[1] != SPLITS[VALID] or (splits[0] == splits[1] and not same):
        raise UserError(
            f"--losses of the {splits[0]} split, --fitted of the {splits[1]} split; wanted weights fitted on valid and "
            f"another split to score. Name the losses of valid with --fitted, of test with --losses."
        )


def fitted_weights(copier: Copier, fitted: Manifest) -> tuple[np.ndarray, list[int]]:
    """`fit_lengths` of the split that `copier` reads, and how many of its targets have each length."""
    losses = fitted.array("losses.npy")
    lengths, shares = np.zeros(losses.shape, np.uint8), np.zeros(losses.shape, np.float32)
    for here, *found in copier.blocks(f"matches of {fitted.settings['split']}"):
        lengths[here], shares[here] = found
    return fit_lengths(losses, lengths, shares), matched(losses, lengths)


def matched(losses: np.ndarray, lengths: np.ndarray) -> list[int]:
    """Targets of each length of match, from 0 to `LONGEST`."""
    return np.bincount(lengths[np.isfinite(losses)], minlength=LONGEST + 1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--losses", required=True, type=Path, help="manifest of the model's losses, to be mixed")
    parser.add_argument("--fitted", required=True, type=Path, help="the same on valid, which the weights are fitted on")
    parser.add_argument("--mode", required=True, type=Condition.parse, help="condition, e.g. none+k2+copy, on+copy")
    parser.add_argument(
        "--neighbours", nargs="*", default=[], type=Path, help="manifests of other neighbours: of the split, of valid"
    )
    parser.add_argument("--output", required=True, type=Path, help="manifest.json to write, arrays beside it")
    options = parser.parse_args()
    dataset, condition = Dataset.open(options.config), options.mode
    if not condition.copy:
        raise UserError(f"condition {condition.name!r}: mixes nothing. Add +copy, or measure it without this stage.")
    losses, fitted = read_manifest(options.losses, "losses"), read_manifest(options.fitted, "losses")
    checked(losses, fitted, condition)
    others = [*options.neighbours, None, None][:2]
    ids, valid = (neighbours(path, dataset, condition.copied) for path in others)
    copier = Copier.of(losses, dataset, condition, ids)
    weights, fitted_on = fitted_weights(Copier.of(fitted, dataset, condition, valid), fitted)
    given, split = losses.array("losses.npy"), losses.settings["split"]
    files = [options.output.parent / name for name in ("losses.npy", "lengths.npy")]
    what = f"{losses.settings['run']} {split} {condition.name}"
    nats = 0.0
    with (
        growing_array(files[0], given.shape, np.float32) as mixed,
        growing_array(files[1], given.shape, np.uint8) as at,
    ):
        for here, lengths, shares in copier.blocks(what):
            at[here], mixed[here] = lengths, mix(given[here], lengths, shares, weights)
            nats += float(np.nansum(mixed[here], dtype=np.float64))
        counts = {
            **losses.counts,
            "nats": nats,
            "bits_per_byte": bits_per_byte(nats, losses.counts["bytes"]),
            "weights": weights[1:].tolist(),
            "matched": matched(given, at),
            "fitted_on": fitted_on,
        }
    write_manifest(
        options.output,
        kind="losses",
        stage=STAGE,
        files=files,
        inputs=[options.config, options.losses, options.fitted, *options.neighbours],
        settings={**losses.settings, "mode": condition.name, "neighbours_used": copier.batcher.used},
        counts=counts,
        seed=dataset.facts["seed"],
    )
    told = ", ".join(f"{weight:.2f}" for weight in weights[1:])
    print(f"{what}: {counts['bits_per_byte']:.4f} bits per byte, weights {told} → {files[0]}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
