"""Commands that the README and the tutorials show are run, in a project with the results of the tiny pipeline.

Each page gets a project of its own, with the files that it talks of and the configs that it shows, and its commands are
run from top to bottom. What would make whole runs is planned, and `NOT_RUN` lists what is not even that.
"""

import os
import re
import shlex
import sys
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from snakemake.cli import get_argument_parser

from retro.config.schema import load
from retro.tools import cli
from retro.tools import run as workflow
from tests.interop.make_checkpoints import write_ranks
from tests.interop.test_checkpoints import whole
from tests.workflow.conftest import ROOT, Project
from tests.workflow.plan import Plan
from tests.workflow.test_new import documents

PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs/tutorials").glob("*.md")))]
PROGRAMS = ("git", "make", "python", "retro", "snakemake")
NOT_RUN = {  # and why not; what is ours is at least parsed: `make -n`, `--help`
    "git clone <this repository> retro && cd retro": "network",
    "hf download HuggingFaceTB/SmolLM2-135M --local-dir models/SmolLM2-135M": "network",
    "make archive": "packs the default run's results; tests/workflow/test_archive.py packs the tiny one's",
    "make audit": "network",
    "make bench": "minutes",
    "make run CONFIG=config/retrofit-smollm2.yaml": "wants the model that was fetched; tests/training/test_foreign.py",
    "make report": "Snakemake's own page; tests/tools/test_commands.py reads the line",
    "make test": "this is it",
    "make test-container": "images",
    "make test-faults": "an hour",
    "make test-slurm": "a cluster",
    "python -m retro.qa.harness": "wants the harness's packages, and a run; tests/qa/test_harness.py",
    "python -m retro.planning.plan": "named without arguments",
    "retro export --run fitted-s1 --output exported": "wants what that made; tests/training/test_foreign.py",
    "retro ask": "wants a fine-tuned model; tests/qa/test_ask.py",
    "retro plan": "named without arguments",
    "retro serve --run results/notes/runs/retro-s1": "serves until it is stopped; tests/generation/test_serve.py",
    "retro --help": "tests/tools/test_cli.py",
    "retro write": "named without arguments",
}
TINY = "results/tiny/runs/retro-s1"
TRANSLATED = {  # where a page talks of results that only its own whole run would make
    "export results/wiki/runs/mine-s1 STATE": "export models/mine STATE",  # the imported weights before any training
    "--run results/wiki/runs/mine-s1": f"--run {TINY}",
    "--run results/open-book/runs/retro-s1": f"--run {TINY}",
}

GIVEN = """
import torch
input_ids = torch.tensor([tokenizer.encode("One passage. " * 20)])
neighbours = torch.zeros(1, 2, 2, model.config.retrieved_length, dtype=torch.long)
mask = torch.ones_like(neighbours, dtype=torch.bool)
"""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def steps(page: str) -> list[tuple[str, str]]:
    """What a reader does, in this order: (name of a config, its text) and ("", command), then commands in backticks.

    Commands are lines that stand in by four blanks. A config without a name in its first line goes on with `CONFIG`;
    one that is a part `of` a file is passed over.
    """
    found = []
    for language, block, line in re.findall(r"^```(\w+)\n(.*?)^```$|^ {4}(\S[^\n]*)$", text_of(page), re.M | re.S):
        if block.startswith("# of "):
            continue
        if language == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", block)
            text = f"dataset:\n{block}" if block.startswith(" ") else block
            found.append((name[1] if name else "CONFIG", text))
        elif line:
            found.append(("", line.partition("    #")[0].rstrip()))
    inline = re.findall(rf"`((?:{'|'.join(PROGRAMS)}) [^`\n]+)`", text_of(page))
    return list(dict.fromkeys([*found, *(("", command) for command in inline)]))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def write_files(project: Project) -> None:
    """What the pages talk of. Only `notes` and the checkpoint are read; of the rest the names are enough."""
    folder = project.folder
    for path in (ROOT / "data").iterdir():
        if not (folder / "data" / path.name).exists():
            (folder / "data" / path.name).symlink_to(path)
    for name in ("Makefile", "pyproject.toml", "envs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "notes").mkdir()
    for number, text in enumerate(documents(30)):
        (folder / f"notes/{number}.txt").write_text(text, encoding="utf-8")
    names = ["papers.jsonl.zst", "manual.jsonl", "mine/1.jsonl.zst", "mine.jsonl", "gpt2-vocab.json", "gpt2-merges.txt"]
    for name in [*names, *(f"data/Wikipedia_shuf_text_document.{end}" for end in ("bin", "idx"))]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}\n", encoding="utf-8")


def write_checkpoint(folder: Path) -> None:
    """A checkpoint of Megatron's, two tensor-parallel ranks, with the vocabulary of GPT-2, padded."""
    state, told = whole("squared relu")  # whose positions are rotary, so that any length fits
    del told["retro_chunk_length"], told["retro_retrieved_length"]  # the command says them
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        state[name] = torch.zeros(50304, state[name].shape[1])
    write_ranks(folder, state, layers=6, ranks=2, **told | {"padded_vocab_size": 50304})


@pytest.fixture
def project(finished, tmp_path):
    found = finished.clone(tmp_path / "project")
    write_files(found)
    return found


def planned(project: Project, words: list[str]) -> None:
    """Let Snakemake read its command line and plan, in this process: started anew it takes ten times as long."""
    options = get_argument_parser().parse_args(words)
    config: dict = {}
    for path in options.configfile or ["config/tiny.yaml"]:
        config |= yaml.safe_load((project.folder / path).read_text(encoding="utf-8"))
    Plan.of(project.folder, config, set(options.targets) or {"all"})


def run_retro(project: Project, words: list[str], monkeypatch) -> None:
    """Run a command of `retro`; of one that starts Snakemake take the command line that it would start."""
    with chdir(project.folder), monkeypatch.context() as patched:
        module, words = cli.line(words[0], words[1:])
        if module != "retro.tools.run":
            done = project.run(project.python, "-m", module, *words)
            assert done.returncode == 0, done.stdout
            return
        started: list[list[str]] = []
        patched.setattr(workflow.subprocess, "run", lambda line: started.append(line) or SimpleNamespace(returncode=0))
        patched.setattr(sys, "argv", [module, *words, "--", "--dry-run"])
        patched.setenv("PATH", os.environ["PATH"])  # put back afterwards
        with pytest.raises(SystemExit) as ended:
            workflow.main()
    assert ended.value.code == 0 and started[0][0] == "snakemake"
    planned(project, started[0][1:])


def run(project: Project, command: str, monkeypatch) -> None:
    """Run or plan a command. A line of `make` is what make would run."""
    for shown, ours in TRANSLATED.items():
        command = command.replace(shown, ours)
    program, *words = shlex.split(command)
    if program == "snakemake":
        planned(project, words)
    elif program == "make":
        done = project.run("make", "--no-print-directory", "-n", *words)
        assert done.returncode == 0, done.stdout
        line = shlex.split(done.stdout.splitlines()[-1].partition("activate && ")[2])
        assert line[:3] == ["python", "-m", "retro.tools.run"]
        run_retro(project, ["run", *line[3:]], monkeypatch)
    elif program == "retro":
        run_retro(project, words, monkeypatch)
    else:
        done = project.run(project.python, *words)
        assert done.returncode == 0, done.stdout


def parsed(project: Project, command: str) -> None:
    """What is not run is at least a command that there is, and takes these options."""
    program, *words = shlex.split(command)
    if program == "make":
        assert project.run("make", "-n", *words).returncode == 0
    elif program not in ("git", "hf") and words != ["--help"]:
        module = cli.BY_NAME[words[0]].module if program == "retro" else words[1]
        done = project.run(project.python, "-m", module, "--help")
        assert done.returncode == 0, done.stdout
        assert {word for word in words[1:] if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(project, page, monkeypatch):
    if "checkpoints/retro" in text_of(page):
        write_checkpoint(project.folder / "checkpoints/retro")
    for name, text in steps(page):
        if name:
            with open(project.folder / name, "a" if text.startswith("runs:") else "w", encoding="utf-8") as file:
                file.write(text)
            assert load(project.folder / name).dataset.sources
        elif text in NOT_RUN:
            parsed(project, text)
        else:
            run(project, text, monkeypatch)
    if page == "docs/tutorials/hugging-face.md":
        first, second, third = blocks(page, "python")
        third = third.replace("results/open-book", "results/tiny")
        done = project.run(project.python, "-c", first + GIVEN + second + third)
        assert done.returncode == 0, done.stdout


def test_what_is_not_run_is_shown_somewhere():
    assert set(NOT_RUN) <= {text for page in PAGES for name, text in steps(page) if not name}
