"""Beside retro-pytorch: a training step, and index and neighbours; beside transformers: writing. In the same run each.

`step` and `write` (`make bench-model`) time a training step, and the tokens that models of one shape write, in turns.
`index` (`make bench-database`) finds the neighbours of the same chunks from the same embeddings.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from retro.base import command, provenance, stage
from retro.base.artifacts import read_manifest
from retro.base.stage import UserError, whole
from retro.bench.model import CASES, CHUNK, SEQ, VOCAB, Timed, untrained
from retro.bench.preprocessing import InMemory
from retro.dataset.store import ChunkStore
from retro.generation.decoding import Decoder, Found, Lookup, Prompt, Sampler
from retro.model.build import Architecture
from retro.model.settings import ModelSettings
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred, Rule
from retro.retrieval.factory import choose
from retro.retrieval.index import make
from retro.retrieval.settings import IndexSettings
from retro.training.optimizer import build_optimizer
from retro.training.settings import TrainSettings

BATCH = 4


class Peer(Timed):
    """Theirs, timed as ours is. It reads the targets from a sample one token longer, and masks token 0."""

    def __init__(self, settings: ModelSettings):
        super().__init__(CASES[2], settings, BATCH, compiled=False)
        from retro_pytorch import RETRO

        shape = {"enc_dim": 256, "dec_dim": 256, "enc_depth": 2, "dec_depth": 12, "heads": 8, "dim_head": 32}
        theirs = RETRO(num_tokens=VOCAB, max_seq_len=SEQ, chunk_size=CHUNK, dec_cross_attn_layers=(6, 9, 12), **shape)
        self.parameters = sum(parameter.numel() for parameter in theirs.parameters())
        self.optimizer = build_optimizer(theirs, TrainSettings(lr=1e-3))
        self.weights = list(theirs.parameters())
        tokens = torch.cat([self.tokens, self.targets[:, -1:]], dim=1).clamp(min=1)  # (b, n + 1)
        assert self.neighbours is not None
        neighbours = self.neighbours.clamp(min=1)  # (b, l, k, r)
        self.model = lambda *_: theirs(tokens, neighbours, return_loss=True)


def bench_step(steps: int) -> str:
    """Time GPT, RETRO and the peer alternately; return a table."""
    settings = ModelSettings(layers=12, width=256, heads=8, cca_layers=(6, 9, 12))
    timed = {case.name: Timed(case, settings, BATCH, False) for case in (CASES[0], CASES[2])}
    timed["retro-pytorch"] = Peer(settings)
    for round_ in range(steps + 1):
        for model in timed.values():
            model.step()
            if not round_:  # the first step allocates
                model.cpu.clear()

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(timed[a].cpu, timed[b].cpu, strict=True))

    lines = [f"{'model':14} {'parameters':>11} {'CPU-s/step':>10} {'median':>7}"]
    for name, model in timed.items():
        lines.append(f"{name:14} {model.parameters:11,} {min(model.cpu):10.3f} {statistics.median(model.cpu):7.3f}")
    lines.append(f"retro on / gpt: {ratio('retro on', 'gpt'):.2f}  (median of {steps} pairs)")
    lines.append(f"retro-pytorch / retro on: {ratio('retro-pytorch', 'retro on'):.2f}")
    return "\n".join(lines)


def step_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=whole, default=2)
    parser.add_argument("--steps", type=whole, default=6, help="steps of each model, after one to warm up")
    parser.add_argument("--peer", default=".venv/peer", help="folder where retro-pytorch is installed")
    options = parser.parse_args()
    if not os.path.isdir(f"{options.peer}/retro_pytorch"):
        raise UserError(f"{options.peer}: holds no retro_pytorch; `make bench-model` installs it")
    sys.path.append(options.peer)
    torch.set_num_threads(options.threads)
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f}, {versions}")
    print(bench_step(options.steps))


PROMPT = 32  # tokens that texts begin with


class Neighbours(ChunkStore):
    """A store whose every chunk has a few random tokens: what is looked up costs nothing."""

    def __init__(self, vocab_size: int, length: int):
        self.length, self.pad_id, self.size = length, 0, vocab_size

    def retrieved(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (*rows.shape, count * self.length)
        return np.random.default_rng(0).integers(1, self.size, shape), np.ones(shape, bool)


class Writing:
    """A model of ours that writes `count` tokens after each of some random prompts, and tokens per CPU-second."""

    def __init__(self, architecture: Architecture, settings: ModelSettings):
        model = untrained(architecture, settings).eval()
        store, found = Neighbours(VOCAB, CHUNK), Found(np.arange(2), np.zeros(2))
        retro = architecture == "retro"
        lookup: Lookup | None = (lambda queries: [found] * len(queries)) if retro else None
        self.decoder = Decoder(model, store, seq_length=SEQ, eod_id=-1, retrieved_chunks=2, lookup=lookup)
        self.rates: dict[int, list[float]] = {}

    def write(self, prompts: np.ndarray, count: int) -> None:
        """Write after prompts int64 [b, n], together."""
        given = [Prompt(each, count, Sampler()) for each in prompts]
        start = time.process_time()
        written = self.work(prompts, given, count)
        self.rates.setdefault(len(prompts), []).append(written / (time.process_time() - start))

    def work(self, prompts: np.ndarray, given: list[Prompt], count: int) -> int:
        return sum(1 for _ in self.decoder.write_all(given, len(given)))


class Transformers(Writing):
    """Their GPT-2 of the same shape, written with `generate`."""

    def __init__(self, settings: ModelSettings):
        from transformers import GPT2Config, GPT2LMHeadModel

        shape = {"n_embd": settings.width, "n_layer": settings.layers, "n_head": settings.heads}
        ends = {"bos_token_id": None, "eos_token_id": None}
        self.theirs: Any = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=SEQ, **shape, **ends)).eval()
        self.rates = {}

    def work(self, prompts: np.ndarray, given: list[Prompt], count: int) -> int:
        tokens, most = torch.from_numpy(prompts), {"max_new_tokens": count, "min_new_tokens": count}
        given_ = {"attention_mask": torch.ones_like(tokens), "pad_token_id": 0, "do_sample": False}
        return self.theirs.generate(tokens, **given_, **most)[:, prompts.shape[1] :].numel()


def bench_write(settings: ModelSettings, count: int, together: int, repeats: int) -> list[dict[str, Any]]:
    """Tokens per CPU-second of one text and of several together, greedy, the best of `repeats` in turns."""
    writers = {"gpt": Writing("gpt", settings), "retro": Writing("retro", settings)}
    writers["transformers GPT-2"] = Transformers(settings)
    prompts = np.random.default_rng(0).integers(1, VOCAB, (together, PROMPT))
    for _ in range(repeats):
        for writer in writers.values():
            for rows in (1, together):
                writer.write(prompts[:rows], count)
    found = []
    for name, writer in writers.items():
        one, many = (round(max(writer.rates[rows]), 1) for rows in (1, together))
        found.append({"model": name, "one": one, "together": many, "times": round(many / one, 2)})
    return found


def write_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--tokens", type=whole, default=192, help="tokens written after each prompt (192)")
    parser.add_argument("--together", type=whole, default=16, help="texts written side by side (16)")
    parser.add_argument("--repeats", type=whole, default=3, help="times each, in turns; the fastest counts (3)")
    parser.add_argument("--layers", type=whole, default=6)
    parser.add_argument("--width", type=whole, default=256)
    parser.add_argument("--flavour", choices=["paper", "megatron", "copy-ready"], default="paper")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = {"layers": options.layers, "width": options.width, "heads": max(1, options.width // 32)}
    settings = ModelSettings(**shape, flavour=options.flavour)
    versions = ", ".join(f"{name} {provenance.version(name)}" for name in ("torch", "transformers"))
    print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f}, {versions}; tokens per CPU-second, greedy")
    print(f"{'model':20} {'one text':>9} {f'{options.together} texts':>9} {'times':>6}")
    for row in bench_write(settings, options.tokens, options.together, options.repeats):
        print(f"{row['model']:20} {row['one']:9.0f} {row['together']:9.0f} {row['times']:6.1f}")


K, CHECKED = 2, 500  # neighbours; chunks whose recall is measured


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A dataset's embeddings float32 [n, d] and the number of each chunk's document, int32 [n]."""
    vectors, documents, first = [], [], 0
    for path in sorted((folder / "embeddings").glob("*/manifest.json")):
        vectors.append(np.asarray(read_manifest(path, "embeddings").array("embeddings.npy"), np.float32))
        table = read_manifest(folder / "chunks" / path.parent.name / "manifest.json", "chunks").array("chunks.npy")
        documents.append(table["document"].astype(np.int32) + first)
        first = int(documents[-1].max()) + 1
    if not vectors:
        raise UserError(f"{folder}: has no embeddings. Give the folder of a preprocessed dataset.")
    return np.concatenate(vectors), np.concatenate(documents)


def ours(vectors: np.ndarray, documents: np.ndarray, folder: Path, threads: int) -> np.ndarray:
    """Write an index and the neighbours as our stages do; returns ids [n, K]."""
    source, everything = InMemory(vectors), np.arange(len(vectors))
    name, _ = choose(len(vectors), len(vectors), vectors.shape[1])
    faiss.write_index(make(name, source, everything, IndexSettings(), 1), str(folder / "index.faiss"))
    keys = documents.astype(np.uint64)
    rule, search, found = Rule(keys), ExactSearch(source, everything, threads), []
    for start in range(0, len(vectors), 1 << 14):
        here = slice(start, start + (1 << 14))
        found.append(search.search(vectors[here], K, Barred([(rule, rule.look_up(keys[here]))]))[0])
    ids = np.concatenate(found)
    np.save(folder / "ids.npy", ids)
    return ids


def theirs(vectors: np.ndarray, documents: np.ndarray, _folder: Path, _threads: int) -> np.ndarray:
    """Run the peer's own function on chunks whose embeddings are already there; returns ids [n, K]."""
    from retro_pytorch import retrieval

    count, width = vectors.shape
    np.memmap("chunks.dat", np.int32, "w+", shape=(count, 65)).flush()
    ids = np.memmap("documents.dat", np.int32, "w+", shape=(count,))
    ids[:] = documents
    ids.flush()

    def embeddings(*, embeddings_memmap_path: str, **_: object) -> None:
        np.memmap(embeddings_memmap_path, np.float32, "w+", shape=(count, width))[:] = vectors

    retrieval.chunks_to_embeddings_ = embeddings
    # autofaiss writes numpy 1's floats
    json.JSONEncoder.default = lambda _self, number: float(number)  # type: ignore[method-assign, assignment]
    # The function below takes a width and does not pass it on.
    retrieval.chunks_to_index_and_embed = partial(retrieval.chunks_to_index_and_embed, embed_dim=width)
    path, _ = retrieval.chunks_to_precalculated_knn_(
        num_nearest_neighbors=K,
        num_chunks=count,
        chunk_size=64,
        chunk_memmap_path="chunks.dat",
        doc_ids_memmap_path="documents.dat",
        num_extra_neighbors=100,
    )
    return np.memmap(path, np.int32, "r", shape=(count, K))


def recall(ids: np.ndarray, vectors: np.ndarray, documents: np.ndarray) -> float:
    """Share of places in the true first K that `ids` fills as well, equal scores being as good."""
    chosen, wide = (
        np.random.default_rng(1).choice(len(vectors), min(CHECKED, len(vectors)), False),
        vectors.astype("f8"),
    )
    hit = 0
    for row in chosen.tolist():
        scores = wide @ wide[row]
        scores[documents == documents[row]] = -np.inf
        worst = np.partition(scores, -K)[-K]
        real = ids[row][ids[row] >= 0]
        hit += int((scores[real] >= worst - 1e-6).sum())
    return hit / (len(chosen) * K)


def index_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=Path("results/open-book"), help="a preprocessed dataset")
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--peer", type=Path, default=Path(".venv/peer"), help="where retro-pytorch is installed")
    options = parser.parse_args()
    if not (options.peer / "retro_pytorch").is_dir():
        raise UserError(f"{options.peer}: holds no retro_pytorch; `make bench-database` installs it")
    sys.path.append(str(options.peer.resolve()))
    import retro_pytorch.retrieval  # noqa: F401  imports do not count

    faiss.omp_set_num_threads(options.threads)
    vectors, documents = read(options.dataset)
    facts: dict = {"chunks": len(vectors), "width": vectors.shape[1], "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        for work in (ours, theirs):
            start = time.process_time()
            ids = np.array(work(vectors, documents, Path(folder), options.threads))
            cpu = time.process_time() - start
            facts[work.__name__] = {
                "cpu_seconds": round(cpu, 2),
                "cpu_ms_per_chunk": round(1e3 * cpu / len(vectors), 3),
                "recall": round(recall(ids, vectors, documents), 4),
                "holes": int((ids < 0).sum()),
            }
    facts["times_less"] = round(facts["theirs"]["cpu_seconds"] / facts["ours"]["cpu_seconds"], 1)
    facts |= {"load_average": os.getloadavg()[0], "versions": provenance.versions()}
    print(json.dumps(facts, indent=1))


def main() -> None:
    stage.one_of({"step": step_main, "write": write_main, "index": index_main})


if __name__ == "__main__":
    command.run(main)
