"""What `make run` runs: Snakemake on a config, shown as it goes (`retro.tools.watch`), then where to look.

    python -m retro.tools.run --config config/config.yaml --cores 2 [targets …]
    python -m retro.tools.run --config config/config.yaml -- --workflow-profile profiles/slurm    (options of snakemake)

A run that was killed leaves Snakemake's lock behind. Every Snakemake of this project records itself beside it
(`present`): host, process, and a sign of life now and then. If all that did are shown to be dead, the lock is taken
away and the run goes on where the killed one stopped. What is on another machine or in another container cannot be seen
from here, and counts as alive: to unlock is then the user's decision.
"""

import argparse
import atexit
import getpass
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from retro.base import command
from retro.base.artifacts import read_json, write_json
from retro.base.log import duration
from retro.base.stage import UserError
from retro.config import schema
from retro.config.targets import no_target
from retro.config.workflow import Workflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/config.yaml", help="config file")
    parser.add_argument("--cores", help="CPU cores to use (default: all)")
    parser.add_argument("--report", help="write Snakemake's own report of what was made to this file, .html or .zip")
    parser.add_argument("targets", nargs="*", default=[], help="targets (default: all); after --, options of snakemake")
    given = list(itertools.takewhile(lambda word: word != "--", sys.argv[1:]))
    options = parser.parse_args(given)
    options.targets += sys.argv[len(given) + 2 :]  # argparse would take them right behind the targets only
    settings = schema.load(options.config)
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # an environment not activated
    )
    targets = list(itertools.takewhile(lambda word: not word.startswith("-"), options.targets))
    for target in targets if Path("Snakefile").is_file() else ():
        if said := no_target(Workflow(settings), target, rules()):
            raise UserError(said)
    cache_elsewhere()
    elsewhere = any(word.startswith(("--profile", "--workflow-profile", "--executor")) for word in options.targets)
    cores = options.cores or (None if elsewhere else "all")  # of this machine; a cluster's profile counts jobs
    arguments = ["--configfile", options.config, *(["--cores", cores] if cores else []), *options.targets]
    if options.report:
        Path(options.report).parent.mkdir(parents=True, exist_ok=True)
        arguments += ["--report", options.report]
    if options.report or {"-n", "--dry-run", "--dryrun"} & set(options.targets):
        sys.exit(subprocess.run(["snakemake", *arguments]).returncode)
    if take_lock_away(options.config):
        print("A run in this folder was killed; its lock is taken away, and it goes on where it stopped.", flush=True)
    sys.exit(shown(Path(settings.results) / settings.dataset.name, options.config, arguments, not targets))


def shown(folder: Path, config: str, arguments: list[str], whole: bool) -> int:
    """Run Snakemake and show what it does; then the result of a `whole` run, or what went wrong. Its exit status."""
    from retro.tools import ended, watch  # not at the top: rules import this module, too
    from retro.tools.progress import Run

    run, log, logs = Run.of(folder), watch.log_file(folder), folder / "logs"
    print(f"{config} → {folder}\nall details: {log}", flush=True)
    status, number = watch.watch(arguments, run, log)
    took = time.time() - run.began
    if number and status:
        print(ended.stopped(run, took), file=sys.stderr)
        return 128 + number
    if status:
        print(ended.failed(run, logs, run.began, log, status), file=sys.stderr)
        return status
    parts = [f"{run.done} stages in {duration(round(took))}." if run.done else "Nothing to do: all is up to date."]
    if whole and (folder / "summary.csv").exists():
        parts += [ended.found(folder), ended.pages(folder), ended.next_commands(folder)]
    print("\n\n".join(filter(None, parts)) + ended.warned(logs, run.began))
    return 0


def rules() -> list[str]:
    """Names of the rules of this folder's Snakefile, read from its text: Snakemake takes seconds to begin."""
    texts = [path.read_text(encoding="utf-8") for path in [Path("Snakefile"), *sorted(Path("rules").glob("*.smk"))]]
    return re.findall(r"^ *(?:use rule \w+ as|rule) (\w+)", "\n".join(texts), re.MULTILINE)


def cache_elsewhere() -> None:
    """Let Snakemake and matplotlib keep their caches in this folder where nothing can be written below HOME."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home at all
        writable = False
    if not writable:
        here = Path(".snakemake/cache").resolve()
        os.environ.update(XDG_CACHE_HOME=str(here), MPLCONFIGDIR=str(here / "matplotlib"))
        print(f"HOME cannot be written to; caches lie in {here}", file=sys.stderr, flush=True)


LOCKS, RECORDS = Path(".snakemake/locks"), Path(".snakemake/running")
BEAT = 30.0  # seconds between signs of life
SNAKEMAKES = {"snakemake", "retro.tools.events"}  # programs, or modules after -m, that are one
SILENT = 600.0  # seconds without one, and without a lock, after which a record is of nobody


def place() -> dict[str, str]:
    """Where a process is seen from: the machine since its last start, and the container, which numbers its own."""
    found = {"host": socket.gethostname(), "boot": "", "numbering": ""}
    try:
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found["numbering"] = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: the host's name has to do
        pass
    return found


def started(pid: int) -> str:
    """When a process began, in ticks since the machine did: tells it from a later one. Empty where that is not told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def present(folder: Path) -> None:
    """Record this process, a Snakemake that works in `folder`, until it ends; not where that cannot be written."""
    records, pid, where = folder / RECORDS, os.getpid(), place()
    numbering = "".join(filter(str.isdigit, where["numbering"]))
    path = records / f"{where['host']}-{pid}-{numbering}-{where['boot'][:8]}.json"
    if path in _PRESENT:
        return
    try:
        write_json(path, {**where, "pid": pid, "started": started(pid), "user": getpass.getuser()})
    except (OSError, KeyError):
        return
    _PRESENT.add(path)
    atexit.register(path.unlink, missing_ok=True)
    threading.Thread(target=_beat, args=(path,), daemon=True).start()
    if not any((folder / LOCKS).glob("*")):  # then all who work here are at their beginning
        now = path.stat().st_mtime
        for other in records.glob("*.json"):
            if dead(_read(other)) or now - _last(other, now) > SILENT:
                other.unlink(missing_ok=True)


_PRESENT: set[Path] = set()


def _beat(path: Path) -> None:
    """Signs of life: the time of the record is set anew, by the clock of its file system."""
    while True:
        time.sleep(BEAT)
        try:
            os.utime(path)
        except OSError:
            return


def _read(path: Path) -> dict[str, Any]:
    """A record; of one that cannot be read, nothing is known."""
    try:
        facts = read_json(path)
        return facts if isinstance(facts, dict) else {}
    except (UserError, OSError):
        return {}


def _last(path: Path, now: float) -> float:
    """Time of the last sign of life; `now` if the record is gone meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return now


def dead(record: dict[str, Any]) -> bool:
    """Whether it is shown that the process of a record has ended: it would be seen from here, and is not."""
    pid = record.get("pid")
    if not isinstance(pid, int) or any(record.get(key) != value for key, value in place().items()):
        return False
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE or started(pid) != record.get("started")
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def take_lock_away(config: str) -> bool:
    """Remove what a killed Snakemake locked here; False if there is nothing. Raises `UserError` if one may live."""
    locks = sorted(LOCKS.glob("*"))
    if not locks:
        return False
    records = sorted(RECORDS.glob("*.json"))
    alive = [path for path in records if not dead(_read(path))]
    if alive or not records or _snakemake_is_running():
        raise UserError(
            f"{Path.cwd()}: locked by {', '.join(map(_told, alive)) or 'a Snakemake that is not known here'}. What "
            f"cannot be shown to have ended counts as running, on other machines and in other containers, too. Wait "
            f"for it, or end it there; or, if you know that it is gone, run `snakemake --unlock --configfile "
            f"{config}`, and then this again."
        )
    for path in [*locks, *records]:  # not `snakemake --unlock`: that takes seconds, in which another may begin
        path.unlink(missing_ok=True)
    return True


def _told(path: Path) -> str:
    """A record in words."""
    record = _read(path)
    silent = max(0.0, time.time() - _last(path, time.time()))
    who = f"process {record.get('pid', '?')} of {record.get('user', '?')} on {record.get('host', '?')}"
    return f"{who} (last sign of life {duration(silent)} ago)"


def _snakemake_is_running() -> bool:
    """Whether a Snakemake of this machine has this folder as its working folder, recorded or not."""
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()) == Path.cwd()
            if inside and any(Path(word).name in SNAKEMAKES for word in process.cmdline()[:3]):
                return True
        except (psutil.Error, OSError):
            continue
    return False


if __name__ == "__main__":
    command.run(main)
