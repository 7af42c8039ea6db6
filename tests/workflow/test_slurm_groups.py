"""profiles/slurm with its lines on groups: shards of a stage share SLURM jobs."""

import re

from tests.workflow.conftest import Project


def test_shards_are_sent_in_groups(tmp_path):
    project = Project.create(tmp_path / "project")
    profile = project.folder / "profiles/slurm/profile.yaml"
    text = profile.read_text(encoding="utf-8")
    lines = re.findall(r"^# (?:groups|group-components): \[.*\]$", text, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        text = text.replace(line, line.removeprefix("# "))
    profile.write_text(text, encoding="utf-8")
    words = ["--config", "dataset={shards: 8}", "--workflow-profile", "profiles/slurm", "--dry-run", "preprocess"]
    done = project.run("snakemake", "--configfile", "config/tiny.yaml", *words)
    assert done.returncode == 0, done.stdout[-3000:]
    groups = re.split(r"^group job ", done.stdout, flags=re.MULTILINE)[1:]
    sizes = [len(re.findall(r"^    rule embed_shard:", group, re.MULTILINE)) for group in groups]
    assert sorted(size for size in sizes if size) == [4, 4], done.stdout[-6000:]
