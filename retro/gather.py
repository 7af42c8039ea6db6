"""Copy every file that a config names into a folder, and say the config as it reads there: the inputs of an archive.

    corpora/<source>/…     documents, laid out below their own common folder as they lay before
    given/<key>/…          what else is named: tokenizer, encoder, questions, instructions, a model to begin with

Which keys name files is what the settings say (`retro.settings.Names`); nothing is listed here.
"""

import copy
import glob
import os
import shutil
from pathlib import Path
from typing import Any

from retro import config
from retro.artifacts import read_manifest, sha256
from retro.config_layers import read, with_presets
from retro.config_paths import Named, items, named
from retro.errors import UserError


def gather(path: Path, folder: Path, corpora: bool = True) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Copy what the config file `path` names below `folder`, without `corpora` all but those.

    Returns the config as it reads in that folder, presets laid in, and of each source's files, by their path there,
    where they lay and their sha256. Raises `UserError` for a file that is not there.
    """
    settings = config.load(path)
    facts = copy.deepcopy(with_presets(read(path), str(path)))  # as written: flavours fill in their defaults again
    facts.pop("preset", None)
    facts["results"] = "results"
    for each in named(settings):
        if each.what in ("file", "folder"):
            put(facts, each.key, str(_given(each, folder)))
        elif each.what == "model" and each.value not in settings.runs:
            put(facts, each.key, _model(each, settings, folder))
    sources = {}
    for name, source in settings.dataset.sources.items():
        root = common([source.path] if isinstance(source.path, str) else source.path)
        where = Path("corpora") / name
        for key, given in items(("dataset", "sources", name, "path"), source.path):
            put(facts, key, str(where / os.path.relpath(given, root)))
        found: dict[str, str] = {}
        for file in config.files_of(name, source, settings.dataset.on_error):
            target = str(where / os.path.relpath(file, root))
            if not os.path.samefile(found.setdefault(target, file), file):  # `..` behind a link
                raise UserError(
                    f"dataset.sources.{name}.path: {found[target]} and {file} would both be {target} in an archive. "
                    "Name them without `..`."
                )
        if corpora:
            for target, file in found.items():
                _copy(file, folder / target)
        sources[name] = {target: {"was": file, "sha256": sha256(file)} for target, file in found.items()}
    return facts, sources


def put(facts: dict[str, Any], key: tuple[str, ...], value: str) -> None:
    """Set the value of a key that the config has."""
    at: Any = facts
    for part in key[:-1]:
        at = at[part]
    at[int(key[-1]) if isinstance(at, list) else key[-1]] = value


def common(paths: list[str]) -> str:
    """The folder that files and folders lie in together; a pattern lies where its first star is."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(_before_pattern(path))) for path in paths])


def _before_pattern(path: str) -> str:
    """A path up to the first part that is a pattern, that part included."""
    parts = Path(path).parts
    last = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return os.path.join(*parts[: last + 1]) if parts else path


def _given(each: Named, folder: Path) -> Path:
    """Copy a file or a folder; its path below the archive's folder."""
    if not Path(each.value).exists():
        raise UserError(
            f"{'.'.join(each.key)}: no such file or folder: {each.value} (working folder {Path.cwd()}). An archive "
            "would lack it: put it back, or correct the path."
        )
    target = Path("given", ".".join(each.key), Path(os.path.abspath(each.value)).name)
    _copy(each.value, folder / target)
    return target


def _model(each: Named, settings: config.Config, folder: Path) -> str:
    """Where the model that a run begins with lies in the archive: made again there, or copied with all it needs."""
    start = Path(each.value if each.value.endswith(".json") else f"{each.value}/model.json")
    made = Path(settings.results, settings.dataset.name, "runs")
    for run in settings.models():
        if os.path.abspath(start) == os.path.abspath(made / run / "model.json"):
            return f"results/{settings.dataset.name}/runs/{run}/model.json"
    manifest = read_manifest(start, "model")
    below = Path("given", ".".join(each.key))
    target = below / "runs/model" / start.name
    for file in (start, *map(manifest.file, manifest.facts["files"])):
        _copy(str(file), folder / target.parent / os.path.relpath(file, start.parent))
    # Models of earlier versions do not record their tokenizer: it is looked for beside the runs.
    tokenizer = start.parent / "../../tokenizer/manifest.json"
    if tokenizer.exists():
        _copy(str(tokenizer), folder / below / "tokenizer/manifest.json")
    return str(target)


def _copy(source: str, target: Path) -> None:
    """Copy a file, or a folder with all in it; links are followed, those that lead nowhere left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(source):
        shutil.copytree(source, target, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    else:
        shutil.copy2(source, target)
