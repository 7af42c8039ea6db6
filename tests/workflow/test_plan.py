"""The planner against what the tiny pipeline made."""

import json

import pytest


@pytest.mark.parametrize("words", [[], ["--sample"]], ids=["recorded", "sampled"])
def test_the_disk_is_foreseen(finished, words):
    done = finished.run("python", "-m", "retro.planning.plan", "config/tiny.yaml", "--check", "--json", *words)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout[done.stdout.index("{") :])
    rows = {row["what"]: row for row in found["check"]}
    disk = {what: row["ratio"] for what, row in rows.items() if what.startswith("disk: ")}
    assert len(disk) == 10
    assert disk == {what: pytest.approx(1, abs=0.15) for what in disk}
    assert rows["disk: embeddings"]["found"] > 1e6
