"""An archive is enough: from it alone, elsewhere, the same neighbours and the same weights."""

import shutil

from tests.workflow.conftest import ROOT, Project

PACK = ["python", "-m", "retro.tools.archive", "pack", "--config", "config/tiny.yaml", "--output"]


def test_an_archive_rebuilds_the_same_bytes(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    for name in ["Makefile", "pyproject.toml", "README.md", "LICENSE", ".dockerignore"]:
        shutil.copy2(ROOT / name, project.folder / name)
    for name in ["envs", "docs"]:
        shutil.copytree(ROOT / name, project.folder / name, dirs_exist_ok=True)
    done = project.run(
        "python", "-m", "retro.tools.archive", "pack", "--config", "config/tiny.yaml", "--output", "packed"
    )
    assert done.returncode == 0, done.stdout
    elsewhere = tmp_path / "elsewhere" / "archive"
    shutil.move(project.folder / "packed", elsewhere)
    shutil.rmtree(project.folder)  # nothing of the original is left to lean on
    archive = Project(elsewhere)
    made = archive.snakemake("all", config="config/archived.yaml")
    assert made.returncode == 0, made.stdout[-4000:]
    checked = archive.run("python", "-m", "retro.tools.archive", "check", "expected.json", "results/tiny")
    assert checked.returncode == 0, checked.stdout
    assert (
        archive.results("neighbours/train/ids.npy").read_bytes()
        == finished.results("neighbours/train/ids.npy").read_bytes()
    )
    archive.results("neighbours/train/ids.npy").write_bytes(b"other")
    again = archive.run(
        "python", "-m", "retro.tools.archive", "pack", "--config", "config/tiny.yaml", "--output", "results"
    )
    assert again.returncode == 1 and "exists already" in again.stdout


def test_only_a_finished_run_is_archived(tmp_path):
    project = Project.create(tmp_path / "project")
    done = project.run(
        "python", "-m", "retro.tools.archive", "pack", "--config", "config/tiny.yaml", "--output", "packed"
    )
    assert done.returncode == 1 and "no finished run" in done.stdout
    assert not (project.folder / "packed").exists()
