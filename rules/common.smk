"""The config, and the few helpers that rules use.

`section` hands a stage its own settings as canonical JSON; `code` is a digest of the Python code the stage can run.
Both are params, so Snakemake reruns a rule when either changes. What the config asks for says
`retro.config.workflow`, where artifacts lie `retro.base.names`; everything else lives in the package, too.
"""

import json
import os
import shlex
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

import retro.config.workflow  # by its full name: a Snakefile's names are Snakemake's own, which has a Workflow
from retro.base import names
from retro.base.artifacts import canonical
from retro.base.names import BM25_FILES, LISTED
from retro.base.provenance import digest
from retro.base.stage import UserError
from retro.config.checks import doubts
from retro.config.schema import files_of, from_snakemake
from retro.config.targets import no_target
from retro.config.workflow import DRAWN, TABLED
from retro.corpus.readings import Contents
from retro.corpus.settings import TOKENIZER_FILES
from retro.evaluation.conditions import usual
from retro.experiments.catalogue import CATALOGUE
from retro.report import started
from retro.tools.run import present
from retro.training.settings import refuse_absent

try:
    CONFIG = from_snakemake(config, workflow.configfiles)
    WORKFLOW = retro.config.workflow.Workflow(CONFIG)
    FILES_OF = {name: [] for name in CONFIG.dataset.sources}
    if not WORKFLOW.packed:
        FILES_OF = {
            name: files_of(name, each, CONFIG.dataset.on_error) for name, each in CONFIG.dataset.sources.items()
        }
except UserError as error:
    raise WorkflowError(str(error))

if workflow.is_main_process and not workflow.deployment_settings.deployment_method:  # else they are in there
    try:
        refuse_absent(name for run in WORKFLOW.runs.values() for name in run.train.trackers)
    except UserError as error:
        raise WorkflowError(str(error))
if workflow.is_main_process:
    present(Path.cwd())  # who holds Snakemake's lock: `make run` wants to know
    for line in doubts(CONFIG, WORKFLOW.runs):
        print(f"warning: {line}", file=sys.stderr)
DATASET, RESOURCES, EXPERIMENTS = CONFIG.dataset, CONFIG.resources, CONFIG.experiments
D, SOURCES, RUNS, RETRIEVALS = WORKFLOW.folder, WORKFLOW.sources, WORKFLOW.runs, WORKFLOW.retrievals
RECORDED = WORKFLOW.path(names.RECORDED, cut="")  # what most jobs read of it: names.CUTS are for trainings
CONTENTS = Contents(Path(CONFIG.results, ".contents.json"))
OTHERS = [re.escape(names.prefix(name)) for name in RETRIEVALS.named]  # than the dataset's own retrieval
TEMPLATES = sorted(os.path.relpath(path) for path in Path(retro.__path__[0], "report", "templates").iterdir())


wildcard_constraints:
    cut="|".join(["()", *filter(None, names.CUTS)]),
    source="|".join(map(re.escape, SOURCES)),
    split="|".join(LISTED),
    retrieval="|".join([*([] if WORKFLOW.packed else ["()"]), *OTHERS]) or "(?!)",
    run="|".join(map(re.escape, RUNS)),
    shard=r"\d+-of-\d+",
    mode=r"[A-Za-z0-9][A-Za-z0-9._+-]*(?<!\+copy|.\+knn)",  # a condition: retro.evaluation.conditions
    mixed=r"[A-Za-z0-9][A-Za-z0-9._+-]*\+copy",  # one with a copier
    knn=r"none(\+k\d+)?\+knn",


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


def content(files):
    """A param that changes exactly when what `files` hold does: they come from elsewhere, and times may lie."""
    return CONTENTS.digest(files)


def elsewhere(files, manifest=None):
    """Inputs made elsewhere, whose `content` is a param beside them: their time stamps do not count.

    Without Snakemake's own records there are no params to compare. Then, where the manifest that was made from them
    tells of other contents, their time counts.
    """
    return files if manifest and CONTENTS.differ(files, manifest) else ancient(files)


def named(wildcards):
    """The retrieval that a job is part of; '' is the dataset's own."""
    return names.retrieval(wildcards.retrieval)


def beside_training(threads):
    """At most so many threads that a core is left for the GPT's training, which waits for no embeddings."""
    cores = workflow.resource_settings.cores if workflow.is_main_process else None  # None: of a cluster
    return min(threads, max(1, cores - 1)) if cores else threads


def shards(folder, suffix="json"):
    """What the shard jobs of a stage leave in its folder for the job that joins them; nothing for one shard."""
    files = [f"{folder}/shards/{shard}.{suffix}" for shard in WORKFLOW.shards]
    return lambda wildcards: [] if "shard" in wildcards.keys() else [file.format(**wildcards) for file in files]


def part(wildcards, input, output):
    """The flags of a job that makes one shard, or of the one that joins them, and does it all where there are none."""
    if "shard" in wildcards.keys():
        return ["--shard", wildcards.shard, "--output", output.shard]
    return ["--shards", *input.shards, "--output", output.manifest]


def launch():
    """How a training is started: on several nodes it starts the container itself, as in there no srun is."""
    options = f"--nodes {RESOURCES.nodes} --processes {RESOURCES.processes}"
    deployment = workflow.deployment_settings
    if RESOURCES.nodes > 1 and any(method.name == "APPTAINER" for method in deployment.deployment_method):
        inside = f"apptainer exec --home {shlex.quote(os.getcwd())} {deployment.apptainer_args} {IMAGE}"
        options += f" --inside {shlex.quote(inside)}"
    return options


def keep_packed(*made):
    """Take these rules away where the dataset was opened from a pack: what they made is there, its sources are not."""
    for name in made if WORKFLOW.packed else ():
        del workflow._rules[name]  # Snakemake has no other way: those that it may run are set after the rules are read
        for each in workflow.rules:
            each.dependencies = {file: maker for file, maker in each.dependencies.items() if maker != name}


def refuse_unknown_targets():
    """Answer a target that is none with those that there are: Snakemake names only the wrong one."""
    program = Path(sys.argv[0])
    started = program.parent if program.name == "__main__.py" else program  # with python -m, without
    if not workflow.is_main_process or started.name != "snakemake":
        return  # by its API
    from snakemake.cli import get_argument_parser  # Snakemake keeps what it parsed to itself until the rules are read

    known = [rule.name for rule in workflow.rules]
    for target in get_argument_parser().parse_args(sys.argv[1:]).targets:
        if said := no_target(WORKFLOW, str(target), known):
            raise WorkflowError(said)
