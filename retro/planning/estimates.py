"""Times, disk and memory of a run: estimated from counts, and compared with what a finished run used."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import faiss

from retro.base.names import CHUNK, DOCUMENT, LISTED
from retro.base.stage import UserError
from retro.config.schema import Config
from retro.corpus.mmididx import token_dtype
from retro.database.settings import MINILM_WIDTH
from retro.evaluation.conditions import Condition, usual
from retro.model.count import flops_per_token, parameters
from retro.planning.counts import Counts
from retro.planning.memory import Fit, Work, fit, step
from retro.retrieval import exact, factory, neighbours
from retro.training.checkpoints import KEPT

# MB of a process beside what is counted below, mostly libraries: from runs on Linux, x86-64, without a GPU.
BASE = {"static": 230, "embed": 460, "neighbours": 340, "train": 440}
MINILM = {"layers": 6, "width": MINILM_WIDTH, "ffn": 1536, "parameters": 22_713_216}
WORD_PIECES = 1.1  # word pieces of the encoder for each token of a chunk
EF_CONSTRUCTION = 16  # candidates a list is found among in a graph of centroids (faiss's efSearch)
ITERATIONS = 10  # of k-means when an index of inverted lists is trained (faiss)


@dataclass
class Model:
    """A run: parameters, operations a token, tokens it trains on, bytes of memory."""

    name: str
    parameters: int
    flops_per_token: float
    tokens: float
    memory: float
    checkpoints: int  # that lie in its folder at the end
    fits: list[Fit]


@dataclass
class Plan:
    """`disk` and `memory`: bytes by artifact and by job; `flops`, and bytes `moved` to and from disks, by work."""

    counts: Counts
    factory: str
    padding: float
    width: int
    disk: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    models: list[Model] = field(default_factory=list)


def index_bytes(name: str, width: int, vectors: float) -> float:
    """The size of index.faiss, which is also the memory that searching it wants."""
    index = factory.build(name, width)
    size, graph = 0.0, 0.0
    for layer in factory.layers(index):
        if isinstance(layer, faiss.IndexIVF):
            size = vectors * (layer.code_size + 8) + layer.nlist * width * 4
            graph = layer.nlist * 300 if "_HNSW" in name else 0
            break
    else:
        size = vectors * next(layer.code_size for layer in factory.layers(index) if hasattr(layer, "code_size"))
        graph = vectors * 300 if name.startswith("HNSW") else 0
    rotation = width * width * 4 if name.startswith(("OPQ", "PCA")) else 0
    return size + graph + rotation + (256 * width * 4 if "PQ" in name else 0) + 45


def search_flops(name: str, width: int, vectors: float, queries: float, nprobe: int, ef: int) -> float:
    """Operations of all queries: the coarse quantizer, then the lists visited; table look-ups count one each."""
    lists = next((each.nlist for each in factory.layers(factory.build(name, width)) if hasattr(each, "nlist")), 0)
    if not lists:
        return 2.0 * queries * vectors * width
    coarse = 2 * width * (32 * max(ef, nprobe) if "_HNSW" in name else lists)
    seen = vectors * min(nprobe, lists) / lists
    parts = next((each.pq.M for each in factory.layers(factory.build(name, width)) if hasattr(each, "pq")), 0)
    scan = seen * parts + 2 * 256 * width if parts else seen * 2 * width
    return queries * (coarse + scan)


def index_flops(name: str, width: int, vectors: float, sample: float) -> float:
    """Operations of k-means over the sample (faiss compares each vector with each centroid), and of finding the list
    of every vector; product quantizers, trained on few vectors, are left out."""
    lists = next((each.nlist for each in factory.layers(factory.build(name, width)) if hasattr(each, "nlist")), 0)
    near = 32 * EF_CONSTRUCTION if "_HNSW" in name else lists
    return 2.0 * width * (ITERATIONS * min(vectors, sample) * lists + vectors * near) if lists else 0.0


def embed_flops(config: Config, chunks: float) -> float:
    """Forward pass of MiniLM over every chunk; the static encoder's adds; other encoders count as MiniLM."""
    if config.dataset.encoder.type == "given":
        return 0.0
    if config.dataset.encoder.type == "static":
        return chunks * config.dataset.chunk_length * 2 * 8
    length = min(config.dataset.chunk_length * WORD_PIECES, config.dataset.encoder.max_word_pieces)
    d, ffn = MINILM["width"], MINILM["ffn"]
    return chunks * length * MINILM["layers"] * 2 * (4 * d * d + 2 * d * ffn + 2 * length * d)


def make(config: Config, counts: Counts, shards: Sequence[int] = (8, 16), room: float = 80e9) -> Plan:
    """The plan of a config with these counts, for `shards` GPUs of `room` bytes that share a model."""
    dataset, K, m = config.dataset, config.dataset.neighbours.saved, config.dataset.chunk_length
    width = dataset.encoder.width if dataset.encoder.type == "static" else dataset.encoder.dimensions or MINILM["width"]
    queries = sum(counts.splits[split] for split in LISTED)
    name = dataset.index.factory
    if name == "auto":
        name = factory.choose(int(counts.database), int(queries), width)[0]
    plan = Plan(counts, name, counts.padding(m), width)
    chunks, vectors = counts.chunks, counts.database
    index = index_bytes(name, width, vectors)
    stored = width * (2 if dataset.encoder.dtype == "float16" else 4)
    plan.disk = {
        "tokenizer": 28.0 * (counts.vocab_size - 256) if dataset.tokenizer.type == "bpe" else 2.0e6,
        "tokens": counts.tokens * token_dtype(counts.vocab_size).itemsize
        + counts.documents * (20 + DOCUMENT.itemsize)
        + counts.lines,
        "chunks": chunks * CHUNK.itemsize,
        "embeddings": chunks * stored,
        "database": 8 * (vectors + queries),
        "index": index,
        "neighbours": queries * K * ((4 if vectors < 2**31 else 8) + 2),
    }
    plan.flops = {
        "embedding": embed_flops(config, chunks),
        "index": index_flops(name, width, vectors, dataset.index.train_vectors),
        "search": search_flops(name, width, vectors, queries, dataset.index.nprobe, dataset.index.ef_search),
    }
    _memory(plan, config, index)
    for name, run in config.models().items():
        model, train, architecture = run.model, run.train, run.architecture
        read = m * train.retrieved_chunks
        shape: dict[str, Any] = {
            "vocab_size": counts.vocab_size,
            "seq_length": dataset.samples.seq_length,
            "chunk_length": m,
        }
        count = parameters(model, architecture, **shape, retrieved_length=read)
        flops = flops_per_token(
            model, architecture=architecture, **shape, retrieved_length=read, neighbours=train.neighbours_used
        )
        batch = dataset.samples.global_batch_size
        work = Work(
            train.micro_batch_size or batch,
            **shape,
            retrieved_length=read,
            neighbours=train.neighbours_used,
            precision=train.precision,
            recompute=train.recompute,
        )
        frozen = run.freeze == "base"
        alone = step(model, architecture, work, freeze=frozen)
        fits = [
            fit(
                model,
                architecture,
                replace(work, recompute=recompute),
                gpus=gpus,
                limit=max(1, batch // gpus),
                room=room,
                freeze=frozen,
            )
            for gpus in shards
            for recompute in ("none", "layers")
        ]
        fixed = dataset.samples.resolved(counts.splits["train"], m).of(train.samples_share)
        samples = fixed.train_samples if run.retro or not frozen else 0  # of a frozen GPT nothing is trained
        kept = min(KEPT, math.ceil(samples / batch / fixed.interval(train.checkpoint_interval)))
        memory = BASE["train"] * 1e6 + alone.total
        plan.models.append(Model(name, count, flops, samples * dataset.samples.seq_length, memory, kept, fits))
    plan.disk["models"] = sum(4 * model.parameters for model in plan.models)
    plan.disk["checkpoints"] = sum(12 * model.checkpoints * model.parameters for model in plan.models)
    plan.flops["training"] = sum(model.flops_per_token * model.tokens for model in plan.models)
    _evaluation(plan, config)
    _moved(plan, config)
    return plan


def _scored(plan: Plan, config: Config) -> tuple[float, float]:
    """Tokens of the evaluated splits, and how many times a window reads each of them."""
    m, window = config.dataset.chunk_length, config.dataset.samples.seq_length
    stride = config.evaluate.stride or max(m, window // 2 // m * m)
    return m * sum(plan.counts.splits[split] for split in config.evaluate.splits), window / stride


def _evaluation(plan: Plan, config: Config) -> None:
    """Forward passes, a third of a training step's operations, over every window of every run and condition."""
    dataset, evaluate, total = config.dataset, config.evaluate, 0.0
    for run in config.models().values():
        used = run.train.neighbours_used if evaluate.neighbours_used is None else evaluate.neighbours_used
        read = dataset.chunk_length * (evaluate.retrieved_chunks or run.train.retrieved_chunks)
        for mode in usual(run.architecture, controls=evaluate.random_neighbours):
            total += flops_per_token(
                run.model,
                architecture=run.architecture,
                vocab_size=plan.counts.vocab_size,
                seq_length=dataset.samples.seq_length,
                chunk_length=dataset.chunk_length,
                retrieved_length=read,
                neighbours=0 if Condition.parse(mode).empty else used,
            )
    tokens, times = _scored(plan, config)
    plan.flops["evaluation"] = total / 3 * tokens * times


def _moved(plan: Plan, config: Config) -> None:
    """Bytes read and written; what a job reads again from memory counts once."""
    disk, counts, item = plan.disk, plan.counts, token_dtype(plan.counts.vocab_size).itemsize
    share = counts.database / counts.chunks if counts.chunks else 0.0
    scored, times = _scored(plan, config)
    plan.moved = {
        "tokenizing": counts.text + disk["tokens"] + disk["chunks"],
        "embedding": disk["tokens"] + disk["embeddings"],
        "index": share * disk["embeddings"] + disk["index"],
        "search": disk["embeddings"] + disk["index"] + disk["neighbours"],
        "training": disk["models"],
        "evaluation": disk["models"],
    }
    for run, model in zip(config.models().values(), plan.models, strict=True):
        retrieved = run.train.retrieved_chunks * run.train.neighbours_used if run.retro else 0
        saves = math.ceil(model.tokens / config.dataset.samples.seq_length / config.dataset.samples.global_batch_size)
        saves = math.ceil(saves / run.train.checkpoint_interval)
        plan.moved["training"] += model.tokens * item * (1 + retrieved) + saves * 12 * model.parameters
        modes = len(usual(run.architecture, controls=config.evaluate.random_neighbours))
        plan.moved["evaluation"] += modes * scored * (4 + times * item * (1 + retrieved))


def _memory(plan: Plan, config: Config, index: float) -> None:
    """Memory of the embedding and search jobs, and of each training process without sharding."""
    static = config.dataset.encoder.type in ("static", "given")
    plan.memory["index"] = index
    plan.memory["embed"] = BASE["static"] * 1e6 if static else BASE["embed"] * 1e6 + 4 * MINILM["parameters"]
    largest = max(plan.counts.splits[split] for split in LISTED)
    largest = min(largest, neighbours.BLOCK)  # queries at once
    plan.memory["neighbours"] = BASE["neighbours"] * 1e6 + largest * plan.width * 4
    if plan.factory == "Flat":
        seen = min(plan.counts.database, exact.BLOCK)
        scores = min(largest, exact.QUERIES) * seen * 4 * config.resources.search_threads
        plan.memory["neighbours"] += scores + seen * plan.width * 4
    else:
        plan.memory["neighbours"] += index


FILES = {
    "tokenizer": "tokenizer/*",
    "tokens": "tokens/*/*",
    "chunks": "chunks/*/chunks.npy",
    "embeddings": "embeddings/*/embeddings.npy",
    "database": "database/*.npy",
    "index": "index/index.faiss",
    "neighbours": "neighbours/*/*.npy",
    "models": "runs/*/model.safetensors",
    "checkpoints": "runs/*/checkpoints/*/step-*.safetensors",
}
LEAST = 2.0  # CPU seconds: of shorter jobs Snakemake's benchmark may have seen the start only
JOBS = {"embed": "embed/*.jsonl", "neighbours": "neighbours/*.jsonl"}  # below benchmarks/


def largest(paths: list[Path]) -> float:
    """The highest resident memory, bytes, that these benchmarks saw; 0 where none worked long enough to be seen."""
    found = 0.0
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            facts = json.loads(line)
            numbers = all(isinstance(facts[key], int | float) for key in ("cpu_time", "max_rss"))  # else NA
            if numbers and facts["cpu_time"] >= LEAST:
                found = max(found, facts["max_rss"] * 2**20)
    return found


def compare(plan: Plan, folder: Path) -> list[dict]:
    """Rows of what, estimated, found (bytes) and ratio, for everything that is there."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no finished run to check against. Run snakemake first.")
    pairs = []
    for name, pattern in FILES.items():
        paths = [path for path in folder.glob(pattern) if path.name != "manifest.json"]
        pairs.append((f"disk: {name}", plan.disk[name], float(sum(path.stat().st_size for path in paths))))
    pairs = [pair for pair in pairs if pair[2]]
    pairs.append(("disk: sum of these", sum(pair[1] for pair in pairs), sum(pair[2] for pair in pairs)))
    marks = folder / "benchmarks"
    for name, pattern in JOBS.items():
        pairs.append((f"memory: {name}", plan.memory[name], largest(list(marks.glob(pattern)))))
    for model in plan.models:
        pairs.append((f"memory: train {model.name}", model.memory, largest([*marks.glob(f"train/{model.name}.jsonl")])))
    return [
        {"what": what, "estimated": estimated, "found": found, "ratio": estimated / found}
        for what, estimated, found in pairs
        if found
    ]
