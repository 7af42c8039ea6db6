"""The config, and the few helpers that rules use.

`section` hands a stage its own settings as canonical JSON; `code` is a digest of the Python code the stage can run.
Both are params, so Snakemake reruns a rule when either changes. Everything else lives in the package `retro`.
"""

from snakemake.exceptions import WorkflowError

import retro.config
from retro.artifacts import canonical
from retro.errors import UserError
from retro.provenance import digest

try:
    CONFIG = retro.config.from_snakemake(config)
    RUNS = CONFIG.expanded()
except UserError as error:
    raise WorkflowError(str(error))

DATASET = CONFIG.dataset
D = f"{CONFIG.results}/{DATASET.name}"
SOURCES = sorted(DATASET.sources)
SPLITS = ["train", "valid", "test"]
SOURCE_FILES = {name: retro.config.files_of(DATASET.sources[name]) for name in SOURCES}
WHOLE = DATASET.facts()
RESOURCES = CONFIG.resources


wildcard_constraints:
    source="|".join(map(re.escape, SOURCES)),
    split="|".join(SPLITS),
    run="|".join(map(re.escape, RUNS)),
    mode="none|on|off|random",


def code(module):
    """A param that changes exactly when code changes that `module` can run."""
    return lambda wildcards: digest(module)


def section(**values):
    """Settings of a stage as canonical JSON."""
    return canonical(values)


def modes(run):
    """Ways a run is evaluated: GPT has none, RETRO has retrieval on, off and, as a control, random."""
    if RUNS[run]["architecture"] == "gpt":
        return ["none"]
    return ["on", "off"] + (["random"] if CONFIG.evaluate.random_neighbours else [])


def losses(splits=None):
    """Manifests of all per-token losses."""
    return [
        f"{D}/runs/{run}/evaluation/{split}/{mode}/manifest.json"
        for run in RUNS
        for split in splits or CONFIG.evaluate.splits
        for mode in modes(run)
    ]


def preprocessed():
    """Every durable artifact of preprocessing, arrays and manifests."""
    per_source = {
        "tokens": ["tokens.bin", "tokens.idx", "documents.npy", "documents.jsonl", "skipped.jsonl"],
        "chunks": ["chunks.npy"],
        "embeddings": ["embeddings.npy"],
    }
    files = [f"{D}/{kind}/{name}/{file}" for kind, names in per_source.items() for name in SOURCES for file in names]
    files += [f"{D}/database/{name}.npy" for name in ["database", *SPLITS]]
    files += [f"{D}/neighbours/{split}/{name}.npy" for split in SPLITS for name in ["ids", "scores"]]
    return [f"{D}/config.json", f"{D}/index/index.faiss", *files, *manifests()]


def manifests():
    """Manifests of every artifact of preprocessing; the recorded config names their sha256."""
    folders = ["tokenizer", "database", "index"]
    folders += [f"{kind}/{name}" for kind in ["tokens", "chunks", "embeddings"] for name in SOURCES]
    folders += [f"neighbours/{split}" for split in SPLITS]
    return [f"{D}/{folder}/manifest.json" for folder in folders]


def models():
    """Every trained model."""
    return [f"{D}/runs/{run}/{name}" for run in RUNS for name in ["model.safetensors", "model.json", "metrics.jsonl"]]
