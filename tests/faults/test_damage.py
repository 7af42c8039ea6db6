"""Every artifact, truncated and with one bit flipped: named by verify, refused by what reads it, made again."""

import json
import shutil

from tests.faults.conftest import differing, go_on
from tests.told import tell

KINDS = (".npy", ".bin", ".idx")
READ_BY_TRAINING = ("tokenizer", "tokens", "chunks", "database", "neighbours/train", "neighbours/valid")


def artifacts(project) -> list[str]:
    """Every file that a manifest vouches for, below the dataset's folder."""
    root, found = project.results(""), []
    for path in [*root.rglob("manifest.json"), *root.glob("runs/*/model.json")]:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found += [str((path.parent / name).relative_to(root)) for name in facts["files"]]
    return sorted(found)


def test_every_artifact_truncated_and_flipped(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    names, damages = artifacts(project), 0
    assert len(names) >= 25
    for name in names:
        path = project.results(name)
        content = path.read_bytes()
        if not content:
            continue
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damaged in (content[: len(content) - 1], flipped):
            path.write_bytes(damaged)
            done = project.run("python", "-m", "retro.tools.verify", "results/tiny")
            assert done.returncode == 1 and path.name in done.stdout, f"{name}: {done.stdout[-1500:]}"
            assert "Traceback" not in done.stdout
            damages += 1
        path.write_bytes(content)
    assert project.run("python", "-m", "retro.tools.verify", "results/tiny").returncode == 0
    tell(f"{damages} damages to {len(names)} artifacts: each named by python -m retro.tools.verify")


def test_training_refuses_what_is_damaged(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    read = [name for name in artifacts(project) if name.startswith(READ_BY_TRAINING) and name.endswith(KINDS)]
    for name in read:
        path = project.results(name)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        project.results("runs/retro-s1/model.json").unlink(missing_ok=True)
        done = go_on(project, "results/tiny/runs/retro-s1/model.json")
        path.write_bytes(content)
        assert done.returncode != 0, name
        assert path.name in done.stdout and "content changed" in done.stdout, f"{name}: {done.stdout[-1500:]}"
    tell(f"training with one bit of each of {len(read)} inputs flipped: refused, the file named")


def test_what_is_deleted_is_made_again(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    for name in ["chunks/tiny/chunks.npy", "neighbours/valid/ids.npy", "runs/gpt-s1/model.safetensors"]:
        project.results(name).unlink()
        done = go_on(project)
        assert done.returncode == 0, done.stdout[-3000:]
        assert differing(project, finished) == []
    tell("3 deleted intermediates: made again, the same bytes")


def test_without_snakemakes_own_records(finished, tmp_path):
    """.snakemake holds what decides reruns; without it nothing is lost, at most something is made again."""
    project = finished.clone(tmp_path / "project")
    shutil.rmtree(project.folder / ".snakemake")
    assert go_on(project).returncode == 0
    assert differing(project, finished) == []
    tell(".snakemake deleted: the same bytes")


def test_a_failed_upstream_does_not_present_an_old_report(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    with open(project.folder / "data/tiny.jsonl", "a", encoding="utf-8") as corpus:
        corpus.write("{not json\n")
    done = go_on(project)
    assert done.returncode != 0
    assert "tiny.jsonl, line 52" in done.stdout and "Open in a browser" not in done.stdout, done.stdout[-3000:]
    assert project.run("python", "-m", "retro.tools.verify", "results/tiny").returncode == 1
    tell("a corpus broken after a good run: the old report is not shown, verify says that it is stale")


def test_a_failed_training_does_not_leave_its_old_evaluation_standing(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    project.edit("config/tiny.yaml", "warmup_samples: 8", "lr: 1.0e+30, warmup_samples: 8")
    for _ in range(2):
        done = go_on(project)
        assert done.returncode != 0 and "Nothing to be done" not in done.stdout, done.stdout[-3000:]
        assert "Open in a browser" not in done.stdout
        said = done.stdout.partition("What went wrong (gpt-s1, retro-s1):")[2]
        assert "Lower train.lr" in said and "docs/troubleshooting.md" in said, done.stdout[-3000:]
    assert project.run("python", "-m", "retro.tools.verify", "results/tiny").returncode == 1
    project.edit("config/tiny.yaml", "lr: 1.0e+30, warmup_samples: 8", "warmup_samples: 8")
    assert go_on(project).returncode == 0
    assert differing(project, finished) == []
    tell("a training that fails after a good run: twice refused, the old report not shown; then the old bytes")


def test_checkpoints_of_other_settings_are_left_alone(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    project.edit("config/tiny.yaml", "warmup_samples: 8", "lr: 0.001, warmup_samples: 8")
    done = go_on(project, "train_all")
    assert done.returncode == 0 and "checkpoints of another run are not used" in done.stdout, done.stdout[-3000:]
    project.edit("config/tiny.yaml", "lr: 0.001, warmup_samples: 8", "warmup_samples: 8")
    assert go_on(project).returncode == 0
    assert differing(project, finished) == []
    tell("checkpoints of another fingerprint: named and not used; back to the old settings, the old bytes")
