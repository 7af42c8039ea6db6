"""The locks, the package metadata and the conda file agree."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from retro.base.stage import UserError
from retro.qa.harness import FOLDER
from retro.tools import audit

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {path.stem: audit.read(path) for path in sorted((ROOT / "envs").glob("*.lock"))}


def locked() -> dict[str, str]:
    return {package: version for lock in LOCKS.values() for package, version in lock.items()}


def installed() -> dict[str, metadata.Distribution]:
    return {audit.canonical(each.name): each for each in metadata.distributions()}


def test_every_requirement_is_locked_at_a_version_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [one for more in project["optional-dependencies"].values() for one in more]
    versions = locked()
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in versions, f"{name} is in no lock"
        assert versions[name] in requirement.specifier, f"{name} {versions[name]} does not fit {requirement}"


def test_both_kinds_of_faiss_are_the_same_version():
    assert LOCKS["cpu"]["faiss-cpu"] == LOCKS["gpu"]["faiss-gpu"]


def test_the_harness_folder_fits_the_environment():
    """Every requirement of its packages is pinned at a version it allows, or is one that only single tasks import."""
    harness = LOCKS["harness"]
    others = {package: version for package, version in locked().items() if package not in harness}
    left_out = set()
    folder = str(FOLDER)
    for package, version in harness.items():
        found = next(iter(metadata.distributions(name=package, path=[folder, *sys.path])), None)
        assert found is not None and found.version == version, f"{package} {version} is not installed: make harness"
        for requirement in map(Requirement, found.requires or []):
            name = audit.canonical(requirement.name)
            pinned = harness.get(name) or others.get(name)
            if requirement.marker is None and pinned is None:
                left_out.add(name)
            elif pinned and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                assert pinned in requirement.specifier, f"{package} wants {requirement}, found {pinned}"
    single = {"evaluate", "more-itertools", "pytablewriter", "rouge-score", "scikit-learn", "sqlitedict", "word2number"}
    assert left_out == single


def test_no_package_is_in_two_locks():
    assert len(locked()) == sum(map(len, LOCKS.values()))


def test_what_is_installed_is_what_the_locks_say():
    done = subprocess.run([sys.executable, "-m", "retro.tools.audit"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not stated" not in done.stdout


@pytest.mark.parametrize(
    ("lock", "change", "message"),
    [
        ("requirements", {"numpy": "1.0"}, "numpy 1.0 is locked, "),
        ("requirements", {"absent": "1.0"}, "absent 1.0 is locked and not installed"),
        ("requirements", {"numpy": None}, "pyproject.toml needs numpy>=2, which is in no lock"),
        ("requirements", {"pip": "26.3"}, "pip is locked and nothing needs it"),
    ],
)
def test_a_difference_from_the_locks_is_named(lock, change, message):
    changed = {name: dict(LOCKS[name]) for name in audit.REQUIRED + audit.OPTIONAL}
    for package, version in change.items():
        if version is None:
            del changed[lock][package]
        else:
            changed[lock][package] = version
    found, _ = audit.problems(changed, installed())
    assert any(message in each for each in found), found


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "numpy==2.*", "--index-url somewhere"])
def test_a_lock_pins_one_exact_version(tmp_path, line):
    (tmp_path / "a.lock").write_text(f"# a comment\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.lock:2"):
        audit.read(tmp_path / "a.lock")


def test_the_conda_file_installs_the_locks(tmp_path):
    environment = yaml.safe_load((ROOT / "envs/retro.yaml").read_text(encoding="utf-8"))
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert all(re.fullmatch(r"[a-z0-9-]+=[0-9.]+|pip=[0-9.]+", item) for item in plain)
    assert {line.removeprefix("-r ").removesuffix(".lock") for line in pip} == {"requirements", "cpu", "slurm"}
    # As conda does: pip is given these lines in a file beside the locks. All of it is installed already.
    for path in (ROOT / "envs").glob("*.lock"):
        shutil.copy(path, tmp_path)
    gpu = "faiss-gpu" in installed()
    (tmp_path / "conda.txt").write_text("\n".join(pip).replace("cpu", "gpu" if gpu else "cpu"), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", str(tmp_path / "conda.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Would install" not in done.stdout, done.stdout + done.stderr


def test_what_is_shipped_beside_the_modules_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["setuptools"]["package-data"]["retro"]
    assert "py.typed" in shipped
    assert all(any((ROOT / "retro").glob(pattern)) for pattern in shipped)


def test_both_images_are_made_of_the_same_files():
    definition = (ROOT / "envs/retro.def").read_text(encoding="utf-8")
    section = definition.partition("%files\n")[2].partition("\n\n")[0]
    apptainer = {line.split()[0] for line in section.splitlines()}
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    docker = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert apptainer == docker
    assert all(list(ROOT.glob(name)) for name in docker)


# What pip says, and who asked it to be quiet.
PIP = """#!/bin/sh
test "$PIP_DISABLE_PIP_VERSION_CHECK" || echo "[notice] A new release of pip is available: 26.3 -> 27.0"
test "$PIP_ROOT_USER_ACTION" = ignore || echo "WARNING: Running pip as the 'root' user can break things"
case "$*" in *-q*) ;; *) echo "Collecting everything" ;; esac
case "$*" in *encoder*) test {status} = 0 || echo "ERROR: No matching distribution found" >&2; exit {status} ;; esac
"""


def set_up(folder: Path, target: str, status: int = 0) -> subprocess.CompletedProcess:
    """`make` a target with a pip that installs nothing."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "envs", folder / "envs", dirs_exist_ok=True)
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    (programs / "pip").write_text(PIP.format(status=status))
    (programs / "pip").chmod(0o755)
    command = ["make", "--no-print-directory", target, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_setting_up_says_what_it_does_and_how_long_it_took(tmp_path):
    done = set_up(tmp_path, ".venv/installed-dev")
    assert done.returncode == 0 and not done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("Setting up .venv: ") and re.fullmatch(r"\.\.\. done in \d+ s\.", second)


def test_setting_up_shows_what_pip_could_not_do_and_stops(tmp_path):
    done = set_up(tmp_path, ".venv/installed", status=1)
    assert done.returncode != 0 and "ERROR: No matching distribution found" in done.stderr
    assert "done in" not in done.stdout and not (tmp_path / ".venv/installed").exists()
