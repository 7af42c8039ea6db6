"""What a config will take: chunks, disk, memory, floating-point operations and hours.

    python -m retro.planning.plan config/config.yaml
    python -m retro.planning.plan --preset 4b --database-tokens 300e9 --gpus 256
    python -m retro.planning.plan config/config.yaml --check

Counts come from the recorded artifacts where they exist, else from the sources. `--check` sets the estimates beside the
files and the memory of the finished run in the config's results folder.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from retro.base import command
from retro.base.artifacts import read_text
from retro.base.log import table
from retro.base.names import SPLITS, TRAIN
from retro.base.stage import UserError, above, natural, whole
from retro.config import schema
from retro.config.checks import doubts
from retro.config.schema import Config
from retro.config.workflow import Workflow
from retro.planning import counts, estimates
from retro.planning.estimates import compare
from retro.training import foreign
from retro.training.samples import FEW, MANY

LARGE = 100_000_000  # parameters from which it is worth telling how a model fits into GPUs


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError


def hours(flops: float, speed: float) -> str:
    """Hours at a speed in operations a second."""
    return f"{flops / speed / 3600:,.3g}" if speed else "-"


def speeds(options: argparse.Namespace, work: str = "training") -> dict[str, float]:
    """Operations a second that are reached at a kind of work, on all CPU cores and on all GPUs."""
    each = options.gpu_search_tflops if work == "search" else options.gpu_tflops * options.utilisation
    found = {"cpu": options.cores * options.core_gflops * 1e9, "gpu": options.gpus * each * 1e12}
    if options.measured and (rate := options.measured.rates.get(work)):
        kind = "gpu" if options.measured.device == "cuda" else "cpu"
        found[kind] = rate * (options.gpus if kind == "gpu" else options.cores)
    return found


@dataclass(frozen=True)
class Measured:
    """Operations a second that a GPU, or a CPU's core, was seen to reach, by work: a file of `make bench-gpu`."""

    path: Path
    device: str
    name: str
    small: bool
    rates: dict[str, float]

    @classmethod
    def read(cls, text: str) -> "Measured":
        """From the file at a path. Raises UserError for another file."""
        path, best = Path(text), dict[str, float]()
        try:
            facts = json.loads(read_text(path))
            share = 1 if facts["device"] == "cuda" else facts["threads"]
            for kind, wanted, key, works in MEASURED:
                rates = [row[key] / share for row in facts[kind] if row["name"].startswith(wanted)]
                best |= dict.fromkeys(works, max(rates)) if rates else {}
            return cls(path, facts["device"], facts["name"], facts["small"], best)
        except (OSError, UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"--measured {path}: not what `make bench-gpu` writes ({type(error).__name__}: {error}). Give its JSON."
            ) from None

    def told(self) -> str:
        """What was measured, in a line."""
        rates = ", ".join(f"{work} {rate / 1e12:,.3g}" for work, rate in self.rates.items())
        return f"Measured, not assumed ({self.path}, {self.name}), in TFLOP/s: {rates}."


# Which rows of a measurement say how fast a work is: their kind, the beginning of their names, the key, the works.
MEASURED = (
    ("train", "retro", "flops_per_s", ("training", "evaluation")),
    ("embed", "MiniLM", "flops_per_s", ("embedding",)),
    ("index", "", "train_flops_per_s", ("index",)),
    ("index", "PQ", "flops_per_s", ("search",)),
)


def spent(plan: estimates.Plan, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Hours of each work by what it waits for: cpu, gpu (where there are some) and disk."""
    found = {}
    for name, moved in plan.moved.items():
        rates = speeds(options, name)
        own = {kind: plan.flops[name] / rate / 3600 for kind, rate in rates.items() if rate and name in plan.flops}
        own = own or {"cpu": plan.counts.text / (options.tokenize * options.cores * 1e6) / 3600}
        found[name] = own | {"disk": moved / (options.disk * 1e6) / 3600}
    return found


def binding(hours: dict[str, float]) -> tuple[str, float]:
    """What a work waits for, and hours: reading and computing go on together, on GPUs where they are."""
    kinds = [kind for kind in hours if kind != "cpu" or "gpu" not in hours]
    return max(((kind, hours[kind]) for kind in kinds), key=lambda pair: pair[1])


def told(hours: float) -> str:
    """Hours as a person says them."""
    for unit, size, until in (("years", 8766.0, None), ("days", 24.0, 48.0), ("hours", 1.0, 2.0)):
        if hours >= (until or size):
            return f"{hours / size:,.0f} {unit}" if hours >= 100 * size else f"{hours / size:.3g} {unit}"
    return f"{max(hours * 60, 1):.0f} min"


def judged(plan: estimates.Plan, settings: Config, options: argparse.Namespace) -> list[str]:
    """What to make of the plan: how long and what binds, how often the corpus is read, what fits and what does not."""
    works = spent(plan, options)
    longest = max(works, key=lambda name: binding(works[name])[1])
    kind, most = binding(works[longest])
    total = sum(binding(each)[1] for each in works.values())
    machine = f"{options.gpus} GPU{'s' * (options.gpus > 1)}" if options.gpus else f"{options.cores} cores"
    waits = {"disk": "waits for the disks", "cpu": "waits for the cores", "gpu": "waits for the GPUs"}[kind]
    lines = [f"{told(total)} on {machine}; {longest} takes {most / total:.0%} of it and {waits}."]
    corpus = plan.counts.splits[SPLITS[TRAIN]] * settings.dataset.chunk_length  # padding included, as in samples
    tokens, samples = max(each.tokens for each in plan.models), settings.dataset.samples
    if corpus and not FEW <= (epochs := tokens / corpus) <= MANY:
        change, wanted = ("raise", 1) if epochs < FEW else ("lower", MANY)
        number = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"
        lines.append(
            f"Training reads its corpus {number} times: {change} dataset.samples.train_samples "
            f"({wanted * corpus / samples.seq_length:,.0f} samples read it {wanted:g} times)."
        )
    jobs = {f"train {each.name}": each.memory for each in plan.models} | plan.memory
    job, need = max(jobs.items(), key=lambda pair: pair[1])
    train = max(each.memory for each in plan.models)
    if options.gpus:
        room = 0.9 * options.gpu_memory * 1e9
        shared = [fit for each in plan.models for fit in each.fits if fit.micro_batch]
        ways = f"; shared by {shared[0].gpus} it does (train.parallel.fsdp)" if shared and train > room else ""
        lines.append(
            f"The largest model {'fits' if train <= room else 'does not fit'} into a GPU of {options.gpu_memory:g} GB: "
            f"a micro batch wants {size(train)}{ways or ('' if train <= room else '; lower train.micro_batch_size')}."
        )
    elif need > options.memory * 1e9:
        lines.append(f"{job} wants {size(need)} of memory, of {options.memory:g} GB: it does not fit.")
    disk, free = sum(plan.disk.values()), options.free_disk * 1e9
    lines.append(f"Disk: {size(disk)}, {'of' if disk <= free else 'more than the'} {size(free)} that are free.")
    return lines


def facts(plan: estimates.Plan, options: argparse.Namespace) -> dict:
    """Everything the table says, as numbers in bytes, operations and hours."""
    return {
        "counts": {**vars(plan.counts), "chunks": plan.counts.chunks, "padding_share": plan.padding},
        "index": plan.factory,
        "disk_bytes": {**plan.disk, "total": sum(plan.disk.values())},
        "memory_bytes": {**plan.memory, **{f"train/{model.name}": model.memory for model in plan.models}},
        "flops": plan.flops,
        "moved_bytes": plan.moved,
        "hours": (hours := spent(plan, options)),
        "binding": {name: binding(each)[0] for name, each in hours.items()},
        "total_hours": sum(binding(each)[1] for each in hours.values()),
        "models": [asdict(model) for model in plan.models],
    }


def begun(settings: Config) -> list[str]:
    """A line for each run that begins with a folder of Hugging Face's: what its decoder is."""
    runs = [run for run in settings.models().values() if run.start and foreign.is_foreign(run.start)]
    shapes = [(run.name, run.start, run.model) for run in runs]
    return [
        f"{name} begins with {start}: {s.layers} layers x {s.width} x {s.heads} heads ({s.kv_head_count} of keys and "
        f"values), {s.norm}, {s.activation} of {s.ffn_dim}, positions {s.positions}."
        for name, start, s in shapes
    ]


def text(plan: estimates.Plan, settings: Config, options: argparse.Namespace) -> str:
    """The plan for a reader: what to make of it, then the figures."""
    found, speed, works = plan.counts, speeds(options), spent(plan, options)
    total = {name: binding(each)[1] for name, each in works.items()}
    longest = max(total, key=lambda name: total[name])
    splits = ", ".join(f"{name} {chunks:,.0f}" for name, chunks in found.splits.items() if chunks)
    lines = [
        *judged(plan, settings, options),
        "",
        f"Counts, {found.told}",
        f"  {found.documents:,.0f} documents, {found.tokens:,.0f} tokens, vocabulary {found.vocab_size:,}",
        f"  {found.chunks:,.0f} chunks ({splits}), {plan.padding:.1%} padding; {found.database:,.0f} in the database",
        f"  index {plan.factory} over {plan.width} dimensions",
        "",
        table([["Disk", ""], *([name, size(count)] for name, count in plan.disk.items()),
               ["total", size(sum(plan.disk.values()))]]),
        "",
        table([["Memory of a job", ""], *([name, size(count)] for name, count in plan.memory.items()),
               *([f"train {model.name}", size(model.memory)] for model in plan.models)]),
        "",
        table([["Work", "operations", "moved", "hours, CPU", "hours, GPU", "hours, disks", "binds"],
               *([name, f"{plan.flops[name]:.3g}" if name in plan.flops else "-", size(plan.moved[name]),
                  *(f"{each[kind]:,.3g}" if kind in each else "-" for kind in ("cpu", "gpu", "disk")),
                  binding(each)[0]] for name, each in works.items()),
               ["in all", "", "", "", "", f"{sum(total.values()):,.3g}", longest]]),
        "",
        table([["Run", "parameters", "operations a token", "tokens", "hours, CPU", "hours, GPU"],
               *([each.name, f"{each.parameters:,}", f"{each.flops_per_token:.4g}", f"{each.tokens:.3g}",
                  hours(each.flops_per_token * each.tokens, speed["cpu"]),
                  hours(each.flops_per_token * each.tokens, speed["gpu"])] for each in plan.models)]),
        "",
        f"CPU: {options.cores} cores x {options.core_gflops:g} GFLOP/s. GPU: {options.gpus} x {options.gpu_tflops:g} "
        f"TFLOP/s x {options.utilisation:g} reached, in search {options.gpu_search_tflops:g} TFLOP/s each.",
        f"Disks: {options.disk:g} MB/s. Tokenizing: {options.tokenize:g} MB/s a core. In all: one work after another, "
        "each by what binds it, and the longest.",
        *([options.measured.told()] if options.measured else []),
        "Memory of training: one process that holds the whole model and one micro batch.",
    ]  # fmt: skip
    lines += begun(settings)
    large = [model for model in plan.models if model.parameters >= LARGE]
    if options.gpus and large:
        lines += [
            "",
            f"A training step on GPUs of {options.gpu_memory:g} GB that share the model (FSDP):",
            fitting(large),
        ]
    return "\n".join(lines)


def fitting(models: list[estimates.Model]) -> str:
    """What a GPU holds, for each number of GPUs."""
    rows = [["Bytes of a GPU", "micro batch", "state", "gathered", "activations", "total"]]
    for model in models:
        for fit in model.fits:
            again = ", layers recomputed" if fit.recompute == "layers" else ""
            parts = [fit.step.state, fit.step.gathered, fit.step.activations, fit.step.total]
            size_of = str(fit.micro_batch or "none fits")
            rows.append([f"{model.name}, {fit.gpus} GPUs{again}", size_of, *map(size, parts)])
    return table(rows)


def open_config(options: argparse.Namespace) -> Config:
    """The config named, or that of a preset alone, whose source is then only a name."""
    if options.config and options.preset:
        raise UserError("a config and --preset: give one of them; a config names its preset itself.")
    if options.config:
        return schema.load(options.config)
    if not options.preset or not options.database_tokens:
        raise UserError("nothing to plan: name a config, or --preset together with --database-tokens.")
    dataset = {"name": options.preset, "sources": {"corpus": {"path": "corpus"}}}
    return schema.parse({"preset": options.preset, "dataset": dataset}, f"--preset {options.preset}")


def count(settings: Config, options: argparse.Namespace) -> counts.Counts:
    """The best counts there are."""
    if options.database_tokens:
        dataset = settings.dataset
        return counts.assumed(
            options.database_tokens, dataset.chunk_length, options.vocab_size, options.document_tokens
        )
    path = Path(settings.results) / settings.dataset.name / "config.json"
    return counts.recorded(path) if path.is_file() and not options.sample else counts.sampled(settings)


def arguments() -> argparse.ArgumentParser:
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=shown)
    parser.add_argument("config", nargs="?", help="config file")
    parser.add_argument("--preset", help="plan a file of config/models alone, such as 857m, 2b or 4b")
    parser.add_argument("--database-tokens", type=above, help="assume a corpus of so many tokens, such as 300e9")
    parser.add_argument("--document-tokens", type=above, default=1000, help="tokens a document of that corpus")
    parser.add_argument("--vocab-size", type=whole, default=50304, help="vocabulary of that corpus")
    parser.add_argument("--sample", action="store_true", help="count from the sources even if artifacts exist")
    parser.add_argument("--cores", type=whole, default=2, help="CPU cores")
    parser.add_argument("--core-gflops", "--cores-gflops", type=above, default=20, help="GFLOP/s a core reaches")
    parser.add_argument("--gpus", type=natural, default=8, help="GPUs")
    parser.add_argument("--gpu-tflops", type=above, default=989, help="peak TFLOP/s of a GPU (H100, bf16, dense)")
    parser.add_argument("--utilisation", type=above, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--gpu-memory", type=above, default=80, help="GB of a GPU, of which nine tenths are planned")
    parser.add_argument("--fsdp", type=whole, nargs="+", default=[8, 16], help="GPUs that share a model")
    parser.add_argument(
        "--gpu-search-tflops",
        type=above,
        default=1.3,
        help="TFLOP/s, or look-ups, a GPU reaches in search (memory-bound)",
    )
    parser.add_argument("--measured", type=Measured.read, help="speeds that `make bench-gpu` measured: its JSON")
    parser.add_argument("--disk", type=above, default=500, help="MB/s of the disks in all, read and written (an SSD)")
    parser.add_argument("--tokenize", type=above, default=2.6, help="MB/s of text a core tokenizes (docs/scale.md)")
    parser.add_argument("--memory", type=above, default=round(psutil.virtual_memory().total / 1e9), help="GB of memory")
    free = round(shutil.disk_usage(".").free / 1e9, 1)
    parser.add_argument("--free-disk", type=above, default=free, help="GB of disk that are free")
    parser.add_argument("--json", action="store_true", help="numbers as JSON")
    parser.add_argument("--check", action="store_true", help="compare with the finished run of the config")
    return parser


def main() -> None:
    options = arguments().parse_args()
    settings = open_config(options)
    Workflow(settings)  # refuses a model to begin with that is not there
    for line in doubts(settings, settings.models()):
        print(f"warning: {line}", file=sys.stderr)
    if options.measured and options.measured.small:
        print(f"warning: {options.measured.path} was measured at toy sizes; its speeds say nothing.", file=sys.stderr)
    plan = estimates.make(settings, count(settings, options), options.fsdp, options.gpu_memory * 1e9)
    rows = compare(plan, Path(settings.results) / settings.dataset.name) if options.check else []
    if options.json:
        print(json.dumps({**facts(plan, options), **({"check": rows} if rows else {})}, indent=1))
        return
    print(text(plan, settings, options))
    if rows:
        head = ["Check", "estimated", "found", "ratio"]
        cells = [[row["what"], size(row["estimated"]), size(row["found"]), f"{row['ratio']:.2f}"] for row in rows]
        print("\n" + table([head, *cells]))


if __name__ == "__main__":
    command.run(main)
