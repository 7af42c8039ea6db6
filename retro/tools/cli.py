"""`retro`: every command of the project under one name.

    retro run --config config/tiny.yaml
    retro show --text "The capital of Sri Lanka is"

A command is a line of `COMMANDS`: it runs a module just as `python -m` does, and hands on what follows its name as it
is. What is listed here is all that this module imports, so that `retro --help` and completion answer at once.
"""

import ast
import functools
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer
from typer.core import CompletionItem, TyperCommand

from retro.base import stage
from retro.base.nearest import unknown
from retro.base.stage import UserError
from retro.dataset.named import datasets, newest, report_run

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Command:
    """A command: the module it runs, what it does in a line, examples.

    `words` are put before the user's. `other`: a flag, and the module that is run instead where it is given. `needs`:
    what is filled in where the user does not give it, of the newest results. `workflow`: runs Snakemake, and so works
    in a folder with a Snakefile only.
    """

    module: str
    about: str
    examples: tuple[str, ...]
    words: tuple[str, ...] = ()
    other: tuple[str, str] = ("", "")
    needs: Literal["", "--config", "--run", "folder"] = ""
    workflow: bool = False


MAKE, USE, CHECK, EXCHANGE = "Make", "Use what was made", "Plan and check", "Hand on"
RUN = functools.partial(Command, "retro.tools.run", workflow=True)
COMMANDS: dict[str, dict[str, Command]] = {
    MAKE: {
        "new": Command(
            "retro.tools.new",
            "Look at your own text, and write a config for it.",
            ("retro new notes/ --output mine.yaml", "retro new corpus.jsonl.zst --name mine"),
        ),
        "run": RUN(
            "Make all that is not there yet: from text to the report.",
            ("retro run", "retro run --config mine.yaml --cores 8 preprocess"),
        ),
        "experiments": RUN(
            "Ask trained models more: fewer neighbours, smaller databases …",
            ("retro experiments", "retro experiments --config config/experiments.yaml"),
            ("experiments",),
        ),
        "qa": RUN(
            "Fine-tune models to answer questions; score their answers.",
            ("retro qa", "retro qa --config config/instruct.yaml"),
            ("--config", "config/qa.yaml", "qa"),
        ),
        "report": RUN(
            "Write Snakemake's own report: figures with code and run times.",
            ("retro report", "retro report --config mine.yaml"),
            ("--report", "results/snakemake-report.html"),
        ),
    },
    USE: {
        "show": Command(
            "retro.retrieval.search",
            "Show what is looked up for a text, or was for a chunk.",
            ('retro show --text "The capital of Sri Lanka is"', "retro show --split test --chunk 12"),
            needs="--config",
        ),
        "write": Command(
            "retro.generation.generate",
            "Let a trained model write, and look things up meanwhile.",
            ('retro write --prompt "Sri Lanka: Geography" --show', "retro write --run gpt-s1 --prompt Norway"),
            needs="--run",
        ),
        "serve": Command(
            "retro.generation.serve",
            "Let it write on a local page, in the browser.",
            ("retro serve", "retro serve --run retro-s1 --port 8080"),
            needs="--run",
        ),
        "add-book": Command(
            "retro.tools.add_book",
            "Give trained runs more text to look things up in; or --undo.",
            ("retro add-book notes/ --config open-book", "retro add-book --undo --config open-book"),
            needs="--config",
            workflow=True,
        ),
        "ask": Command(
            "retro.qa.ask",
            "Ask a model that was fine-tuned to answer.",
            (
                'retro ask "How long is the coastline of Sri Lanka?"',
                'retro ask --show "What is the highest point of Norway?"',
            ),
        ),
    },
    CHECK: {
        "plan": Command(
            "retro.planning.plan",
            "Say how much disk, memory and time a config will take.",
            ("retro plan config/config.yaml", "retro plan --preset 4b --database-tokens 300e9 --gpus 256"),
        ),
        "verify": Command(
            "retro.tools.verify",
            "Compare every file made with what was recorded of it.",
            ("retro verify", "retro verify results/open-book --quick"),
            needs="folder",
        ),
        "validate": RUN(
            "Recompute a sample of what is stored, and compare the bits.",
            ("retro validate", "retro validate --config mine.yaml"),
            ("validate",),
        ),
    },
    EXCHANGE: {
        "export": Command(
            "retro.interop.huggingface",
            "Write a trained model for transformers, or for Megatron.",
            (
                "retro export --run retro-s1 --output FOLDER",
                "retro export --megatron results/open-book/runs/gpt-s1 STATE.safetensors",
            ),
            ("export",),
            ("--megatron", "retro.interop.megatron"),
        ),
        "import": Command(
            "retro.interop.megatron",
            "Read a checkpoint of Megatron, for a run to begin with.",
            ("retro import STATE.safetensors FOLDER --heads 16 --chunk-length 64",),
            ("import",),
        ),
        "dataset": Command(
            "retro.tools.pack",
            "Pack a preprocessed dataset, or open one, and train on it.",
            (
                "retro dataset pack --config config/config.yaml --output open-book.tar.zst",
                "retro dataset open open-book.tar.zst",
            ),
        ),
        "archive": Command(
            "retro.tools.archive",
            "Pack what another machine needs to make a run again.",
            (
                "retro archive pack --config config/config.yaml --output archive/open-book",
                "retro archive check expected.json results/open-book",
            ),
        ),
    },
}
BY_NAME = {name: command for group in COMMANDS.values() for name, command in group.items()}


def line(name: str, given: list[str]) -> tuple[str, list[str]]:
    """The module that a command runs, and its arguments. Raises `UserError` where the command cannot be run here."""
    command = BY_NAME[name]
    flag, module = command.other
    if flag and flag in given:
        return module, [*command.words, *(word for word in given if word != flag)]
    if asks_for_help(given):
        return command.module, [*command.words, *given]
    filling = command.needs and not is_given(command.needs, given)
    lacks = (
        "no Snakefile" if command.workflow else "neither results nor a Snakefile" if filling and not datasets() else ""
    )
    if lacks and not Path("Snakefile").is_file():
        home = f"cd {ROOT}" if (ROOT / "Snakefile").is_file() else "cd to your copy of it"
        raise UserError(f"{Path.cwd()}: {lacks} here, which `retro {name}` needs. Run it in the project: {home}")
    return command.module, [*command.words, *(filled_in(command.needs) if filling else []), *given]


def asks_for_help(given: list[str]) -> bool:
    return "-h" in given or "--help" in given


def is_given(needs: str, given: list[str]) -> bool:
    """Whether the user gave what a command needs: an option, or a folder, which is no option."""
    if needs == "folder":
        return not all(word.startswith("-") for word in given)
    return any(word == needs or word.startswith(f"{needs}=") for word in given)


def filled_in(needs: str) -> list[str]:
    """What the user left out: the newest dataset, its folder, or the run that its report is about. Says which."""
    found = newest()
    if needs == "folder":
        found = found.parent
    elif needs == "--run":
        found = report_run(found.parent)
    print(f"taken: {found}{'' if needs == 'folder' else f' ({needs} names another)'}", file=sys.stderr, flush=True)
    return [str(found)] if needs == "folder" else [needs, str(found)]


class Through(TyperCommand):
    """A command whose arguments, --help among them, are found by the module that it runs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return args

    def shell_complete(self, ctx: Any, incomplete: str) -> list[CompletionItem]:
        """Options of the module; after --run the runs that there are. Where nothing is found, shells name files."""
        if ctx.args[-1:] == ["--run"]:
            runs = sorted(path.parent.as_posix() for path in Path("results").glob("*/runs/*/model.json"))
            return [CompletionItem(run) for run in runs if run.startswith(incomplete)]
        found = options(BY_NAME[str(self.name)].module) if incomplete.startswith("-") else []
        return [CompletionItem(option) for option in found if option.startswith(incomplete)]


def options(module: str) -> Iterator[str]:
    """The options of a module's command line, read from its text: to import it may take seconds."""
    text = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
            yield from (text for word in node.args if (text := ast.unparse(word).strip("'\"")).startswith("-"))


def called(context: typer.Context) -> None:
    """Run the command of a context; examples follow the module's help."""
    name = str(context.info_name)
    module, words = line(name, context.args)
    sys.argv = ["retro" if words[:1] == [name] and not BY_NAME[name].workflow else f"retro {name}", *words]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit:
        if asks_for_help(context.args):
            print("\n".join(["\nexamples:", *(f"  {example}" for example in BY_NAME[name].examples)]))
        raise


app = typer.Typer(
    help="From text to a retrieval-enhanced language model, and what to do with it. `retro COMMAND --help` tells more.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, group in COMMANDS.items():
    for each, command in group.items():
        app.command(each, cls=Through, help=command.about, rich_help_panel=panel, add_help_option=False)(called)


def main() -> None:
    word = next(iter(sys.argv[1:]), "-")
    if not word.startswith("-") and word not in BY_NAME:
        raise UserError(f"{unknown('command', word, BY_NAME)} Take one; `retro --help` says what each does.")
    app(prog_name="retro")


def start() -> None:
    """What the script `retro` calls."""
    stage.run(main)


if __name__ == "__main__":
    stage.run(main)
