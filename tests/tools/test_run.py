"""`make run` beside a lock: it goes on after what was killed here, and never beside what may be alive elsewhere."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retro.base.artifacts import write_json
from retro.base.stage import UserError
from retro.tools import run
from retro.tools.ended import warned
from retro.tools.run import LOCKS, RECORDS, place, started, take_lock_away

ROOT = Path(__file__).resolve().parents[2]
PRESENT = "import sys, time; from pathlib import Path; from retro.tools.run import present; present(Path.cwd()); "


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder, locked by someone."""
    monkeypatch.chdir(tmp_path)
    LOCKS.mkdir(parents=True)
    (LOCKS / "0.output.lock").write_text("results/d/runs/gpt-s1/model.json\n")
    return tmp_path


def record(name: str = "one", **over: object) -> Path:
    """A record of a process that has ended, of this machine and container."""
    process = subprocess.Popen(["true"])
    process.wait()
    path = RECORDS / f"{name}.json"
    write_json(path, {**place(), "pid": process.pid, "started": "1", "user": "someone", **over})
    return path


def recording(code: str) -> subprocess.Popen:
    """A process that has recorded itself, and then runs `code`."""
    process = subprocess.Popen([sys.executable, "-c", f"{PRESENT}print(flush=True); {code}"], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_without_a_lock_there_is_nothing_to_take_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(host="elsewhere")
    assert not take_lock_away("c.yaml")


def test_the_lock_of_a_process_that_was_killed_here_is_taken_away(folder):
    process = recording("time.sleep(99)")
    process.kill()
    process.wait()
    assert len(list(RECORDS.iterdir())) == 1
    assert take_lock_away("c.yaml")
    assert not any(LOCKS.iterdir()) and not any(RECORDS.iterdir())


def test_a_process_that_lives_here_keeps_its_lock(folder):
    process = recording("time.sleep(99)")
    try:
        with pytest.raises(UserError, match=rf"locked by process {process.pid} of \S+ on \S+ \(last sign of life"):
            take_lock_away("c.yaml")
        assert any(LOCKS.iterdir())
    finally:
        process.kill()
        process.wait()


def test_a_later_process_of_the_same_number_is_another(folder):
    record(pid=os.getpid(), started="1")
    assert take_lock_away("c.yaml")


def test_the_same_process_is_not(folder):
    record(pid=os.getpid(), started=started(os.getpid()))
    with pytest.raises(UserError, match=f"process {os.getpid()} of someone"):
        take_lock_away("c.yaml")


@pytest.mark.parametrize(
    "over",
    [{"host": "node-7"}, {"numbering": "pid:[1]"}, {"boot": "another"}, {"pid": None}],
    ids=["another machine", "another container", "a machine of this name", "a damaged record"],
)
def test_what_cannot_be_seen_from_here_counts_as_alive(folder, over):
    record("dead")
    record("unseen", **over)
    with pytest.raises(UserError, match=r"end it there; or, .* run `snakemake --unlock --configfile c.yaml`, and then"):
        take_lock_away("c.yaml")
    assert any(LOCKS.iterdir()) and len(list(RECORDS.iterdir())) == 2


def test_a_record_that_is_no_json_counts_as_alive(folder):
    RECORDS.mkdir()
    (RECORDS / "cut.json").write_text('{"pid": 1')
    with pytest.raises(UserError, match=r"process \? of \? on \?"):
        take_lock_away("c.yaml")


def test_a_lock_without_any_record_is_left_to_the_user(folder):
    with pytest.raises(UserError, match="locked by a Snakemake that is not known here"):
        take_lock_away("c.yaml")


def test_a_process_gives_signs_of_life_and_its_record_ends_with_it(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", f"from retro.tools import run; run.BEAT = 0.01; {PRESENT}print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    path = next(path for path in RECORDS.iterdir() if json.loads(path.read_text())["pid"] == process.pid)
    os.utime(path, (1, 1))
    while path.stat().st_mtime == 1:
        time.sleep(0.01)
    process.communicate(b"\n")
    assert not path.exists()


def test_where_nothing_is_locked_records_of_nobody_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    silent, fresh = record("silent", host="node-7"), record("fresh", host="node-8")
    os.utime(silent, (1, 1))
    ended = record("ended")
    recording("").wait()
    assert fresh.exists() and not silent.exists() and not ended.exists()


def test_beside_a_lock_records_stay(folder):
    silent, ended = record("silent", host="node-7"), record("ended")
    os.utime(silent, (1, 1))
    recording("").wait()
    assert silent.exists() and ended.exists()


def test_where_no_record_can_be_written_the_work_goes_on(tmp_path, monkeypatch):
    (tmp_path / ".snakemake").write_text("a file, where a folder would have to be")
    monkeypatch.chdir(tmp_path)
    run.present(tmp_path)
    assert (tmp_path / ".snakemake").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/dev/null/nobody", "/proc/nobody"])
def test_a_bare_snakemake_needs_no_home_that_can_be_written_to(home, tmp_path):
    """It would keep a cache there, and end with a traceback before it reads a rule: the profile keeps it elsewhere."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--configfile", "config/tiny.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"} | {"HOME": home}
    command += ["--config", f"results={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_figures_need_no_home_that_can_be_written_to(tmp_path):
    """matplotlib then keeps its cache in a temporary folder, and says so."""
    code = "import sys; from pathlib import Path; from retro.report import style\n"
    code += "with style.figure(Path(sys.argv[1]), 'drawn', 2) as (_, axes): axes.plot([1, 2])"
    caches = ("XDG_CACHE_HOME", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in caches} | {"HOME": "/proc/nobody"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"drawn.png", "drawn.svg"}


def test_warnings_are_repeated_at_the_end_each_once_and_of_this_run_only(tmp_path):
    for name, text in (
        ("a", "warning: one\nline\nwarning: two\n"),
        ("b", "warning: one\n"),
        ("old", "warning: three\n"),
    ):
        (tmp_path / f"{name}.log").write_text(text)
    os.utime(tmp_path / "old.log", (1, 1))
    assert warned(tmp_path, 2) == "\n\nwarning: one\nwarning: two"
    assert warned(tmp_path / "none", 2) == ""
