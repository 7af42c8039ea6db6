"""faiss indexes on all GPUs; without faiss-gpu, or without a device, everything stays on the CPU."""

import sys

import faiss

from retro.retrieval.settings import IndexSettings


def to_gpus(index: faiss.Index, settings: IndexSettings) -> faiss.Index:
    """The index copied to all GPUs, ready to train, fill and search; as it is where there are none, or where
    they cannot hold its kind (HNSW, refinement), which the log says.

    `settings.gpu` replicates it (queries are shared out) or shards it (vectors are). Inverted lists whose
    coarse quantizer a GPU cannot hold keep that on the CPU.
    """
    devices = faiss.get_num_gpus()
    if devices == 0:
        return index
    try:
        moved = faiss.index_cpu_to_all_gpus(index, co=cloner_options(settings))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition("failed: ")[2]
        print(f"index stays on the CPU: {reason}", file=sys.stderr)
        return index
    how = "replicated" if settings.gpu == "replicate" else "sharded"
    print(f"index {how} on {devices} GPUs{', float16' if settings.gpu_float16 else ''}", file=sys.stderr)
    return moved


def cloner_options(settings: IndexSettings) -> "faiss.GpuMultipleClonerOptions":
    """How faiss copies an index to several GPUs. Coarse quantizers stay float32: they decide which lists are
    visited."""
    options = faiss.GpuMultipleClonerOptions()
    options.shard = settings.gpu == "shard"
    options.common_ivf_quantizer = options.shard  # one search of the coarse quantizer, not one a shard
    options.useFloat16 = settings.gpu_float16
    options.useFloat16CoarseQuantizer = False
    options.allowCpuCoarseQuantizer = True
    return options


def to_cpu(index: faiss.Index, on_cpu: faiss.Index) -> faiss.Index:
    """The index as it is stored. `on_cpu` is what `to_gpus` was given."""
    return on_cpu if index is on_cpu else faiss.index_gpu_to_cpu(index)
