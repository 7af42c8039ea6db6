"""Check the installed packages against the locks, without network, and list their licences.

    python -m retro.tools.audit [--strict]

Every line of a lock pins one version; what the locks pin is what is installed; what an installed package requires is
locked, and fits; nothing is locked that nothing needs. Packages that are in no lock are named, and with --strict, as in
a container image, refused.
"""

import argparse
import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
from packaging.version import Version

from retro.base import stage
from retro.base.stage import UserError

ROOT = Path(__file__).resolve().parents[2]
REQUIRED = ["requirements", "slurm", "encoder"]
OPTIONAL = ["cpu", "gpu", "cuda", "dev"]
ALONE = "encoder"  # installed without its dependencies: only its data files are read
OWN = {"pip", "retro-pipeline"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strict", action="store_true", help="refuse packages that are in no lock")
    strict = parser.parse_args().strict
    installed: dict[str, metadata.Distribution] = {canonical(each.name): each for each in metadata.distributions()}
    locks = {name: read(ROOT / "envs" / f"{name}.lock") for name in REQUIRED + OPTIONAL}
    locked = {package: version for lock in locks.values() for package, version in lock.items()}
    for package in sorted(locked.keys() & installed.keys()):
        print(f"{package:42} {installed[package].version:14} {licence(installed[package])}")
    found, reached = problems(locks, installed)
    others = sorted(installed.keys() - locked.keys() - reached - OWN)
    if strict:
        found += [f"{package} is installed and in no lock" for package in others]
    elif others:
        print(f"In no lock, and nothing of the pipeline needs them: {', '.join(others)}")
    if found:
        raise UserError("\n       ".join(found) + "\n       Set up the environment anew: make clean run")
    print(f"{len(locked.keys() & installed.keys())} packages, as the locks say.")


def read(path: Path) -> dict[str, str]:
    """Versions of a lock by canonical name; raises UserError at a line that pins no version."""
    versions: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line and not line.startswith(("#", "-c ")):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            if not match:
                raise UserError(f"{path}:{number}: found {line!r}; wanted NAME==VERSION, one exact version.")
            versions[canonical(match[1])] = match[2]
    return versions


def problems(locks: dict[str, dict[str, str]], installed: dict) -> tuple[list[str], set[str]]:
    """What does not agree; and the packages that the pipeline needs."""
    found = []
    locked = {package: version for lock in locks.values() for package, version in lock.items()}
    for name, lock in locks.items():
        for package, version in lock.items():
            if package not in installed:
                if name in REQUIRED:
                    found.append(f"{package} {version} is locked and not installed")
            elif Version(installed[package].version).public != version:
                found.append(f"{package} {version} is locked, {installed[package].version} is installed")
    reached, waiting = set(), list(roots())
    while waiting:
        requirement, by = waiting.pop()
        name = canonical(requirement.name)
        if name not in installed:
            if name not in locked:
                found.append(f"{by} needs {requirement}, which is neither locked nor installed")
            continue
        if not requirement.specifier.contains(installed[name].version, prereleases=True):
            found.append(f"{by} needs {requirement}, installed is {installed[name].version}")
        if name not in locked:
            found.append(f"{by} needs {requirement}, which is in no lock")
        if (name, *sorted(requirement.extras)) in reached:
            continue
        reached.add((name, *sorted(requirement.extras)))
        if name not in locks[ALONE]:
            waiting += [(each, name) for each in needed(installed[name].requires or [], requirement.extras)]
    names = {name for name, *_ in reached}
    found += [f"{name} is locked and nothing needs it" for name in sorted((locked.keys() & installed.keys()) - names)]
    return found, names


def roots() -> Iterable[tuple[Requirement, str]]:
    """What the project itself requires, every extra included, and who says so."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [(Requirement(each), "pyproject.toml") for requirements in lists for each in requirements]


def needed(requirements: list[str], extras: set[str]) -> list[Requirement]:
    """Those of a package's requirements that hold on this machine, for the extras asked for."""
    parsed = [Requirement(each) for each in requirements]
    return [
        each
        for each in parsed
        if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in ["", *extras])
    ]


def licence(package: metadata.Distribution) -> str:
    """A package's licence as its metadata states it, else the first line of its licence file."""
    told = package.metadata
    classifiers = [each.split(" :: ")[-1] for each in told.get_all("Classifier", []) if each.startswith("License ::")]
    expressions, names = told.get_all("License-Expression", []), told.get_all("License", [])
    stated = "".join(expressions) or " or ".join(classifiers) or "".join(names)
    if not stated:
        files = [file for file in package.files or [] if re.search(r"licen[sc]e|copying", file.name, re.IGNORECASE)]
        stated = next((file.read_text(encoding="utf-8") for file in files), "not stated").strip()
    return stated.splitlines()[0].strip()


if __name__ == "__main__":
    stage.run(main)
