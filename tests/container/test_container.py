"""The pipeline in a real Apptainer image and in a real Docker image, both built without network."""

import os
import subprocess
import time

import pytest

from tests.container.conftest import NUMBER, USER, documented
from tests.told import tell

MODELS = [f"runs/{run}/model.safetensors" for run in ["gpt-s1", "retro-s1"]]
MADE = [*MODELS, "tokens/tiny/tokens.bin", "embeddings/tiny/embeddings.npy", "index/index.faiss"]
MADE += [f"neighbours/{split}/{name}.npy" for split in ["train", "valid", "test"] for name in ["ids", "scores"]]
EVALUATED = ["runs/retro-s1/evaluation/test/on/losses.npy", "comparison.csv"]


def differing(folder, finished, names) -> list[str]:
    return [name for name in names if (folder / name).read_bytes() != finished.results(name).read_bytes()]


def strangers(user: int, *folders) -> list[str]:
    """Files that do not belong to the user of the container."""
    made = [path for folder in folders for path in folder.rglob("*")]
    assert made
    return [str(path) for path in made if path.lstat().st_uid != user]


def left_behind() -> set[str]:
    """Files of the user of the container in the folders that everyone may write to, the tests' own apart."""
    places = ["/tmp", "/var/tmp", "/dev/shm", "-path", "*/retro-container-*", "-prune"]
    command = ["find", *places, "-o", "-uid", str(USER), "-print"]
    return set(subprocess.run(command, capture_output=True, text=True).stdout.split("\n")) - {""}


@pytest.fixture(scope="module")
def sif(place):
    """The Apptainer image, made as users make it."""
    began = time.monotonic()
    said = place.shell(documented("make image BASE="), offline=True)
    image = place.project.folder / "envs/retro.sif"
    assert "ok: torch" in said, said[-3000:]
    tell(f"Apptainer image without network: {image.stat().st_size / 1e6:.0f} MB in {time.monotonic() - began:.0f} s")
    return image


@pytest.fixture(scope="module")
def docker(place):
    """The Docker image, made by the documented line."""
    began = time.monotonic()
    place.shell(documented("docker build -f envs/Dockerfile -t retro --build-arg BASE=base"), offline=True)
    tell(f"Docker image (CPU) without network, by buildah: {time.monotonic() - began:.0f} s")


def test_both_images_hold_what_the_locks_say_and_nothing_else(place, sif, docker):
    audit = "-m retro.tools.audit --strict"
    inside = "cd /opt/retro && /opt/venv/bin/python"
    apptainer = place.shell(f"apptainer exec {sif} sh -c '{inside} {audit}'")
    place.shell("buildah from --pull-never --name audited retro")
    buildah = place.shell(f"buildah run audited -- sh -c '{inside} {audit}'; buildah rm audited >/dev/null")
    assert "packages, as the locks say" in apptainer
    assert apptainer.splitlines()[-1] in buildah
    tell(f"both images: {apptainer.splitlines()[-1]} Nothing else is in them")


def test_snakemake_runs_every_stage_in_the_image(place, sif, finished):
    began = time.monotonic()
    words = ["--cores", "2", "--configfile", "config/tiny.yaml", "--software-deployment-method", "apptainer"]
    said = place.shell(f"python -m snakemake all {' '.join(words)}")
    assert "Activating singularity image envs/retro.sif" in said or "Activating apptainer image" in said, said[-3000:]
    assert differing(place.project.results(""), finished, MADE + EVALUATED) == []
    assert place.project.planned("--software-deployment-method", "apptainer") == set()
    same = f"{len(MADE + EVALUATED)} files with the bytes of a run outside"
    tell(f"snakemake --software-deployment-method apptainer: {same}; {time.monotonic() - began:.0f} s")


def test_one_line_trains_in_the_apptainer_image_as_the_user(place, sif, finished):
    desk, data, results = place.desk("apptainer", USER)
    home = place.folder / "home"
    (desk / "envs").mkdir()
    home.mkdir()
    os.chown(home, USER, USER)
    os.link(sif, desk / "envs/retro.sif")
    before = left_behind()
    line = documented("apptainer run ")
    # HOME is Apptainer's own, for its caches; APPTAINER_HOME is what it mounts as the user's home.
    variables = {"DATA": data, "RESULTS": results, "HOME": home, "APPTAINER_HOME": home / "inside", "TMPDIR": "/tmp"}
    (home / "inside").mkdir()
    os.chown(home / "inside", USER, USER)
    as_user = f'setpriv --reuid {USER} --regid {USER} --clear-groups bash -ec "$LINE"'
    place.shell(as_user, cwd=desk, LINE=line, **variables)
    assert differing(results / "tiny", finished, MADE) == []
    assert strangers(USER, results, desk / ".snakemake") == []
    assert list((home / "inside").iterdir()) == []
    assert left_behind() == before
    assert sorted(path.name for path in desk.iterdir()) == [".snakemake", "data", "envs", "mine.yaml", "results"]
    tell(f"{line}: the same weights; written as the user, to the mounted folders only")


def test_one_line_trains_in_the_docker_image_as_the_user(place, docker, finished):
    desk, data, results = place.desk("docker", NUMBER)
    line = documented("docker run ")
    # The line asks who runs it; the build needs root here, the run must not be root's.
    place.shell(f"id() {{ echo {NUMBER}; }}; {line}", cwd=desk, DATA=data, RESULTS=results)
    assert differing(results / "tiny", finished, MADE) == []
    assert strangers(NUMBER, results, desk / ".snakemake") == []
    assert sorted(path.name for path in desk.iterdir()) == [".snakemake", "data", "mine.yaml", "results"]
    tell(f"{line}: the same weights; written as the user, to the mounted folders only")
