"""EleutherAI's lm-eval on a trained run: any of its tasks, or a folder of your own, with live retrieval or without.

    make harness
    python -m retro.qa.harness --config results/open-book/config.json \
        --model results/open-book/runs/retro-s1/model.json --tasks NAME --include_path FOLDER --output scores.json

lm-eval is installed into a folder of its own, `harness` in the environment's, from envs/harness.lock.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from retro.base import command, provenance
from retro.base.artifacts import sha256, write_text
from retro.base.machine import best_device
from retro.base.stage import UserError, natural, whole
from retro.dataset.dataset import Dataset
from retro.dataset.named import model_json, recorded_config
from retro.evaluation.conditions import NONE, OFF, ON
from retro.qa.reading import Lookups
from retro.training.weights import load_model

FOLDER = Path(sys.prefix) / "harness"
KEPT = ("results", "groups", "n-shot", "n-samples", "versions", "higher_is_better", "configs")


def find() -> None:
    """Let Python import lm-eval from its folder; raises UserError where it is not installed."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"lm-eval cannot be imported ({error}). `make harness` installs it, or: pip install --no-deps "
            f"--target {FOLDER} -r envs/harness.lock"
        ) from None


def open_run(config: Path, path: Path, retrieval: bool, batch_size: int, threads: int) -> tuple[Any, dict[str, Any]]:
    """lm-eval's view of a trained run, and who it is: run, retrieval (on, off; none for a gpt), manifests' sha256."""
    from retro.qa.lm_eval_model import RetroLM

    dataset = Dataset.open(config)
    model, run = load_model(path, dataset, best_device())
    mode = NONE if not run.retro else ON if retrieval else OFF
    lookups = Lookups(dataset, run, threads) if mode == ON else None
    who = {"run": run.name, "retrieval": mode, "model": sha256(path), "config": sha256(config)}
    return RetroLM(model, run, dataset, lookups, batch_size), who


def evaluate(model: Any, tasks: list[str], include: list[Path], shots: int | None, limit: int | None) -> dict[str, Any]:
    """lm-eval's results. Raises UserError for a task it does not know, and for a package that a task lacks."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for folder in include:
        if not folder.is_dir():
            raise UserError(f"--include_path {folder}: no such folder. Give one that holds tasks' .yaml files.")
    for defaults in (False, True):  # reading lm-eval's own tasks takes a quarter of a minute
        manager = TaskManager(include_path=[str(folder.resolve()) for folder in include], include_defaults=defaults)
        if not (unknown := [name for name in tasks if not manager.match_tasks([name])]):
            break
    else:
        where = ", ".join(map(str, include)) or "no --include_path"
        raise UserError(
            f"--tasks {' '.join(unknown)}: neither one of lm-eval's tasks nor of {where}. Give names of these."
        )
    try:
        return simple_evaluate(
            model, tasks=tasks, num_fewshot=shots, limit=limit, task_manager=manager, bootstrap_iters=1000
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f"a task needs the package {error.name}, which envs/harness.lock leaves out. Install it beside lm-eval: "
            f"pip install --no-deps --target {FOLDER} {error.name}"
        ) from None


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each task and metric, with its standard error."""
    found = []
    for task, scores in results.items():
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            if not isinstance(value, float | int) or metric.endswith("_stderr") or not filtered:
                continue
            error = scores.get(f"{metric}_stderr,{filtered}")
            shown = f" ± {error:.4f}" if isinstance(error, float) else ""
            found.append(f"{task}, {metric}{'' if filtered == 'none' else f' ({filtered})'}: {value:.4f}{shown}")
    return found


def as_text(value: object) -> str:
    """What lm-eval puts into its results beside JSON: functions, arrays."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=recorded_config, help="a dataset, by name or folder")
    parser.add_argument("--model", required=True, type=model_json, help="a run, by name, folder or model.json")
    parser.add_argument("--tasks", required=True, nargs="+", help="lm-eval's names of tasks")
    parser.add_argument("--include_path", "--include-path", nargs="*", default=[], type=Path, help="folders of tasks")
    parser.add_argument("--no-retrieval", action="store_true", help="a RETRO run without neighbours")
    parser.add_argument("--num_fewshot", "--num-fewshot", type=natural, help="examples a prompt (the task's own)")
    parser.add_argument("--limit", type=whole, help="only so many examples a task")
    parser.add_argument("--batch_size", "--batch-size", type=whole, default=8, help="windows a forward pass (8)")
    parser.add_argument("--threads", type=whole, default=1, help="CPU threads (1)")
    parser.add_argument("--output", type=Path, help="JSON of the scores to write")
    parser.add_argument("--samples", type=Path, help="JSON lines to write: every example, its requests and scores")
    options = parser.parse_args()
    for name in ("limit", "batch_size", "threads"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: wanted at least 1.")
    find()
    torch.set_num_threads(options.threads)
    model, who = open_run(options.config, options.model, not options.no_retrieval, options.batch_size, options.threads)
    found = evaluate(model, options.tasks, options.include_path, options.num_fewshot, options.limit)
    if options.output:
        facts = {**who, "limit": options.limit, "lm_eval": provenance.version("lm_eval")}
        facts |= {key: found[key] for key in KEPT if key in found}
        write_text(options.output, json.dumps(facts, indent=1, ensure_ascii=False, default=as_text) + "\n")
    if options.samples:
        samples = [{"task": task, **each} for task, part in found["samples"].items() for each in part]
        write_text(options.samples, "".join(json.dumps(x, ensure_ascii=False, default=as_text) + "\n" for x in samples))
    for line in lines(found["results"]):
        print(f"{who['run']}, retrieval {who['retrieval']}: {line}")


if __name__ == "__main__":
    command.run(main)
