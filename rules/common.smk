"""The config, and the few helpers that rules use.

`section` hands a stage its own settings as canonical JSON; `code` is a digest of the Python code the stage can run.
Both are params, so Snakemake reruns a rule when either changes. Everything else lives in the package `retro`.
"""

import json
import os
import shlex
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

import retro.config
import retro.report
from retro.artifacts import canonical
from retro.corpus.settings import TOKENIZER_FILES
from retro.errors import UserError
from retro.experiments.plan import conditions, fraction_of
from retro.provenance import digest
from retro.retrieval.bm25 import FILES as BM25_FILES
from retro.retrievals import Retrievals

try:
    CONFIG = retro.config.from_snakemake(config, workflow.configfiles)
    RUNS = CONFIG.expanded()
    SOURCE_FILES = {
        name: retro.config.files_of(name, source, CONFIG.dataset.on_error)
        for name, source in CONFIG.dataset.sources.items()
    }
except UserError as error:
    raise WorkflowError(str(error))

DATASET = CONFIG.dataset
D = f"{CONFIG.results}/{DATASET.name}"
SOURCES = sorted(DATASET.sources)
SHARDS = [f"{number}-of-{DATASET.shards}" for number in range(DATASET.shards)] if DATASET.shards > 1 else []
SPLITS = ["train", "valid", "test"]
WHOLE = DATASET.facts()
RETRIEVALS = Retrievals(WHOLE, CONFIG.retrievals, D)
DENSE = [name for name in RETRIEVALS.named if RETRIEVALS.facts[name]["retriever"] == "dense"]
# What is read of a source; `weight` and `database` only say what is done with it.
READ = {
    name: {key: value for key, value in each.items() if key not in ("weight", "database")}
    for name, each in WHOLE["sources"].items()
}
RESOURCES = CONFIG.resources
TEMPLATES = sorted(os.path.relpath(path) for path in (Path(retro.report.__file__).parent / "templates").iterdir())
TWINS = json.dumps({name: {"twin": run["twin"], "seed": run["seed"]} for name, run in RUNS.items()})
FIGURES = ["loss", "bpb", "sections", "cost", "neighbours"]
FIRST_RETRO = next((name for name, run in RUNS.items() if run["architecture"] == "retro" and run["twin"]), None)
RETRIEVAL_NAMES = list(CONFIG.retrievals)
RETRO_RUNS = [name for name, run in RUNS.items() if run["architecture"] == "retro"]

EXPERIMENTS = CONFIG.experiments
MEASURED = EXPERIMENTS.of or (FIRST_RETRO and FIRST_RETRO.removesuffix(f"-s{RUNS[FIRST_RETRO]['seed']}"))

VALIDATED = {  # what is recomputed by `snakemake validate`, with how many threads
    "tokens": RESOURCES.tokenize_threads,
    "chunks": 1,
    "database": 1,
    "embeddings": RESOURCES.embed_threads,
    "index": RESOURCES.search_threads,
    "neighbours": RESOURCES.search_threads,
}


wildcard_constraints:
    source="|".join(map(re.escape, SOURCES)),
    split="|".join(SPLITS),
    retrieval="|".join(map(re.escape, RETRIEVALS.named)) or "(?!)",
    run="|".join(map(re.escape, RUNS)),
    shard=r"\d+-of-\d+",
    mode=r"[A-Za-z0-9][A-Za-z0-9._+-]*",  # a condition: retro.evaluation.conditions


def code(module):
    """A param that changes exactly when code changes that `module` can run."""
    return lambda wildcards: digest(module)


def section(**values):
    """Settings of a stage as canonical JSON."""
    return canonical(values)


def arrays(*files):
    """Inputs that a manifest, an input beside them, vouches for: their time stamps do not count."""
    flat = [file for part in files for file in ([part] if isinstance(part, str) else part)]
    return ancient([str(file) for file in flat])


def shards(folder, suffix="json"):
    """What the shard jobs of a stage leave in its folder for the job that joins them; nothing for one shard."""
    return [f"{folder}/shards/{shard}.{suffix}" for shard in SHARDS]


def embeddings_of(retrieval, file):
    """A file of the embeddings of every source that a retrieval searches."""
    return [f"{RETRIEVALS.source(retrieval, 'embeddings')}/{source}/{file}" for source in SOURCES]


def retrieved():
    """Neighbours of the evaluated splits by every retrieval of the config."""
    return [
        f"{D}/retrievals/{name}/neighbours/{split}/manifest.json"
        for name in RETRIEVALS.named
        for split in CONFIG.evaluate.splits
    ]


def duplicates(*actions):
    """The manifest of duplicate documents if the config's action is one of these."""
    return [f"{D}/duplicates/manifest.json"] if DATASET.duplicates.action in actions else []


def modes(run):
    """Ways a run is evaluated: GPT has none, RETRO has retrieval on, off and, as a control, random."""
    if RUNS[run]["architecture"] == "gpt":
        return ["none"]
    return ["on", "off"] + (["random"] if CONFIG.evaluate.random_neighbours else [])


def losses():
    """Manifests of the per-token losses that every evaluation has."""
    return [
        f"{D}/runs/{run}/evaluation/{split}/{mode}/manifest.json"
        for run in RUNS
        for split in CONFIG.evaluate.splits
        for mode in modes(run)
    ]


def neighbours_of(condition, split):
    """Manifest of the neighbours that a condition shows, where they are not the dataset's own."""
    source = condition.partition("+")[0]
    if fraction_of(source):
        return [f"{D}/fractions/{source}/{split}/manifest.json"]
    return [f"{D}/retrievals/{source}/neighbours/{split}/manifest.json"] if source in RETRIEVAL_NAMES else []


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
    folders += ["bm25"] if DATASET.retriever == "bm25" else []
    folders += [f"{kind}/{name}" for kind in ["tokens", "chunks", "embeddings"] for name in SOURCES]
    folders += [f"neighbours/{split}" for split in SPLITS]
    return [f"{D}/{folder}/manifest.json" for folder in folders] + duplicates("report", "exclude", "drop")


def models():
    """Every trained model."""
    return [f"{D}/runs/{run}/{name}" for run in RUNS for name in ["model.safetensors", "model.json", "metrics.jsonl"]]


def launch():
    """How a training is started: on several nodes it starts the container itself, as in there no srun is."""
    options = f"--nodes {RESOURCES.nodes} --processes {RESOURCES.processes}"
    deployment = workflow.deployment_settings
    if RESOURCES.nodes > 1 and any(method.name == "APPTAINER" for method in deployment.deployment_method):
        inside = f"apptainer exec --home {shlex.quote(os.getcwd())} {deployment.apptainer_args} {IMAGE}"
        options += f" --inside {shlex.quote(inside)}"
    return options


def explored():
    """Losses the explorer shows side by side: the first RETRO run's, and its twin's."""
    split, run = CONFIG.evaluate.splits[0], RUNS[FIRST_RETRO]
    return [
        f"{D}/runs/{name}/evaluation/{split}/{mode}/manifest.json"
        for name, mode in [(run["twin"], "none"), (run["name"], "on")]
    ]


def reports():
    """What a reader opens."""
    pages = ["report.html", "neighbours.html"] if FIRST_RETRO else []
    figures = [f"{D}/figures/{name}.{kind}" for name in FIGURES for kind in ["svg", "png"]] if FIRST_RETRO else []
    figures += [f"{D}/figures/leakage.{kind}" for kind in ["svg", "png"]] if FIRST_RETRO else []
    tables = [f"{D}/summary.csv", f"{D}/comparison.csv", f"{D}/leakage.csv"]
    return [*tables, *(f"{D}/{page}" for page in pages), *figures]


def parts():
    """Sections of the report that other stages write: leakage always, the others once they were made."""
    made = {path.as_posix() for path in Path(f"{D}/parts").glob("*.html")}
    return sorted(made | {f"{D}/parts/leakage.html"})


def compared(experiment):
    """Manifests of the losses that an experiment compares: of one RETRO run and its twin, or of all runs."""
    if experiment not in ["seeds", "neighbours", "database", "controls", "retrievers"]:
        return losses()
    runs = [f"{MEASURED}-s{seed}" for seed in CONFIG.seeds] if MEASURED else []
    wanted = {*runs, *(RUNS[run]["twin"] for run in runs)}
    usual = [path for path in losses() if path.removeprefix(f"{D}/runs/").partition("/")[0] in wanted]
    return usual + [
        f"{D}/runs/{run}/evaluation/{split}/{condition}/manifest.json"
        for run in runs
        for split in CONFIG.evaluate.splits[:1]
        for condition in conditions(
            experiment,
            EXPERIMENTS,
            RETRIEVAL_NAMES,
            used=RUNS[run]["train"]["neighbours_used"],
            saved=DATASET.neighbours.saved,
        )
    ]


def questions():
    """The file of questions, which the default config has none of."""
    if CONFIG.qa.questions is None:
        raise WorkflowError("qa.questions: the config names no questions. Take config/qa.yaml, or give a file.")
    return CONFIG.qa.questions


def answered():
    """Answers of every seed of the first RETRO run and its twin, fine-tuned (first) and not, in every mode of retrieval."""
    questions()
    first = RUNS[FIRST_RETRO or next(iter(RUNS))]
    names = [name.removesuffix(f"-s{first['seed']}") for name in (first["name"], first["twin"]) if name]
    runs = [f"{name}-s{seed}" for name in names for seed in CONFIG.seeds]
    modes_of = {run: ["none"] if RUNS[run]["architecture"] == "gpt" else ["on", "off"] for run in runs}
    tuned = CONFIG.qa.name
    answering = [(run, name) for run in runs for name in (f"{run}-{tuned}", run)]
    return [f"{D}/{tuned}/{name}.{mode}.jsonl" for run, name in answering for mode in modes_of[run]]


def stored(stage):
    """Manifests of the dataset that a stage made, and of those of its retrievals that were made so far."""
    own = [path for path in manifests() if path.startswith(f"{D}/{stage}/")]
    folders = [Path(RETRIEVALS.folder(name), stage) for name in RETRIEVALS.named]
    return own + [path.as_posix() for folder in folders for path in sorted(folder.glob("**/manifest.json"))]


def dense():
    """Names of the retrievals whose indexes are drawn, which the default config has none of."""
    if not DENSE:
        raise WorkflowError("retrievals: the config names none with an index. Take config/indexes.yaml, or name some.")
    return DENSE
