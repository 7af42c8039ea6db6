"""Recompute a seeded share of stored artifacts with the code that is here and compare every bit.

    python -m retro.validate.recompute --manifests results/open-book/chunks/*/manifest.json --output report.json

What is recomputed is what the manifest records: its settings, its inputs. Nothing but the report is written. Exit
status 0 also where something differs: `retro.validate.summary` judges the reports of all stages.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from retro.base import provenance
from retro.base.artifacts import Manifest, read_manifest, sha256, write_json
from retro.base.stage import UserError, run
from retro.validate import database, tokens
from retro.validate.sample import Difference, Sample

CHECKS: dict[str, Callable[[Manifest, Sample, int], Iterator[Difference | None]]] = {
    "retro.corpus.tokenize": tokens.differences,
    "retro.database.chunk": database.chunk_differences,
    "retro.database.assemble": database.lists,
    "retro.database.embed": database.embedding_differences,
    "retro.retrieval.index": database.index_differences,
    "retro.retrieval.neighbours": database.neighbour_differences,
}


def reasons(manifest: Manifest) -> list[str]:
    """What may explain a difference: code, versions or inputs that are not those the artifact was made with."""
    facts, found = manifest.facts, []
    if provenance.digest(facts["stage"]) != facts["fingerprint"]:
        found.append(f"made by other code of {facts['stage']} than is here now")
    for package, version in facts["versions"].items():
        here = provenance.version(package)
        if here != version:
            found.append(f"made with {package} {version}, here is {here}")
    for name, digest in facts["inputs"].items():
        path = manifest.folder / name
        if not path.exists() or sha256(path) != digest:
            found.append(f"made from another {path}")
    return found


def recompute(path: Path, fraction: float, seed: int, threads: int) -> dict:
    """The report on one artifact: what was recomputed of it, the first difference (None: equal) and its reasons."""
    started, manifest, told = time.monotonic(), read_manifest(path), None
    stage, sample = manifest.facts["stage"], Sample(fraction, seed, manifest)
    if stage not in CHECKS:
        raise UserError(f"{path}: what {stage} makes cannot be recomputed in part; leave it out.")
    try:
        found = next((each for each in CHECKS[stage](manifest, sample, threads) if each), None)
        told = str(found) if found else None
    except UserError as error:
        told = str(error)
    except Exception as error:  # of what is stored wrongly anything may come
        told = f"{path}: what it was made from cannot be worked with ({type(error).__name__}: {error})"
    return {
        "artifact": str(path.parent),
        "stage": stage,
        "recomputed": sample.told,
        "difference": told,
        "reasons": reasons(manifest) if told else [],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifests", required=True, nargs="+", type=Path, help="manifests of artifacts")
    parser.add_argument("--fraction", type=float, default=0.05, help="share of the blocks, at least one")
    parser.add_argument("--seed", type=int, default=1, help="decides which blocks")
    parser.add_argument("--output", required=True, type=Path, help="report to write, JSON")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    options = parser.parse_args()
    reports = []
    for path in options.manifests:
        report = recompute(path, options.fraction, options.seed, options.threads)
        reports.append(report)
        print(f"{report['artifact']}: {report['difference'] or 'equal'} ({report['recomputed']})", file=sys.stderr)
    facts = {"fraction": options.fraction, "seed": options.seed, "versions": provenance.versions()}
    write_json(options.output, {**facts, "artifacts": reports})


if __name__ == "__main__":
    run(main)
