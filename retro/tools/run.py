"""What `make run` runs: Snakemake on a config, then where to look.

    python -m retro.tools.run --config config/config.yaml --cores 2 [targets …]

A run that was killed leaves Snakemake's lock behind. If no Snakemake works in this folder any more, the lock is
taken away and the run goes on where the killed one stopped.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil

from retro.base import stage
from retro.base.names import ALL
from retro.config import schema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/config.yaml", help="config file")
    parser.add_argument("--cores", default="all", help="CPU cores to use")
    parser.add_argument("targets", nargs="*", default=[], help="targets of the Snakefile (default: all)")
    options = parser.parse_args()
    settings = schema.load(options.config)
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # an environment not activated
    )
    cache_elsewhere()
    command = ["snakemake", "--configfile", options.config, "--cores", str(options.cores)]
    if any(Path(".snakemake/locks").glob("*")) and not _snakemake_is_running():
        print("A run in this folder was killed; taking its lock away and going on where it stopped.", flush=True)
        subprocess.run([*command, "--unlock", "--quiet", "all"], check=True)
    folder, begin = Path(settings.results) / settings.dataset.name, time.time()
    status = subprocess.run([*command, *options.targets]).returncode
    if status == 0 and not options.targets:
        print(found(folder))
    elif status:
        print(failed(folder / "logs", begin), file=sys.stderr)
    sys.exit(status)


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


def _snakemake_is_running() -> bool:
    """Whether a Snakemake of this machine has this folder as its working folder."""
    for process in psutil.process_iter():
        try:
            inside = Path(process.cwd()) == Path.cwd()
            if inside and any(Path(word).name == "snakemake" for word in process.cmdline()[:3]):
                return True
        except (psutil.Error, OSError):
            continue
    return False


def failed(logs: Path, begin: float) -> str:
    """The messages that stages of this run ended with: Snakemake prints much after them."""
    lines = []
    for path in sorted(logs.rglob("*.log")):
        if path.stat().st_mtime >= begin:
            text = path.read_text(encoding="utf-8", errors="replace").splitlines()
            lines += [f"  {path}: {line}" for line in text if line.startswith("error: ")]
    said = "\n".join(["\nWhat went wrong:", *lines]) if lines else "\nSnakemake's message above says what went wrong."
    return f"{said}\nMessages and their ways out: docs/troubleshooting.md. Then run the same command again."


def found(folder: Path) -> str:
    """The figures in short, and the pages to open."""
    summary = pd.read_csv(folder / "summary.csv")
    rows = summary[summary["source"] == ALL][["run", "retrieval", "split", "bits_per_byte", "perplexity"]]
    pages = [folder / name for name in ["report.html", "neighbours.html", "summary.csv"]]
    listed = "".join(f"\n  {page}" for page in pages if page.exists())  # the first two need a RETRO run with a twin
    return f"\n{rows.to_string(index=False)}\n\nOpen in a browser:{listed}"


if __name__ == "__main__":
    stage.run(main)
