"""The place itself, without any image: what is beside each other there, and what its commands find."""

from tests.container.conftest import TOOLS, Place


def place_with(tmp_path, program: str) -> Place:
    tools = tmp_path / TOOLS
    tools.mkdir()
    (tools / program).write_text("#!/bin/sh\necho it is here\n", encoding="utf-8")
    (tools / program).chmod(0o755)
    return Place.create(tmp_path, tools)


def test_the_project_s_own_commands_find_the_tools(tmp_path):
    """As Snakemake's dry run must, where Apptainer is nowhere else."""
    place = place_with(tmp_path, "a-program-of-this-test-only")
    assert place.project.run("a-program-of-this-test-only").stdout == "it is here\n"
    assert place.shell("a-program-of-this-test-only") == "it is here\n"


def test_a_user_s_desk_is_no_folder_that_is_there_already(tmp_path):
    place = place_with(tmp_path, "apptainer")
    for name in ("apptainer", "docker"):
        desk, data, results = place.desk(name, 12345)
        assert (desk / "mine.yaml").is_file() and (data / "tiny.jsonl").is_file() and results.is_dir()
