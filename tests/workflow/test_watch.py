"""`make run` on a real run: how much it prints, what it prints alive, and what Ctrl-C and a failure leave."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time

import psutil
import pytest

from retro.tools import ended
from retro.tools.watch import PATIENCE
from tests.tools.terminal import Terminal
from tests.workflow.conftest import Project

COMMAND = ["-m", "retro.tools.run", "--config", "config/tiny.yaml", "--cores", "2"]
LINES, COLUMNS = 120, 160  # the most that a whole run may print in a pipe


@pytest.fixture
def shown(finished) -> list[str]:
    """What the whole run printed into a pipe."""
    return (finished.folder.parent / "shown.txt").read_text(encoding="utf-8").splitlines()


def test_a_whole_run_prints_few_lines_and_short_ones(shown):
    assert len(shown) < LINES and max(map(len, shown)) <= COLUMNS


def test_every_stage_has_a_line_when_it_ends(shown):
    counted = [re.match(r" +(\d+)/(\d+) (\S.*)", line) for line in shown]
    numbers = [(int(found[1]), int(found[2])) for found in counted if found]
    assert numbers == [(number, len(numbers)) for number in range(1, len(numbers) + 1)] and len(numbers) > 25
    lines = "\n".join(shown)
    assert re.search(r"chunk tiny +2375 chunks of 32 tokens .* \d\S* s$", lines, re.MULTILINE)
    assert re.search(r"retro-s1 +48 samples in .* s of training", lines)


def test_nothing_of_snakemakes_is_printed_and_all_of_it_is_kept(finished, shown):
    assert not [line for line in shown if "input:" in line or "Job stats" in line or "python -m retro.corpus" in line]
    log = re.search(r"details: (\S+)$", shown[1])[1]
    kept = (finished.folder / log).read_text(encoding="utf-8")
    assert "Job stats:" in kept and "input:" in kept and "(100%) done" in kept


def test_the_end_has_result_warnings_time_pages_and_commands(finished, shown):
    text = "\n".join(shown)
    assert "\nToo little was trained on to tell what retrieval buys." in text and "set dataset.samples.epochs" in text
    assert re.search(r"  GPT \+ copier +\d\.\d{3} +[+−±]\d+\.\d %$", text, re.MULTILINE)  # 4 documents: no interval
    assert "of an epoch" in text[text.index("warning: ") :]
    assert re.search(r"^\d+ stages in ", text, re.MULTILINE)
    for page in re.findall(r"^  (results/\S+)  ", text, re.MULTILINE):
        assert (finished.folder / page).is_file()


def test_the_result_is_told_of_what_there_is(finished, tmp_path):
    """Without a copier beside the models it is the comparison, without a twin to compare with the models alone."""
    for name in ("summary.csv", "comparison.csv"):
        shutil.copy(finished.results(name), tmp_path)
    compared = ended.found(tmp_path)
    assert "On held-out text" in compared and "copier" not in compared.partition("\n\n")[0]
    assert re.search(r"^  RETRO, retrieval off +\d\.\d{3} +[+−±]", compared, re.MULTILINE)
    header = (tmp_path / "comparison.csv").read_text().splitlines()[0]
    (tmp_path / "comparison.csv").write_text(f"{header}\n")
    alone = ended.found(tmp_path)
    assert "On held-out" not in alone and re.search(r"^  gpt-s1, retrieval none +\d\.\d{3}$", alone, re.MULTILINE)


def test_the_commands_to_try_next_work(finished, shown):
    commands = [line.strip() for line in shown if re.match(r"  (\S*retro|python -m retro.tools.cli) ", line)]
    search, write, serve = commands
    for command in (search, write + " --tokens 3"):
        done = finished.run("bash", "-c", command)
        assert done.returncode == 0 and "japan" in done.stdout.lower(), done.stdout
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*shlex.split(serve.replace("python", finished.cold().python, 1)), "--port", str(port)]
    server = subprocess.Popen(command, cwd=finished.folder, env=finished.environment, stderr=subprocess.PIPE, text=True)
    assert f"http://127.0.0.1:{port}" in server.stderr.readline()
    server.terminate()
    server.communicate()


def test_with_nothing_to_do_it_ends_the_same(finished):
    done = finished.make_run()
    assert done.returncode == 0 and "Nothing to do: all is up to date." in done.stdout
    assert "Too little was trained on" in done.stdout and "report.html" in done.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_a_run_leaves_its_lines_and_nothing_else(finished, tmp_path, width):
    project = Project.create(tmp_path / "project")
    terminal = Terminal(
        [project.python, *COMMAND, "results/tiny/chunks/tiny/manifest.json"], width, project.environment, project.folder
    )
    assert terminal.ended() == 0, terminal.written[-4000:]
    screen = terminal.screen
    lines = [line for line in screen.text() if line]
    assert [line.split()[:2] for line in lines[3:6]] == [["1/3", "train"], ["2/3", "tokenize"], ["3/3", "chunk"]]
    assert lines[2] == "3 stages, on 2 cores" and re.match(r"3 stages in ", lines[6]) and not screen.hidden
    assert all(len(line) <= width for line in lines) and "so far" not in "".join(lines)
    assert "so far" in terminal.written


def wait_for(condition) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def training(project: Project) -> Project:
    """A project of which all but the trainings is made."""
    for run in ("gpt-s1", "retro-s1"):
        project.results(f"runs/{run}/model.json").unlink()
        for path in project.results(f"runs/{run}/checkpoints").glob("*/step-*"):
            path.unlink()
    return project.cold()


@pytest.mark.parametrize("whom", ["all, twice", "the first only"])
def test_ctrl_c_says_where_it_goes_on_and_the_next_run_ends_in_the_same_bytes(finished, tmp_path, whom):
    project = training(finished.clone(tmp_path / "project"))
    log = project.results("logs/train/retro-s1.log")
    log.unlink()
    process = subprocess.Popen(
        [project.python, *COMMAND, "train_all"], cwd=project.folder, env=project.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background of a script
    )  # fmt: skip
    wait_for(lambda: log.exists() and "step 3/" in log.read_text(encoding="utf-8"))
    if whom == "the first only":
        held = [each for each in psutil.process_iter() if _inside(each, project) and _trains(each)]
        for each in held:
            each.suspend()  # it would be done before the signal is handed on
        process.send_signal(signal.SIGINT)
        time.sleep(PATIENCE + 2)
        for each in held:
            each.resume()
    else:
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
    said = process.communicate()[0]
    assert process.returncode == 130 and said.count("Stopping: ") == 1 and "Traceback" not in said, said
    assert re.search(r"retro-s1: goes on from results/tiny/runs/retro-s1/checkpoints/\w+/step-\d+\.safetensors", said)
    assert not [each for each in psutil.process_iter() if _inside(each, project)], "nothing goes on behind the scenes"
    done = project.make_run("train_all")
    assert done.returncode == 0, done.stdout
    assert "start      step " in log.read_text(encoding="utf-8")
    for run in ("gpt-s1", "retro-s1"):
        weights = f"runs/{run}/model.safetensors"
        assert project.results(weights).read_bytes() == finished.results(weights).read_bytes()


def _trains(process: psutil.Process) -> bool:
    return "retro.training.train" in process.cmdline()


def _inside(process: psutil.Process, project: Project) -> bool:
    try:
        return process.cwd() == str(project.folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_a_failed_stage_is_told_in_its_own_words(finished, tmp_path):
    project = Project.create(tmp_path / "project")
    (project.folder / "data/tiny.jsonl").write_text('{"text": "whole"}\n{"text": \n', encoding="utf-8")
    done = project.make_run()
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert re.search(
        r"^What went wrong \(train tokenizer\):\n  \S+/train_tokenizer.log: error: ", done.stdout, re.MULTILINE
    )
    assert done.stdout.count("error: ") == 1 and "All that was printed: results/tiny/logs/run-" in done.stdout
    assert len(done.stdout.splitlines()) < 12


def test_what_snakemake_refuses_is_told_in_its_words(finished):
    done = finished.make_run("--", "--until", "nonsense")
    assert done.returncode == 1 and "Traceback" not in done.stdout
    assert "What went wrong:\n" in done.stdout and "nonsense" in done.stdout


def test_snakemakes_options_are_handed_on(finished):
    done = finished.make_run("--", "--dry-run")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout
    done = finished.make_run("--", "--workflow-profile", "profiles/slurm", "--dry-run")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout, "a cluster's profile says how many jobs"
    done = finished.make_run("--", "train_all", "--no-such-option")
    assert done.returncode != 0 and "unrecognized arguments: --no-such-option" in done.stdout
