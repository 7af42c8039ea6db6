"""Real images, built without network from a base, a folder of wheels and the project's own commands."""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.container.tools import Absent, install
from tests.told import TOLD, tell
from tests.workflow.conftest import ROOT, Project, finished  # noqa: F401

MORE = ["Makefile", "pyproject.toml", "README.md", "LICENSE", ".dockerignore", "docs", "envs"]
TOOLS = "tools"  # where Apptainer is unpacked, beside the desks, which are called by what is run there
BIN = Path(__file__).parent / "bin"
USER = pwd.getpwnam("nobody").pw_uid  # Apptainer's users have names
NUMBER = 12345  # Docker's need none


def pytest_terminal_summary(terminalreporter):
    if TOLD:
        terminalreporter.section("what was built and run in containers")
        for line in TOLD:
            terminalreporter.write_line(line)


@dataclass
class Place:
    """A project folder beside the tools, the wheels and the base image."""

    folder: Path  # everything is below it; users may read it
    project: Project
    environment: dict[str, str]

    @classmethod
    def create(cls, folder: Path, tools: Path) -> "Place":
        """A copy of the project whose own commands, Snakemake's dry run too, find the programs in `tools`."""
        project, environment = _project(folder / "project"), _environment(folder, tools)
        project.environment |= {key: environment[key] for key in environment.keys() - os.environ.keys()}
        project.environment["PATH"] = environment["PATH"]
        return cls(folder, project, environment)

    def shell(self, line: str, cwd: Path | None = None, offline: bool = False, **variables) -> str:
        """Run a line of shell, perhaps without any network, and return what it says; it must succeed."""
        command = [*(["unshare", "--net"] if offline else []), "bash", "-ec", line]
        done = subprocess.run(
            command,
            cwd=cwd or self.project.folder,
            env={**self.environment, **{key: str(value) for key, value in variables.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-8000:]}"
        return done.stdout

    def desk(self, name: str, user: int) -> tuple[Path, Path, Path]:
        """What a user has: a folder with a config and the places for the two mounts; the corpora; the results."""
        desk, data, results = (self.folder / f"{name}{kind}" for kind in ["", "-data", "-results"])
        for folder in [desk, desk / "data", desk / "results", data, results]:
            folder.mkdir()
        shutil.copy(ROOT / "config/tiny.yaml", desk / "mine.yaml")
        shutil.copy(ROOT / "data/tiny.jsonl", data)
        for path in [desk, desk / "data", desk / "results", results]:
            os.chown(path, user, user)
        data.chmod(0o555)
        return desk, data, results


def documented(start: str) -> str:
    """The one line of docs/containers.md that starts so."""
    text = (ROOT / "docs/containers.md").read_text(encoding="utf-8").replace("\\\n", "")
    found = [line.strip() for line in text.splitlines() if line.startswith(f"    {start}")]
    assert len(found) == 1, f"{start}: {found}"
    return re.sub(r"\s+# .*", "", found[0])


@pytest.fixture(scope="session")
def place():
    """Tools, base image and wheels; skips with the reason where they cannot be had."""
    folder = Path(tempfile.mkdtemp(prefix="retro-container-"))
    folder.chmod(0o755)  # another user will read below
    began = time.monotonic()
    try:
        place = Place.create(folder, install(folder / TOOLS))
        base = _base(place)
        place.shell(documented("make wheels"))
        sizes = [path.stat().st_size for path in (place.project.folder / "wheelhouse").iterdir()]
        tell(f"base image: {base}")
        tell(f"{len(sizes)} wheels, {sum(sizes) / 1e6:.0f} MB; all so far in {time.monotonic() - began:.0f} s")
        yield place
    except Absent as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(folder)


def _project(folder: Path) -> Project:
    """A copy of the project with all that an image is made of."""
    project = Project.create(folder)
    for part in MORE:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sif"))
        else:
            shutil.copy(ROOT / part, folder / part)
    return project


def _environment(folder: Path, tools: Path) -> dict[str, str]:
    """Tools on the path and everything they store below the folder."""
    storage = f'driver = "{_driver(folder)}"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"'
    (folder / "storage.conf").write_text(f"[storage]\n{storage}\n", encoding="utf-8")
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SNAKEMAKE_PROFILE")}
    return {
        **inherited,
        "PATH": os.pathsep.join([str(BIN), str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "BUILDAH_ISOLATION": "chroot",
        "TMPDIR": str(folder),
        "FAISS": "cpu",
    }


def _driver(folder: Path) -> str:
    """overlay, or vfs where the file system or the machine has no overlay mounts."""
    for part in ["under", "upper", "work", "merged"]:
        (folder / "probe" / part).mkdir(parents=True)
    options = "lowerdir=under,upperdir=upper,workdir=work"
    mount = ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, "merged"]
    return "vfs" if subprocess.run(mount, cwd=folder / "probe", capture_output=True).returncode else "overlay"


def _base(place: Place) -> str:
    """Put a base image into buildah's store as `base` and into a docker archive: the default one where its registry
    answers, else this machine's own distribution."""
    default = f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
    save = "buildah push -q base docker-archive:base.tar:base:latest"
    try:
        place.shell(f"timeout 300 buildah pull -q docker://{default} && buildah tag {default} base && {save}")
        return default
    except AssertionError:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
    suite = dict(re.findall(r'^(\w+)="?([^"\n]*)', release, re.MULTILINE)).get("VERSION_CODENAME", "")
    try:
        place.shell(f"mmdebstrap -q --variant=minbase --include=ca-certificates,python3-venv {suite} root.tar")
    except AssertionError as error:
        raise Absent(f"{default} cannot be pulled, and mmdebstrap failed: {str(error)[-400:]}") from None
    place.shell("buildah from --name made scratch && buildah add -q made root.tar /")
    found = place.shell("buildah run made -- python3 -V").split()[1].rpartition(".")[0]
    if not default.startswith(f"python:{found}-"):
        raise Absent(f"{default} cannot be pulled, and {suite} has Python {found}")
    place.shell(f"buildah commit -q --rm made base && {save}; rm root.tar")
    return f"{suite} by mmdebstrap, since {default} cannot be pulled here"
