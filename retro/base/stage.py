"""What every stage stands on: its settings, and the errors that a user can act on.

`run` is the frame of every stage's `main`. `Settings` is what every config section shares: frozen, unknown keys
refused, no truth value taken for a number. What settings refuse is told in the words of the one who wrote them, a line
for each key that is wrong.
"""

import argparse
import difflib
import errno
import io
import json
import math
import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, TextIO, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

# What torch and faiss say, whose errors are plain RuntimeErrors.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "std::bad_alloc")
LESS_MEMORY = (
    "Lower batch sizes (train.micro_batch_size, evaluate.batch_size, dataset.encoder.batch_size), set train.recompute: "
    "layers, or take a larger machine; python -m retro.planning.plan says what is needed."
)


class UserError(Exception):
    """Something the user can put right: says what was found where, what was wanted and the way out."""


def one_of(commands: dict[str, Callable[[], None]]) -> None:
    """Run the command that the first argument names; it finds its own arguments in those that follow."""
    parser = argparse.ArgumentParser(add_help=len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"))
    parser.add_argument("command", choices=list(commands), help="--help after it tells its own arguments")
    chosen = parser.parse_known_args()[0].command
    sys.argv = [f"{sys.argv[0]} {chosen}", *sys.argv[2:]]
    commands[chosen]()


def run(main: Callable[[], None]) -> None:
    """Run a stage: a `UserError`, a full disk or memory becomes one message and exit status 1, never a traceback.

    `RETRO_DEBUG=1` in the environment shows the traceback all the same.
    """
    _speak()
    try:
        for word in sys.argv[1:]:
            if not word.isprintable() and any("\ud800" <= character <= "\udfff" for character in word):
                raise UserError(f"the argument {word!r} is not UTF-8. Give it in UTF-8, or in a file.")
        main()
    except (UserError, OSError) as error:
        if os.environ.get("RETRO_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None and error.errno is None:
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = ". Make room and run again: what was finished is kept." if full else ""
        print(f"error: {error}{way_out}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)
        if os.environ.get("RETRO_DEBUG") or not full:
            raise
        reason = str(error).splitlines()[0] if str(error) else "no more is to be had"
        print(f"error: out of memory: {reason}. {LESS_MEMORY}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None


def _speak() -> None:
    """Let a terminal or log that cannot show a character be given its number, \\u2014, rather than end the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="backslashreplace")


def text_of(stream: TextIO, name: str) -> str:
    """All of an input as UTF-8, whatever the terminal's language is. Raises `UserError` for other bytes."""
    try:
        if isinstance(stream, io.TextIOWrapper):
            return stream.buffer.read().decode().replace("\r\n", "\n")
        return stream.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start} is not UTF-8. Convert it, such as with iconv -t utf-8.") from None


class Given(dict):
    """A JSON object in which a key that is not there is a `UserError` that names it."""

    def __missing__(self, key: str) -> Any:
        found = ", ".join(self) or "nothing"
        raise UserError(f"--settings: lacks {key!r}, has {found}. Give this stage's part of the config.")


def finite(text: str) -> float:
    """The type of an argument that is a number, for argparse: float takes nan and inf as well."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"found {text}; wanted a finite number")
    return value


def above(text: str) -> float:
    """The same of a number above 0: a speed, a size."""
    value = finite(text)
    if value <= 0:
        raise ArgumentTypeError(f"found {text}; wanted a number above 0")
    return value


def natural(text: str, least: int = 0) -> int:
    """The type of an argument that is a whole number from 0 on, of at most 31 bits."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) < 2**31:
        raise ArgumentTypeError(f"found {text}; wanted a whole number, at least {least}")
    return int(text)


def whole(text: str) -> int:
    """The same from 1 on: threads, steps, vectors."""
    return natural(text, 1)


def given(text: str) -> Given:
    """The type of such an argument, for argparse."""
    try:
        value = json.loads(text, parse_constant=finite, parse_float=finite)
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"not JSON ({error}); wanted an object, such as {{}}") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"found {text}; wanted a JSON object")
    return Given(value)


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation such as `list[int] | None` is made of."""
    inside = get_args(annotation)
    return set().union(*map(_types, inside)) if inside else {annotation}


def _holds_truth(value: Any) -> bool:
    """Whether a value is true or false, or has one in a list or as a value of a mapping."""
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(_holds_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def takes_truth_as_a_number(annotation: Any, value: Any) -> bool:
    """Whether a value holds true or false where the annotation has room for numbers only."""
    types = _types(annotation)
    return bool(types & {int, float}) and not types & {bool, True, False, Any} and _holds_truth(value)


class Settings(BaseModel):
    """A section of the config. Immutable; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true, which YAML reads `yes` and `on` as, where a number is wanted: it would become 1."""
        if takes_truth_as_a_number(cls.model_fields[str(info.field_name)].annotation, value):
            raise ValueError("wanted a number; true would become 1")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _paths_written_out(cls, value: Any, info: ValidationInfo) -> Any:
        """Write paths, which are marked by `Names`, as Snakemake wants them: `plain`."""
        for mark in cls.model_fields[str(info.field_name)].metadata:
            if isinstance(mark, Names) and value is not None:
                many = isinstance(value, list)
                value = [plain(text, mark.what) for text in value] if many else plain(value, mark.what)
        return value

    def facts(self) -> dict:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Names:
    """Marks a field whose text is a path, or a list of paths: `path: Annotated[str, Names("file")]`.

    Every field that can hold a path bears this mark: `retro.config.checks` finds them, and an archive takes along what
    they name. corpus: documents, files or folders. file, folder: read by a stage. model: a run of the config, or the
    path of a model.json or of its folder. preset: another config. results: where everything is made.
    """

    what: Literal["corpus", "file", "folder", "model", "preset", "results"]


VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
FILE_NAME = 255  # bytes, the most that common file systems take


def plain(path: str, what: str = "file") -> str:
    """A path of a config with ~ and $VARIABLES written out, without `./`, `//` and a slash at its end, which Snakemake
    would take for other files. Raises `ValueError` for what cannot be written out, or be a path."""
    unset = [name for name in VARIABLE.findall(path) if name.strip("{}") not in os.environ]
    if unset:
        raise ValueError(f"${unset[0]} is not set in the environment; set it, or write the path out")
    written = os.path.expanduser(os.path.expandvars(path))
    if written.startswith("~"):
        raise ValueError(f"{written.split('/')[0]} is no home folder here; write the path out")
    if any(len(os.fsencode(part)) > FILE_NAME for part in written.split("/")):
        raise ValueError(f"a name in this path is longer than {FILE_NAME} bytes, which no file has; shorten it")
    found = PurePosixPath(written).as_posix()
    if what == "results" and found in (".", "/", "//"):
        raise ValueError("wanted a folder of its own for everything made, such as results")
    return f"./{found}" if what == "model" and "/" in written and "/" not in found else found  # no run's name


@dataclass(frozen=True)
class Overrides:
    """Marks a field that overrides keys of another section: a mapping, validated when it is laid on that one."""

    section: type[BaseModel]


BRANCH = re.compile(r"(str|int|float|bool)|(list|tuple|dict|literal|function-[a-z]+)\[.*\]", re.DOTALL)
WORDS = {
    "missing": "is missing; every config needs it",
    "string_pattern_mismatch": "wanted letters, digits and . _ - only, a letter or digit first",
    "model_type": "wanted a mapping of keys to values",
}
SHOWN = 80  # characters of a value
S = TypeVar("S", bound=BaseModel)


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation such as `X` or `dict[str, X]`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def explain(error: ValidationError, kind: type[BaseModel], where: str, prefix: tuple[str, ...] = ()) -> str:
    """A line for each key that is wrong, with `where` before it."""
    return "\n".join(f"{where}: {reason}" for reason in reasons(error, kind, prefix))


def reasons(
    error: ValidationError,
    kind: type[BaseModel],
    prefix: tuple[str, ...] = (),
    listed: str = "config/README.md lists all keys",
) -> list[str]:
    """The same without a place. `kind` is the section that was validated, `prefix` its own key; `listed` says where
    a reader finds the keys that there are."""
    found: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        location = [part for part in item["loc"] if not (isinstance(part, str) and BRANCH.fullmatch(part))]
        key = ".".join(map(str, [*prefix, *location]))
        if item["type"] == "extra_forbidden":
            message = f"unknown key; {_nearest(kind, location, prefix)}{listed}"
        else:
            message = WORDS.get(item["type"], item["msg"].removeprefix("Value error, "))
            message = message.replace("Input should be", "wanted")
            if item["type"] != "missing" and not isinstance(item["input"], dict):
                values[key] = item["input"]
        found.setdefault(key, []).append(message)
    return [
        f"{key + ': ' if key else ''}{', or '.join(dict.fromkeys(messages))}{_shown(values, key)}"
        for key, messages in found.items()
    ]


def read_section(kind: type[S], facts: dict[str, Any], name: str = "") -> S:
    """A section of a stage's --settings, or all of them; a wrong key or value is a `UserError` that names it."""
    try:
        return kind(**facts)
    except ValidationError as error:
        raise UserError(explain(error, kind, "--settings", (name,) if name else ())) from None


def _shown(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return ""
    text = "nothing" if values[key] is None else repr(values[key])
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    quotes = (
        "; YAML reads on, off, yes and no as these: put the word in quotes" if "True" in text or "False" in text else ""
    )
    return f" (found {text}{quotes})"


def _nearest(kind: type[BaseModel], location: list[Any], prefix: tuple[str, ...]) -> str:
    """`did you mean …? ` with a key of the same section that is spelt nearly so, or one of another spelt just so."""
    wrong, section = str(location[-1]), ".".join(map(str, location[:-1]))
    keys = list(_keys(kind, location))
    beside = {key.rpartition(".")[2]: key for key in keys if key.rpartition(".")[0] == section}
    near = difflib.get_close_matches(wrong, beside, n=1)
    meant = beside[near[0]] if near else next((key for key in keys if key.rpartition(".")[2] == wrong), None)
    return f"did you mean {'.'.join([*prefix, meant])}? " if meant else ""


def _keys(kind: type[BaseModel], location: list[Any], prefix: str = "") -> Iterator[str]:
    """All keys; what the user named (a source, a run) is called as in `location`, or <name>."""
    for attribute, field in kind.model_fields.items():
        key = f"{prefix}{field.alias or attribute}"
        yield key
        inside = settings_in(field.annotation)
        if inside is not None:
            parts = key.split(".")
            named = "dict" in str(field.annotation)
            same = [str(part) for part in location[: len(parts)]] == parts and len(location) > len(parts)
            name = f"{location[len(parts)] if same else '<name>'}." if named else ""
            yield from _keys(inside, location, f"{key}.{name}")
