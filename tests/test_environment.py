"""The locks, the package metadata and the conda file agree."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from retro.qa.harness import FOLDER

ROOT = Path(__file__).resolve().parents[1]


def lock(name: str) -> dict[str, str]:
    lines = (ROOT / "envs" / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


def locked() -> dict[str, str]:
    names = ["requirements.lock", "cpu.lock", "gpu.lock", "slurm.lock", "encoder.lock", "dev.lock"]
    return {package: version for name in names for package, version in lock(name).items()}


def test_every_requirement_is_locked_at_a_version_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [one for more in project["optional-dependencies"].values() for one in more]
    versions = locked()
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in versions, f"{name} is in no lock"
        assert versions[name] in requirement.specifier, f"{name} {versions[name]} does not fit {requirement}"


def test_both_kinds_of_faiss_are_the_same_version():
    assert lock("cpu.lock")["faiss-cpu"] == lock("gpu.lock")["faiss-gpu"]


def test_the_harness_folder_fits_the_environment():
    """Every requirement of its packages is pinned at a version it allows, or is one that only single tasks import."""
    harness, others = lock("harness.lock"), locked()
    assert not harness.keys() & others.keys()
    left_out = set()
    folder = str(FOLDER)
    for package, version in harness.items():
        found = next(iter(metadata.distributions(name=package, path=[folder, *sys.path])), None)
        assert found is not None and found.version == version, f"{package} {version} is not installed: make harness"
        for requirement in map(Requirement, found.requires or []):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            pinned = harness.get(name) or others.get(name)
            if requirement.marker is None and pinned is None:
                left_out.add(name)
            elif pinned and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                assert pinned in requirement.specifier, f"{package} wants {requirement}, found {pinned}"
    single = {"evaluate", "more-itertools", "pytablewriter", "rouge-score", "scikit-learn", "sqlitedict", "word2number"}
    assert left_out == single


def test_the_conda_file_installs_the_locks():
    environment = yaml.safe_load((ROOT / "envs/retro.yaml").read_text(encoding="utf-8"))
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert all(re.fullmatch(r"[a-z0-9-]+=[0-9.]+|pip=[0-9.]+", item) for item in plain)
    for line in pip:
        assert (ROOT / "envs" / line.removeprefix("-r ")).is_file()
