"""profiles/slurm with its lines on groups, by which shards of a stage share SLURM jobs."""

import re

from tests.workflow.conftest import Project


def test_the_lines_on_groups_name_rules_and_are_taken(tmp_path):
    project = Project.create(tmp_path / "project")
    profile = project.folder / "profiles/slurm/profile.yaml"
    text = profile.read_text(encoding="utf-8")
    lines = re.findall(r"^# (?:groups|group-components): \[.*\]$", text, re.MULTILINE)
    groups, sizes = (dict(re.findall(r"(\w+)=(\w+)", line)) for line in lines)
    assert set(groups.values()) == sizes.keys()
    for line in lines:
        text = text.replace(line, line.removeprefix("# "))
    profile.write_text(text, encoding="utf-8")
    words = ["--config", "dataset={shards: 8}", "--workflow-profile", "profiles/slurm", "--dry-run", "preprocess"]
    done = project.run("python", "-m", "snakemake", "--configfile", "config/tiny.yaml", *words)
    assert done.returncode == 0, done.stdout[-3000:]
    for rule in groups:
        assert len(re.findall(rf"^ *rule {rule}:$", done.stdout, re.MULTILINE)) >= 8, rule
