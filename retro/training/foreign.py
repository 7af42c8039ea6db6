"""A folder of Hugging Face's, whose weights a run begins with: config.json, and safetensors, in one file or several.

Knows which files there are and what config.json says; tensors are read in `retro.training.weights`. Nothing is fetched.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from retro.base.artifacts import read_json
from retro.base.stage import UserError
from retro.model import families

CONFIG, OURS = "config.json", "model.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"


def named(start: str) -> str:
    """The file that says what a run begins with, given it or its folder: config.json in a folder of Hugging Face's."""
    if start.endswith(".json"):
        return PurePosixPath(start).as_posix()
    theirs = (Path(start) / CONFIG).is_file() and not (Path(start) / OURS).exists()
    return PurePosixPath(f"{start}/{CONFIG if theirs else OURS}").as_posix()


def is_foreign(start: str) -> bool:
    """Whether the file that `named` gave is of a folder of Hugging Face's."""
    return PurePosixPath(start).name == CONFIG


def refuse_absent(start: str, where: str) -> None:
    """Raise UserError, which begins with `where`, if what a run begins with is not there."""
    folder = Path(start).parent
    if not Path(start).is_file():
        state = "no such folder" if not folder.is_dir() else f"has no {CONFIG} and no {OURS}"
        raise UserError(
            f"{where}: {folder}: {state}. Correct the path, or fetch the model, which is not done here: "
            f"hf download <owner>/{folder.name} --local-dir {folder}"
        )


def facts(start: str | Path) -> dict[str, Any]:
    """What a config.json says."""
    found = read_json(start)
    if not isinstance(found, dict):
        raise UserError(f"{start}: holds a {type(found).__name__}, wanted an object. Fetch the folder again.")
    return dict(found)


def decoder(start: str | Path, seq_length: int | None = None) -> dict[str, Any]:
    """The decoder's settings, all of them, for texts of `seq_length` tokens.

    Raises UserError, which names the key, for a model that our decoder does not compute.
    """
    try:
        return families.decoder(facts(start), seq_length)
    except ValueError as error:
        raise UserError(f"{start}: {error}. Begin with another model.") from None


def files(start: str | Path) -> list[Path]:
    """config.json, and the files with its weights, an index of them first.

    Raises UserError where there are none.
    """
    folder = Path(start).parent
    if (folder / INDEX).is_file():
        listed = facts(folder / INDEX)["weight_map"]
        names = listed.values() if isinstance(listed, dict) else [None]
        if not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{folder / INDEX}: weight_map: wanted the name of a file for each tensor. Fetch the folder again."
            )
        found = [folder / INDEX, *(folder / name for name in sorted(set(names)))]
    else:
        found = [folder / WEIGHTS]
    for path in found:
        if not path.is_file():
            raise UserError(
                f"{path}: no such file, and weights are read from safetensors only; fetch the folder again: "
                f"hf download <owner>/{folder.name} --local-dir {folder}"
            )
    return [Path(start), *found]
