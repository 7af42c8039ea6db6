"""What `make run` shows: lines of what has ended, how far jobs are, about how long the rest takes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retro.base import log
from retro.tools import ended, view
from retro.tools.progress import Job, Progress, Run, progress_of, written
from retro.tools.view import Lines
from tests.tools.terminal import Terminal

TRAINING = (
    "step 1,080/1,600  samples 4,320  loss 3.2101  lr 1.19e-03  grad 0.75  2,153 tokens/s  45% of GEMM  2 min 10 s left"
)


@pytest.fixture
def run(tmp_path) -> Run:
    """A run of two trainings and an evaluation, of which nothing is known."""
    run = Run(tmp_path, began=0.0)
    run.take({"event": "run_info", "stats": {"chunk": 1, "train": 2, "losses": 3, "all": 1, "total": 7}})
    run.take({"event": "resources_info", "cores": 2})
    return run


def begin(run: Run, number: int, rule: str, at: float, said: str = "", /, **wildcards: str) -> Job:
    """A job begins, and has said something to its log."""
    name = ".".join(wildcards.values()) or rule
    paths = run.folder / f"logs/{rule}/{name}.log", run.folder / f"benchmarks/{rule}/{name}.jsonl"
    if said:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(said, encoding="utf-8")
    facts = {"jobid": number, "rule_name": rule, "wildcards": wildcards, "time": at}
    run.take({"event": "job_info", "log": [str(paths[0])], "benchmark": str(paths[1]), **facts})
    run.running[number].look()
    return run.running[number]


def finish(run: Run, number: int, at: float) -> None:
    assert run.take({"event": "job_finished", "job_id": number, "time": at}) is not None


# How far a job is


def test_a_line_of_a_training_tells_share_loss_and_time():
    assert progress_of(TRAINING) == Progress(1080 / 1600, "loss 3.21", 130.0)


@pytest.mark.parametrize("seconds", [0, 7, 71.6, 130, 3600, 7500])
def test_a_duration_is_read_as_it_is_written(seconds):
    line = TRAINING.replace("2 min 10 s", log.duration(seconds))
    assert progress_of(line).left == pytest.approx(seconds, rel=0.01)


def test_a_line_of_a_bar_tells_share_and_time(capsys):
    with log.bar(1000, "embed", "chunk") as shown:
        shown.update(380)
        text = shown.format_meter(**shown.format_dict | {"elapsed": 38.0})
    assert progress_of(text) == Progress(0.38, "", 62.0)


@pytest.mark.parametrize("line", ["", "start      afresh", "step 5: validation, retrieval on: loss 3.1", "100% done"])
def test_other_lines_tell_nothing(line):
    assert progress_of(line) is None


def test_the_log_of_an_earlier_attempt_tells_nothing(run):
    job = begin(run, 1, "train", 0.0, TRAINING, run="gpt-s1")
    assert job.said.share == 0.675
    os.utime(job.log, (1.0, 1.0))
    again = begin(run, 1, "train", 100.0, run="gpt-s1")
    assert again.said is None
    os.utime(again.log, (50.0, 50.0))
    again.look()
    assert again.said.share == 0.675, "it was written to, by a machine whose clock is behind"


# What a job is called and what it made


@pytest.mark.parametrize(
    ("rule", "wildcards", "label"),
    [
        ("train", {"run": "retro-s1"}, "retro-s1"),
        ("losses", {"run": "gpt-s1", "split": "test", "mode": "none"}, "losses gpt-s1 test none"),
        ("neighbours", {"retrieval": "", "split": "test"}, "neighbours test"),
        ("neighbours", {"retrieval": "retrievals/bm25/", "split": "test"}, "neighbours bm25 test"),
        ("train_tokenizer", {}, "train tokenizer"),
        ("record", {"cut": "-gpt"}, "record gpt"),
    ],
)
def test_a_training_is_called_by_its_run_and_others_by_rule_and_wildcards(run, rule, wildcards, label):
    assert begin(run, 1, rule, 0.0, **wildcards).label == label


@pytest.mark.parametrize(
    ("said", "made"),
    [
        ("chunk: 50%|##| 1/2 [00:01<00:01]\n{D}/chunks/tiny: 2375 chunks\n", "2375 chunks"),
        ("tokens of tiny: 49 documents, 3 skipped\nwarning: a key is never used\n", "49 documents, 3 skipped"),
        ("mean share of it: 0.2\n", "mean share of it: 0.2"),
        ("8 rows → {D}/summary.csv\nRETRO needs fewer.\n", "8 rows → summary.csv"),
        ("tiny: 3.5 bits → {D}/runs/gpt-s1/evaluation/losses.npy", "3.5 bits"),
        ("", ""),
    ],
)
def test_what_a_job_made_is_the_last_that_it_said(run, said, made):
    job = begin(run, 1, "chunk", 0.0, said.format(D=run.folder), source="tiny")
    assert job.made(run.folder, 30) == made


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_line_is_as_long_as_it_may_be(run, width):
    job = begin(run, 1, "chunk", 0.0, "tiny: " + "a very long line " * 20, source="a-source-of-a-very-long-name" * 2)
    line = view.ended(run, job, 12345.6, width)
    assert len(line) <= width and line.endswith("  3 h 25 min") and line.count("…") == 2


# About how long the rest takes


def test_nothing_is_said_of_the_rest_while_no_training_is_known(run):
    assert run.remaining(0.0) is None
    begin(run, 1, "chunk", 0.0, source="tiny")
    finish(run, 1, 10.0)
    assert run.remaining(10.0) is None
    begin(run, 2, "train", 10.0, run="gpt-s1")
    assert run.remaining(20.0) is None


def test_a_training_that_runs_tells_how_long_the_others_take(run):
    begin(run, 1, "chunk", 0.0, source="tiny")
    finish(run, 1, 10.0)
    begin(run, 2, "train", 10.0, TRAINING, run="gpt-s1")
    # 130 s of this one, 150 s of the other, and three evaluations, which count as what has ended: 10 s each.
    assert run.remaining(30.0) == pytest.approx(130 + 150 + 3 * 10)


def test_jobs_side_by_side_take_half_as_long(run):
    begin(run, 1, "chunk", 0.0, source="tiny")
    finish(run, 1, 100.0)
    begin(run, 2, "train", 0.0, TRAINING, run="gpt-s1")
    begin(run, 3, "train", 0.0, TRAINING, run="retro-s1")
    assert run.remaining(100.0) == pytest.approx((130 + 130 + 3 * 100) / 3)


def test_an_earlier_run_tells_how_long_this_one_takes(run, tmp_path):
    for path, took in {"chunk/tiny": 5, "train/gpt-s1": 100, "train/retro-s1": 200, "losses/a": 7}.items():
        file = tmp_path / f"benchmarks/{path}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"s": {took}}}\n', encoding="utf-8")
    (tmp_path / "benchmarks/cut.jsonl").write_text('{"s": ', encoding="utf-8")
    again = Run.of(tmp_path)
    again.take({"event": "run_info", "stats": {"chunk": 1, "train": 2, "losses": 3, "all": 1, "total": 7}})
    assert again.remaining(again.began) == pytest.approx(5 + 300 + 21)
    begin(again, 1, "train", again.began, run="gpt-s1")
    assert again.remaining(again.began + 40) == pytest.approx(5 + 60 + 200 + 21)


def test_a_job_that_is_tried_again_counts_once(run):
    for number in (1, 1):
        begin(run, number, "train", 0.0, TRAINING, run="gpt-s1")
        run.take({"event": "job_error", "jobid": number, "time": 1.0})
    begin(run, 1, "train", 1.0, TRAINING, run="gpt-s1")
    assert run.left["train"] == 1 and [job.label for job in run.failed] == ["gpt-s1", "gpt-s1"]
    finish(run, 1, 5.0)
    assert not run.failed


# Lines in a pipe


def test_a_training_tells_how_far_it_is_at_most_ten_times_and_never_twice_in_half_a_minute(run, capsys):
    lines, job = Lines(run), begin(run, 1, "train", 0.0, TRAINING, run="retro-s1")
    for second in range(1000):
        said = TRAINING.replace("1,080/1,600", f"{second}/1,000")
        job.log.write_text(said, encoding="utf-8")
        lines.refresh(float(second))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 9
    assert shown[0].split()[:6] == ["retro-s1", "10", "%", "loss", "3.21", "2:10"]
    job.log.write_text(TRAINING.replace("1,080/1,600", "999/1,000"), encoding="utf-8")
    lines.refresh(1e5), lines.refresh(1e5 + 599)
    assert len(capsys.readouterr().out.splitlines()) == 1, "now and then, where it takes for ever"


def test_other_jobs_tell_it_after_minutes_only(run, capsys):
    lines = Lines(run)
    begin(run, 1, "embed", 0.0, "embed: 50%|##| 1/2 [01:00<01:00]", source="tiny")
    for second in range(300):
        lines.refresh(float(second))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_who_closes_the_pipe_ends_no_run():
    code = "from pathlib import Path; from retro.tools.view import Lines; from retro.tools.progress import Run\n"
    code += "for _ in range(3): Lines(Run(Path())).write('x' * 100000)\nprint('lived', file=__import__('sys').stderr)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "lived\n" and process.wait() == 0


# Alive, on a terminal

ALIVE = """
import os, sys
from pathlib import Path
from retro.tools.progress import Run
from retro.tools.view import view_of
folder = Path(sys.argv[1])
run = Run(folder, began=0.0)
run.take({"event": "run_info", "stats": {"train": 2, "all": 1, "total": 3}})
with view_of(run) as shown:
    shown.begun()
    for number, name in enumerate(["gpt-s1", "retro-s1"]):
        facts = {"jobid": number, "rule_name": "train", "wildcards": {"run": name}, "benchmark": None, "time": 0.0}
        run.take({"event": "job_info", "log": [str(folder / "train.log")], **facts})
        shown.refresh(number + 1.0)
    shown.write("a line between, " + "longer than a terminal is wide, " * 6)
    shown.refresh(50.0)
    if "wait" in sys.argv:
        os.write(1, b"READY")
        sys.stdin.readline()
    for number in range(2):
        shown.refresh(60.0)
        shown.ended(run.take({"event": "job_finished", "job_id": number, "time": 65.0}), 65.0)
    shown.refresh(70.0)
print("the end")
"""


def alive(folder: Path, width: int, *words: str, **environment: str) -> Terminal:
    (folder / "train.log").write_text(f"{TRAINING}\n", encoding="utf-8")
    python = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    return Terminal([sys.executable, "-c", ALIVE, str(folder), *words], width, python | environment)


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_nothing_stays_but_the_lines(tmp_path, width):
    terminal = alive(tmp_path, width)
    assert terminal.ended() == 0
    shown = terminal.screen.text()
    assert shown[0] == "2 stages" and shown[-1] == "the end" and not terminal.screen.hidden
    assert [line.split()[:2] for line in shown[-3:-1]] == [["1/2", "gpt-s1"], ["2/2", "retro-s1"]]
    assert "".join(shown[1:-3]).startswith("a line between") and "left" not in "".join(shown)
    assert all(len(line) <= width for line in shown)


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 120])
def test_what_runs_is_drawn_below_with_share_loss_and_time(tmp_path, width):
    terminal = alive(tmp_path, width, "wait")
    terminal.screen.feed(terminal.read(until="READY").partition("READY")[0])
    shown = terminal.screen.text()
    assert [line.split()[0] for line in shown[-3:]] == ["gpt-s1", "retro-s1", "0"]
    assert shown[-2].split()[-6:] == ["68", "%", "loss", "3.21", "2:10", "left"] and "━" * 20 in shown[-2]
    assert shown[-1] == "0 of 2 stages done · 0:50 so far · about 2 min left"
    assert terminal.screen.hidden and all(len(line) < width for line in shown[-3:])
    os.write(terminal.own, b"\n")
    terminal.read()
    assert terminal.process.wait() == 0


@pytest.mark.slow
def test_what_has_ended_is_not_drawn_as_running(tmp_path):
    terminal = alive(tmp_path, 80)
    before, line, after = terminal.read().partition("1/2")
    screen = terminal.screen
    screen.feed(before + line + after[: after.index(" done")])
    assert [text.split()[0] for text in screen.text()[-3:]] == ["1/2", "retro-s1", "1"]
    terminal.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("width", [20, 60, 200])
def test_a_terminal_may_change_its_size(tmp_path, width):
    terminal = alive(tmp_path, 80, "wait")
    terminal.read(until="READY")
    terminal.resize(width)
    os.write(terminal.own, b"\n")
    text = terminal.read()
    assert terminal.process.wait() == 0 and "Traceback" not in text
    assert text.rstrip().endswith("the end") and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.slow
def test_colours_are_left_out_where_they_are_not_wanted(tmp_path):
    plain, coloured = alive(tmp_path, 80, NO_COLOR="1"), alive(tmp_path, 80)
    assert plain.ended() == 0 and coloured.ended() == 0
    assert not plain.screen.colours and coloured.screen.colours
    assert plain.screen.text() == coloured.screen.text()


@pytest.mark.slow
def test_a_terminal_that_can_do_nothing_gets_lines(tmp_path):
    terminal = alive(tmp_path, 80, TERM="dumb")
    assert terminal.ended() == 0 and "\x1b" not in terminal.written and "\r" not in terminal.written.replace("\r\n", "")


# The end


def test_what_went_wrong_says_which_stage_what_and_where(run, tmp_path):
    job = begin(run, 1, "chunk", 0.0, "error: a.txt: not UTF-8. Convert it.\n", source="tiny")
    run.take({"event": "job_error", "jobid": 1, "time": 1.0})
    said = ended.failed(run, tmp_path / "logs", 0.0, tmp_path / "logs/run-1.log", 1)
    assert f"What went wrong (chunk tiny):\n  {job.log}: error: a.txt: not UTF-8. Convert it.\n" in said
    assert "All that was printed:" in said and said.endswith("run the same command again.")


def test_a_stage_without_a_message_of_its_own_has_the_end_of_its_log(run, tmp_path):
    begin(run, 1, "chunk", 0.0, "".join(f"line {number}\n" for number in range(50)) + "Killed\n", source="tiny")
    run.take({"event": "job_error", "jobid": 1, "time": 1.0})
    said = ended.failed(run, tmp_path / "logs", 0.0, tmp_path / "logs/run-1.log", 1)
    assert "chunk/tiny.log ends with:\n    line 39\n" in said and "\n    Killed\n" in said


def test_snakemakes_own_message_is_told_where_no_stage_failed(run, tmp_path):
    run.take({"event": "error", "message": "MissingRuleException:\nNo rule to produce nonsense", "time": 1.0})
    said = ended.failed(run, tmp_path / "logs", 0.0, tmp_path / "logs/run-1.log", 1)
    assert "  No rule to produce nonsense\n" in said


def test_stopping_says_where_trainings_go_on(run, tmp_path):
    begin(run, 1, "train", 0.0, run="gpt-s1")
    begin(run, 2, "train", 0.0, run="retro-s1")
    folder = tmp_path / "runs/retro-s1/checkpoints/0123456789abcdef"
    folder.mkdir(parents=True)
    for step in (4, 8):
        (folder / f"step-{step:08}.safetensors.sha256").write_text("")
        os.utime(folder / f"step-{step:08}.safetensors.sha256", (step, step))
    (folder / "step-00000012.safetensors").write_text("cut short")
    said = ended.stopped(run, 75.0)
    assert said.startswith("Stopped after 0 of 6 stages, 75 s.")
    assert "  gpt-s1: had no checkpoint yet, and begins again\n" in said
    assert f"  retro-s1: goes on from {folder}/step-00000008.safetensors\n" in said
    assert said.endswith("the same command goes on from there.")


def test_stopping_before_anything_is_known_says_so(tmp_path):
    assert ended.stopped(Run(tmp_path), 2.0).startswith("Stopped before the first stage, 2 s.\n")


def test_a_log_that_is_removed_while_it_is_looked_at_is_none(tmp_path, monkeypatch):
    """Snakemake removes what an interrupted job left just before it says that the job begins again."""
    log = tmp_path / "assemble.log"
    log.write_text("left by an earlier attempt")
    assert written(log) is not None
    stat = Path.stat

    def too_late(path, **options):
        log.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", too_late)
    assert written(log) is None and written(None) is None
