"""What Snakemake would run for a changed config, from what it records of every job, without starting it anew."""

from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from snakemake import parser
from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    ExecutionSettings,
    GroupSettings,
    OutputSettings,
    Quietness,
    RemoteExecutionSettings,
    ResourceSettings,
    SchedulingSettings,
)

# Rule, named `retrieval_<rule>` where it works for a named retrieval, `gpt_<rule>` where for a model without retrieval
# and `retro_record` where it records what a training with it reads; and outputs.
Job = tuple[str, tuple[str, ...]]


def _name(job: Any) -> str:
    if job.wildcards_dict.get("retrieval"):
        return f"retrieval_{job.rule.name}"
    gpt = any(str(path).endswith("/config-gpt.json") for path in [*job.input, *job.output])
    cut = "gpt" if gpt and job.rule.name != "all" else job.wildcards_dict.get("cut", "").removeprefix("-")
    return f"{cut}_{job.rule.name}".removeprefix("_")


TRANSLATED: dict[tuple, tuple] = {}


def parse(file, workflow, linemap: dict[int, int], rulecount: int = 0) -> tuple[str, int]:
    """Snakemake's translation of a file into Python, of each file once: it does not depend on the config."""
    path = file.get_path_or_uri(secret_free=False)
    key = (path, Path(path).stat().st_mtime_ns, rulecount)
    if key not in TRANSLATED:
        lines: dict[int, int] = {}
        TRANSLATED[key] = (*parser.parse(file, workflow, lines, rulecount=rulecount), lines)
    code, rulecount, lines = TRANSLATED[key]
    linemap |= lines
    return code, rulecount


@dataclass
class Plan:
    """Every job of a workflow: what Snakemake compares between runs (params, inputs, shell command), and what
    depends on it.
    """

    records: dict[Job, Any]
    dependants: dict[Job, set[Job]]

    @classmethod
    def of(cls, folder: Path, config: dict[str, Any], targets: set[str]) -> "Plan":
        """The jobs for `targets` in the project `folder`."""
        settings = OutputSettings(dryrun=True, quiet={Quietness.ALL})
        with patch("snakemake.workflow.parse", parse), chdir(folder), SnakemakeApi(settings) as api:
            given = api.workflow(
                resource_settings=ResourceSettings(cores=2),
                config_settings=ConfigSettings(config=config),
                snakefile=folder / "Snakefile",
                workdir=folder,
            )
            given.dag(DAGSettings(targets=targets, forceall=True))
            workflow = given._workflow
            workflow.execution_settings, workflow.group_settings = ExecutionSettings(), GroupSettings()
            workflow.scheduling_settings, workflow.remote_execution_settings = (
                SchedulingSettings(),
                RemoteExecutionSettings(),
            )
            workflow._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True, nolock=True)
            workflow._build_dag()
            kept = workflow.persistence
            found = {job: (_name(job), tuple(sorted(map(str, job.output)))) for job in workflow.dag.jobs}
            records = {name: (kept._params(job), kept._input(job), kept._code(job.rule)) for job, name in found.items()}
            dependants = {name: {found[each] for each in workflow.dag.depending[job]} for job, name in found.items()}
        return cls(records, dependants)

    def after(self, before: "Plan") -> set[str]:
        """Rules that run when everything of `before` is finished: changed and new jobs, and all that follows."""
        waiting = [job for job, record in self.records.items() if before.records.get(job) != record]
        seen: set[Job] = set()
        while waiting:
            job = waiting.pop()
            if job not in seen:
                seen.add(job)
                waiting.extend(self.dependants[job])
        return {rule for rule, outputs in seen if outputs}
