"""The frame of commands that people type: a stage's (`retro.base.stage.run`), and what names nothing is answered with
what there is.

Stages, which rules call, do without: what they can reach counts in their digests.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from retro.base import stage
from retro.base.nearest import beside, did_you_mean
from retro.base.stage import UserError


def run(main: Callable[[], None]) -> None:
    """Run a command as a stage is run; where a name on its command line is of nothing, say what there is."""

    def suggesting() -> None:
        with choices_suggested():
            try:
                main()
            except UserError as error:
                near = near_path(str(error))
                raise UserError(f"{error} {near}".rstrip()) from error if near else None
            except FileNotFoundError as error:
                near = near_path(str(error.filename))
                if not near:
                    raise
                raise UserError(f"{error}. {near}") from error

    stage.run(suggesting)


def near_path(message: str) -> str:
    """What lies beside the path that a message begins with, if the command was given it, or a folder above it."""
    path, words = message.partition(": ")[0], sys.argv[1:]
    given = [word.partition("=")[2] if word.startswith("-") else word for word in words]
    if "did you mean" in message.lower() or not any(word and path.startswith(word) for word in given):
        return ""
    return beside(Path(path))


@contextmanager
def choices_suggested() -> Iterator[None]:
    """In this block argparse says of a wrong choice or option which was meant; Python can do so itself from 3.14 on."""
    before = argparse.ArgumentParser.error

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        before(parser, message + meant(message, list(parser._option_string_actions)))

    argparse.ArgumentParser.error = error  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = before  # type: ignore[method-assign]


def meant(message: str, options: list[str]) -> str:
    """What to add to what argparse says of a word that is none of its choices or of its `options`."""
    if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
        return did_you_mean(found[1], re.findall(r"[\w.+-]+", found[2]))
    found = re.search(r"unrecognized arguments: (--[\w-]+)", message)
    return did_you_mean(found[1], options) if found else ""
