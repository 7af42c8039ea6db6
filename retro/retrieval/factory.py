"""faiss indexes from factory strings: chosen, built, checked against the number of vectors, made ready to search.

All indexes search by inner product, which for unit vectors is the cosine. `auto` is exact search while that
is affordable; beyond, inverted lists whose candidates are scored again exactly
(`retro.retrieval.approximate`). With faiss-gpu indexes lie on all GPUs; without it, or without a device, everything
stays on the CPU.
"""

import re
import sys
from collections.abc import Iterator

import faiss

from retro.base.stage import UserError
from retro.retrieval.settings import IndexSettings

AFFORDABLE = 2**44  # multiply-adds of an exact search: some minutes on two CPU cores; 200,000² pairs of 384 dimensions
IN_MEMORY = 5_000_000  # vectors; more are compressed by product quantization
JOINABLE = (faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ, faiss.IndexIVFRaBitQ)
POINTS = 39  # training points for each centroid, below which faiss warns


def choose(vectors: int, queries: int, width: int) -> tuple[str, str]:
    """The factory string that `auto` stands for, and why, in words for the log and the manifest."""
    cost = vectors * queries * width
    told = f"{queries} queries x {vectors} vectors x {width} dimensions = {cost:.1e} multiply-adds"
    if cost <= AFFORDABLE and vectors <= IN_MEMORY:
        return "Flat", f"exact search is affordable: {told}, the bound is {AFFORDABLE:.1e}"
    lists = 1 << max(4, (int(4 * vectors**0.5)).bit_length() - 1)
    while lists * POINTS > vectors and lists > 16:
        lists //= 2
    if vectors <= IN_MEMORY:
        return f"IVF{lists},SQ8", f"exact search is too slow: {told}, the bound is {AFFORDABLE:.1e}"
    parts = next(part for part in (64, 48, 32, 16, 8, 4, 2, 1) if part <= width)
    rotated = max(parts, width // parts * parts)
    why = f"exact search is too slow, and vectors too many to keep whole: {told}"
    return f"OPQ{parts}_{rotated},IVF{lists}_HNSW32,PQ{parts}", why


def build(factory: str, width: int) -> faiss.Index:
    """An empty, untrained index. Raises `UserError` for a string faiss does not take.

    Polysemous training, which faiss does by default for PQ and no search here uses, is switched off: for
    small indexes it takes most of the time.
    """
    for reason in _unusable(factory):
        raise UserError(f"dataset.index.factory {factory!r}: {reason}. Try auto, Flat, or IVF1024,SQ8.")
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"dataset.index.factory {factory!r}: faiss does not take it for {width} dimensions and inner "
            f"product: {_reason(error)}. Try auto, Flat, or IVF1024,SQ8."
        ) from None
    for layer in layers(index):
        if hasattr(layer, "do_polysemous_training"):
            layer.do_polysemous_training = False
        for clustered in (layer, getattr(layer, "pq", None)):
            if clustered is not None and hasattr(clustered, "cp"):
                clustered.cp.min_points_per_centroid = 1
    # faiss's own list of what must live as long as the index.
    index.referenced_objects = [_quiet(r) for r in transforms(index) if isinstance(r, faiss.OPQMatrix)]
    return index


LINKS = {"HNSW": 2, "NSG": 8}  # of a vector in a graph, at least: with fewer, faiss may hang or end the process


def _unusable(factory: str) -> Iterator[str]:
    """Why faiss would take a string and then fail, hang or end the process when its index is filled."""
    if "IDMap" in factory:
        yield "an id is a vector's position in the database here, and IDMap wants others; leave it out"
    if re.search(r"(?<!\d)0+(?!\d)", factory):
        yield "it has 0 of something; wanted at least one list, part, bit and dimension"
    for kind, links in re.findall(r"(HNSW|NSG)(\d+)", factory):
        if int(links) < LINKS[kind]:
            yield f"{kind}{links} has too few links a vector; wanted at least {LINKS[kind]}, such as {kind}32"


def _quiet(rotation: faiss.OPQMatrix) -> faiss.ProductQuantizer:
    """Give a rotation the quantizer it would make for itself, without warnings; the caller keeps it alive."""
    quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, 8)
    quantizer.cp.min_points_per_centroid = 1
    rotation.pq = quantizer
    return quantizer


def transforms(index: faiss.Index) -> Iterator[faiss.VectorTransform]:
    """All transforms applied to vectors before they are indexed."""
    for layer in layers(index):
        if isinstance(layer, faiss.IndexPreTransform):
            for number in range(layer.chain.size()):
                yield faiss.downcast_VectorTransform(layer.chain.at(number))


def _reason(error: RuntimeError) -> str:
    """The last, telling part of a faiss message, on one line."""
    return re.split(r"failed: |\.cpp:\d+: ", " ".join(str(error).split()))[-1]


def layers(index: faiss.Index) -> Iterator[faiss.Index]:
    """Views of an index and of all indexes inside it: wrapped, refined, coarse quantizer, storage.

    They are valid as long as the caller keeps `index`.
    """
    layer = faiss.downcast_index(index)
    yield layer
    for name in ("index", "base_index", "quantizer", "storage"):
        inner = getattr(layer, name, None)
        if isinstance(inner, faiss.Index):
            yield from layers(inner)


def is_exact(index: faiss.Index) -> bool:
    """Whether search looks at every vector, unchanged."""
    return isinstance(faiss.downcast_index(index), faiss.IndexFlat)


def is_joinable(index: faiss.Index) -> bool:
    """Whether parts filled by several jobs can be joined to the bytes that one job would make.

    Plain inverted lists can, also behind a rotation; not those of fast-scan codes, which are stored by groups, nor
    those with more beside them (refinement), nor graphs.
    """
    layer = faiss.downcast_index(index)
    while isinstance(layer, faiss.IndexPreTransform):
        layer = faiss.downcast_index(layer.index)
    return type(layer) in JOINABLE


def own_lists(index: faiss.Index) -> faiss.IndexIVF | None:
    """The inverted lists of an index whose centroids may be found apart and added to the coarse quantizer."""
    lists = faiss.try_extract_index_ivf(index)
    alone = 1  # faiss's number for a coarse quantizer that trains in its own way, such as a multi-index
    return None if lists is None or lists.quantizer_trains_alone == alone else lists


def needed(index: faiss.Index) -> int:
    """The least number of training vectors: one for each centroid of each part."""
    lists = [layer.nlist for layer in layers(index) if isinstance(layer, faiss.IndexIVF)]
    return max([needed_beside_lists(index), *lists])


def needed_beside_lists(index: faiss.Index) -> int:
    """The same for all parts but inverted lists."""
    most = 1
    for layer in layers(index):
        for name in ("pq", "rq", "lsq", "aq"):
            quantizer = getattr(layer, name, None)
            if quantizer is None:
                continue
            bits = quantizer.nbits
            bits = bits if isinstance(bits, int) else max(bits.at(i) for i in range(bits.size()))
            most = max(most, 1 << bits)
    for transform in transforms(index):
        if isinstance(transform, faiss.OPQMatrix):
            most = max(most, 256, transform.d_out)
        elif isinstance(transform, faiss.PCAMatrix):
            most = max(most, transform.d_out)
    return most


def check_size(factory: str, width: int, vectors: int, train_vectors: int) -> None:
    """Refuse a string for which there are too few vectors: say how many it needs and what would fit."""
    wanted, found = needed(build(factory, width)), min(vectors, train_vectors)
    if wanted <= found:
        return
    if wanted <= vectors:
        raise UserError(
            f"dataset.index.factory {factory!r} trains on at least {wanted} vectors, but "
            f"dataset.index.train_vectors is {train_vectors}. Raise it to {POINTS * wanted} or more."
        )
    raise UserError(
        f"dataset.index.factory {factory!r} needs at least {wanted} vectors, but the database has {vectors}. "
        f"The nearest that fits: {nearest(factory, width, found)!r}; or use auto."
    )


def nearest(factory: str, width: int, vectors: int) -> str:
    """The string most like `factory` that can be trained on so few vectors."""
    count = 1 << max(0, (vectors // POINTS).bit_length() - 1)
    fewer = re.sub(r"IVF(\d+)", lambda match: f"IVF{min(int(match[1]), count)}", factory)
    unrotated = re.sub(r"(OPQ|PCA)[^,]*,", "", fewer)
    smaller = re.sub(r"PQ(\d+)(x\d+)?(fs\w*|fsr)?\b", lambda match: f"PQ{match[1]}x4", unrotated)
    for candidate in (fewer, unrotated, smaller):
        try:
            if count > 1 and needed(build(candidate, width)) <= vectors:
                return candidate
        except UserError:
            continue
    return "Flat"


def prepare(index: faiss.Index, settings: IndexSettings) -> None:
    """Set how thoroughly an index is searched: nprobe, efSearch, k_factor."""
    for layer in layers(index):
        if isinstance(layer, faiss.IndexIVF):
            layer.nprobe = min(settings.nprobe, layer.nlist)
        if isinstance(layer, faiss.IndexHNSW):  # a coarse quantizer must be able to find nprobe lists
            coarse = any(isinstance(outer, faiss.IndexIVF) for outer in layers(index))
            layer.hnsw.efSearch = max(settings.ef_search, settings.nprobe if coarse else 0)
        if isinstance(layer, faiss.IndexRefine):
            layer.k_factor = settings.k_factor


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
