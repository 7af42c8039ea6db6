"""Losses of a kNN-LM (Khandelwal et al. 2020): a GPT mixed with the words that followed states like its own.

The memory has an entry for each token of the database: the state of the GPT before it, read in the windows of
evaluation, and the token itself. For each target the k nearest states are looked up, by squared Euclidean distance, and
vote for their tokens:

    p_kNN(v) ∝ Σ exp(−distance / T) over the nearest entries whose token is v
    p(v) = (1 − λ) p_model(v) + λ p_kNN(v)

λ and T are those that fit the valid split best. An entry counts for a target only if its chunk could be a neighbour of
the target's: never of the same document, group or whatever else the dataset excludes. Nothing is trained.

A state is what enters the feed-forward layer of the last block, normalised.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch

from retro.base import stage
from retro.base.artifacts import Manifest, growing_array, read_manifest, write_manifest
from retro.base.log import bar
from retro.base.machine import best_device
from retro.base.names import DUPLICATES
from retro.base.stage import UserError, whole
from retro.dataset.dataset import Dataset
from retro.evaluation.bits_per_byte import bits_per_byte
from retro.evaluation.conditions import Condition
from retro.evaluation.copying import FEW, checked, fit, mix
from retro.evaluation.losses import plan
from retro.model.language_model import LanguageModel
from retro.retrieval import factory
from retro.retrieval.exclusion import Barred, Exclusion, rules_of
from retro.retrieval.settings import IndexSettings
from retro.training.batches import Batcher
from retro.training.weights import load_model

STAGE = "retro.evaluation.knn_lm"
NEAREST = 1024  # entries looked up for a target, as in the paper
SPARE = 64  # more of them than wanted, so that no rounding of the index decides which are nearest
TEMPERATURES = 2.0 ** np.arange(-6, 15.5, 0.5)  # tried
FITTED = 1 << 12  # targets of valid that λ and T are fitted on, at most
EXACT = 2**40  # multiply-adds of an exact search, above which lists are searched: a minute or two
CELLS = 1 << 20  # pairs of a target and an entry held at a time


def read_states(model: LanguageModel, batcher: Batcher, settings: dict) -> np.ndarray:
    """The state before each token of a split, float32 [C, m, d], in windows as `settings` of losses have them."""
    m, length = batcher.store.length, settings["seq_length"]
    windows = plan(len(batcher.rows), m, length, settings["stride"])
    device, seen = next(model.parameters()).device, []
    states = np.empty((windows.chunks * m, model.settings.width), np.float32)
    layer = model.decoder.layers[-1].get_submodule("mlp")
    hook = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with bar(len(windows) * length, "states", "tok") as shown, torch.inference_mode():
        for low in range(0, len(windows), settings["batch_size"]):
            numbers = np.arange(low, min(low + settings["batch_size"], len(windows)))
            batch = batcher.batch(windows.positions(numbers)).to(device)
            model(batch.tokens, targets=torch.full_like(batch.targets, -1))
            windows.place(numbers, seen.pop().float().cpu().numpy(), states)
            shown.update(len(numbers) * length)
    hook.remove()
    return states.reshape(windows.chunks, m, states.shape[1])


def kind_of_index(states: int, targets: int, width: int) -> str:
    """Flat, which finds all, while that is affordable; else lists, as `retro.retrieval.factory` chooses them."""
    exact = states * targets * width <= EXACT
    return "Flat" if exact else factory.choose(states, factory.AFFORDABLE, width)[0]


@dataclass(frozen=True)
class Memory:
    """States float32 [n, d], the token after each int64 [n], and the database chunk that it is of, int64 [n]."""

    states: np.ndarray
    tokens: np.ndarray
    chunks: np.ndarray
    index: faiss.Index

    @classmethod
    def of(cls, states: np.ndarray, tokens: np.ndarray, chunks: np.ndarray, kind: str, seed: int) -> "Memory":
        """With an index of a `kind` that faiss knows, its lists trained on a seeded sample."""
        index = faiss.index_factory(states.shape[1], kind, faiss.METRIC_L2)
        if (lists := faiss.try_extract_index_ivf(index)) is not None:
            some = np.random.default_rng(seed).permutation(len(states))[: factory.POINTS * lists.nlist]
            index.train(states[np.sort(some)])
        index.add(states)
        factory.prepare(index, IndexSettings())
        return cls(states, tokens, chunks, index)

    def nearest(self, queries: np.ndarray, k: int, barred: Barred) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest entries that are not `barred`: int64 [q, k], and squared distances float32 [q, k].

        Nearest first, equals in order; −1 and ∞ where there are no more.
        """
        found, distances = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf, np.float32)
        left, most = np.arange(len(queries)), self.index.ntotal
        fetch = min(k + SPARE, most)
        while len(left):
            step, short = max(1, CELLS // fetch), []
            for low in range(0, len(left), step):
                here = left[low : low + step]
                ids = self.index.search(queries[here], fetch)[1]
                ended = (ids < 0).any(1) | (fetch == most)
                ids[barred[here].among(np.where(ids < 0, -1, self.chunks[ids]))] = -1
                enough = ((ids >= 0).sum(1) >= min(k + SPARE // 2, most)) | ended
                found[here], distances[here] = self._closest(queries[here], ids, k)
                short.append(here[~enough])
            left, fetch = np.concatenate(short), min(2 * fetch, most)
        return found, distances

    def _closest(self, queries: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query's candidates `ids` [q, n], −1 for none, by their exact distances."""
        distances = np.full(ids.shape, np.inf, np.float32)
        for row in range(len(ids)):
            real = ids[row] >= 0
            apart = self.states[ids[row][real]] - queries[row]
            distances[row, real] = np.einsum("nd,nd->n", apart, apart)
        order = np.lexsort((ids, distances), axis=1)[:, :k]
        ids, distances = np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)
        wider = ((0, 0), (0, k - ids.shape[1]))
        return np.pad(ids, wider, constant_values=-1), np.pad(distances, wider, constant_values=np.inf)


def shares(distances: np.ndarray, hits: np.ndarray, temperature: float) -> np.ndarray:
    """p_kNN of targets, float32 [q]: `distances` [q, k] of the entries looked up, `hits` [q, k] have the target."""
    nearest = distances[:, :1]
    weights = np.exp((np.where(np.isfinite(nearest), nearest, 0) - distances) / np.float32(temperature))
    return (weights * hits).sum(1) / np.maximum(weights.sum(1), np.finfo(np.float32).tiny)


def best(losses: np.ndarray, distances: np.ndarray, hits: np.ndarray) -> tuple[float, float]:
    """λ and T under which targets are likeliest, by EM and of a grid; λ is 0 where they are fewer than `FEW`.

    `losses` float32 [q] are the model's, `distances` and `hits` [q, k] of what was looked up.
    """
    if len(losses) < FEW:
        return 0.0, 1.0
    found = []
    for temperature in TEMPERATURES.tolist():
        voted = shares(distances, hits, temperature)
        weight = round(fit(losses, voted), 6)
        found.append((float(blend(losses, voted, weight).sum(dtype=np.float64)), weight, temperature))
    return min(found)[1:]


def blend(losses: np.ndarray, voted: np.ndarray, weight: float) -> np.ndarray:
    """Nats of the mixture, float32 like the model's `losses`; with weight 0 they are the model's, bit for bit."""
    return mix(losses, np.isfinite(losses).astype(np.uint8), voted, np.array([0, weight]))


def exclusion(dataset: Dataset) -> Exclusion:
    """What the dataset excludes as neighbours."""
    folder, facts = dataset.folder, dataset.facts
    chunks = [folder / "chunks" / name / "manifest.json" for name in dataset.sources]
    clusters = facts.get("duplicates", {}).get("action") == "exclude"
    duplicates = folder / DUPLICATES / "manifest.json" if clusters else None
    return Exclusion(rules_of(facts["neighbours"]["exclude"]), chunks, dataset.database, duplicates)


@dataclass(frozen=True)
class Targets:
    """The tokens of a split: their chunks' global rows, the states before them, themselves, and the model's nats."""

    rows: np.ndarray
    states: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray

    @classmethod
    def of(cls, model: LanguageModel, dataset: Dataset, losses: Manifest) -> "Targets":
        """Of the split that some losses of the model are of."""
        rows = dataset.rows(losses.settings["split"])
        tokens, real = dataset.store.tokens(rows)
        states = read_states(model, unread(dataset, losses.settings["split"]), losses.settings)
        return cls(np.repeat(rows, real.sum(1)), states[real], tokens[real], losses.array("losses.npy")[real])

    def __getitem__(self, which: np.ndarray) -> "Targets":
        return Targets(self.rows[which], self.states[which], self.tokens[which], self.losses[which])


def unread(dataset: Dataset, split: str) -> Batcher:
    """Batches of a split, or of the `database`, without neighbours."""
    return Batcher(dataset, split, neighbours_used=0, retrieved_chunks=1, ids="none")


@dataclass(frozen=True)
class Reader:
    """What looks up targets: the memory, how many entries, and what is excluded for whom."""

    memory: Memory
    k: int
    exclusion: Exclusion

    def look_up(self, targets: Targets, what: str) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Targets some at a time: which, how far what was looked up is, and what of it has the target, both [q, k]."""
        step = max(1, CELLS // self.k)
        with bar(len(targets.rows), what, "tok") as shown:
            for low in range(0, len(targets.rows), step):
                here = slice(low, min(low + step, len(targets.rows)))
                barred = self.exclusion.of(targets.rows[here])
                ids, distances = self.memory.nearest(targets.states[here], self.k, barred)
                yield here, distances, (self.memory.tokens[ids] == targets.tokens[here][:, None]) & (ids >= 0)
                shown.update(here.stop - here.start)


def fit_both(reader: Reader, targets: Targets) -> tuple[float, float]:
    """`best` of some targets."""
    distances = np.empty((len(targets.rows), reader.k), np.float32)
    hits = np.empty(distances.shape, bool)
    for here, *found in reader.look_up(targets, "states of valid"):
        distances[here], hits[here] = found
    return best(targets.losses, distances, hits)


def check_memory(chunks: int, length: int, width: int, memory: int) -> None:
    """Refuse a database of `chunks` of `length` tokens whose states, of `width`, take more than `memory`, in MB."""
    needed = -(-chunks * length * width * 8 // 1_000_000)  # float32, once in the memory and once in the index
    if needed > memory:
        raise UserError(
            f"kNN-LM: the states of {chunks:,} chunks of {length} tokens take up to {needed:,} MB of memory, the job "
            f"has {memory:,}. Give it more (snakemake --set-resources knn:mem_mb={needed}), or leave knn out of "
            f"experiments.baselines."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--model", required=True, type=Path, help="model.json of the GPT")
    parser.add_argument(
        "--losses", required=True, type=Path, help="manifest of its losses, to be mixed; of test or valid"
    )
    parser.add_argument("--fitted", required=True, type=Path, help="the same on valid, which λ and T are fitted on")
    parser.add_argument("--mode", required=True, type=Condition.parse, help="condition: none+knn, none+k64+knn")
    parser.add_argument("--memory", type=whole, help="MB that the job may use")
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
    parser.add_argument("--output", required=True, type=Path, help="manifest.json to write, losses.npy beside it")
    options = parser.parse_args()
    dataset, condition = Dataset.open(options.config), options.mode
    if not condition.knn or condition.copy:
        raise UserError(f"condition {condition.name!r}: looks up no states. Ask for none+knn.")
    losses, fitted = read_manifest(options.losses, "losses"), read_manifest(options.fitted, "losses")
    checked(losses, fitted, condition)
    model, run = load_model(options.model, dataset, best_device())
    if run.name != losses.settings["run"]:
        raise UserError(f"{options.losses}: losses of {losses.settings['run']}, not of {run.name}. Name that model's.")
    if not len(dataset.database):
        raise UserError(
            f"{dataset.folder / 'database'}: is empty, so there are no states. Set database: true for a source."
        )
    if options.memory is not None:
        check_memory(len(dataset.database), dataset.chunk_length, run.model.width, options.memory)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    tokens, real = dataset.store.tokens(dataset.database)
    targets = Targets.of(model, dataset, losses)
    kind = kind_of_index(int(real.sum()), len(targets.rows), run.model.width)
    states = read_states(model, unread(dataset, "database"), losses.settings)[real]
    memory = Memory.of(states, tokens[real], np.nonzero(real)[0], kind, dataset.facts["seed"])
    if "filter" in dataset.facts["neighbours"]:
        print("kNN-LM: dataset.neighbours.filter holds for neighbours; states vote unfiltered", file=sys.stderr)
    reader = Reader(memory, condition.k or NEAREST, exclusion(dataset))
    some = Targets.of(model, dataset, fitted)
    some = some[np.linspace(0, len(some.rows) - 1, min(len(some.rows), FITTED)).astype(np.int64)]
    weight, temperature = fit_both(reader, some)
    path, split = options.output.parent / "losses.npy", losses.settings["split"]
    what, given = f"{run.name} {split} {condition.name}", losses.array("losses.npy")
    voted = np.zeros(len(targets.rows), np.float32)
    for here, distances, hits in reader.look_up(targets, what):
        voted[here] = shares(distances, hits, temperature)
    with growing_array(path, given.shape, np.float32) as mixed:
        mixed[:] = given
        mixed[np.isfinite(given)] = blend(targets.losses, voted, weight)
        nats = float(np.nansum(mixed, dtype=np.float64))
    counts = {
        **losses.counts,
        "nats": nats,
        "bits_per_byte": bits_per_byte(nats, losses.counts["bytes"]),
        "weight": weight,
        "temperature": temperature,
        "states": len(memory.tokens),
        "fitted_targets": len(some.rows),
    }
    write_manifest(
        options.output,
        kind="losses",
        stage=STAGE,
        files=[path],
        inputs=[options.config, options.model, options.losses, options.fitted],
        settings={**losses.settings, "mode": condition.name, "nearest": reader.k, "index": kind},
        counts=counts,
        seed=dataset.facts["seed"],
        threads=options.threads,
    )
    told = f"{counts['bits_per_byte']:.4f} bits per byte, λ {weight:.3f}, T {temperature:.3g}"
    print(f"{what}: {told} → {path}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
