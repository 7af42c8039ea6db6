"""Recompute a seeded share of stored artifacts with the code that is here and compare every bit.

    python -m retro.validate.recompute --manifests results/open-book/chunks/*/manifest.json --output report.json

    python -m retro.validate.recompute --reports report.json ...

What is recomputed is what the manifest records: its settings, its inputs. Nothing but the report is written. Exit
status 0 also where something differs. With --reports it judges the reports of all stages, as a table; exit status 1 if
something stored is not what is recomputed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from retro.base import provenance
from retro.base.artifacts import Manifest, read_json, read_manifest, sha256, write_json
from retro.base.stage import UserError, finite, natural, run, whole
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


def artifacts(path: Path) -> list[dict]:
    """What a report says of each artifact."""
    facts = read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("artifacts"), list):
        raise UserError(
            f"{path}: wanted a report of retro.validate.recompute. Delete it and run snakemake validate again."
        )
    return facts["artifacts"]


def judge(paths: list[Path]) -> None:
    """Tell what validations found, as a table. Raises `UserError` if something stored is not what is recomputed."""
    rows = [row for path in paths for row in artifacts(path)]
    width = max(len(row["artifact"]) for row in rows)
    for row in rows:
        state = "DIFFERS" if row["difference"] else "equal"
        print(f"{row['artifact']:{width}s}  {state:7s}  {row['recomputed']:40s} {row['seconds']:8.1f} s")
    wrong = [row for row in rows if row["difference"]]
    for row in wrong:
        print(f"\n{row['difference']}")
        for reason in row["reasons"]:
            print(f"  {reason}")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(rows)} artifacts are not what is recomputed. Delete the first that differs and run "
            f"snakemake again: it makes what follows from it again, too."
        )
    print(f"{len(rows)} artifacts: what was recomputed equals what is stored, bit by bit.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--manifests", nargs="+", type=Path, help="manifests of artifacts")
    what.add_argument("--reports", nargs="+", type=Path, help="judge these reports instead")
    parser.add_argument("--fraction", type=finite, default=0.05, help="share of the blocks, at least one")
    parser.add_argument("--seed", type=natural, default=1, help="decides which blocks")
    parser.add_argument("--output", type=Path, help="report to write, JSON")
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
    options = parser.parse_args()
    if options.reports:
        judge(options.reports)
        return
    if options.output is None:
        parser.error("--manifests need --output, the report to write")
    reports = []
    for path in options.manifests:
        report = recompute(path, options.fraction, options.seed, options.threads)
        reports.append(report)
        print(f"{report['artifact']}: {report['difference'] or 'equal'} ({report['recomputed']})", file=sys.stderr)
    facts = {"fraction": options.fraction, "seed": options.seed, "versions": provenance.versions()}
    write_json(options.output, {**facts, "artifacts": reports})


if __name__ == "__main__":
    run(main)
