"""A dataset that was packed on one machine and opened on another: its list, `pack.json`, and what may stand in it.

`retro.tools.pack` writes and opens packs. In the folder of an opened dataset the list stays: it says that nothing of
the dataset can be made again here, where its sources are not, and what preprocessing was asked for.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from retro.base.artifacts import Manifest, canonical, read_json, read_manifest, read_text, sha256
from retro.base.names import CUTS, NAME, RECORDED, WORD
from retro.base.stage import Settings, UserError, reasons

LIST = "pack.json"
LEFT_OUT = "embeddings"  # the one kind of artifact that a pack may do without: training does not read it


class Member(Settings):
    """A file of the dataset."""

    size: int = Field(ge=0)  # bytes
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Pack(Settings):
    """What pack.json says. Names of files are relative, of plain folders and files: none leads out of the dataset's."""

    kind: Literal["packed dataset"]
    format: Literal[1]
    name: str = Field(pattern=NAME)
    dataset: dict[str, Any]  # the dataset section of the config, all keys written out
    config: dict[str, Any]  # the other sections, as they were written
    without: list[Literal["embeddings"]]
    files: dict[Annotated[str, StringConstraints(pattern=rf"^{WORD}(/{WORD})*$")], Member]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files.values())

    def text(self) -> str:
        """The list as it is stored, with its own sha256."""
        facts = self.facts()
        return canonical({"list": facts, "sha256": digest(facts)}) + "\n"


def digest(facts: Any) -> str:
    """Hex sha256 of a list."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()


def parsed(text: str, where: str) -> Pack:
    """The list that a text is. Raises `UserError` if it is none, or not as it was written."""
    try:
        facts = json.loads(text)
        if not isinstance(facts, dict) or facts.keys() != {"list", "sha256"}:
            raise ValueError("not the list of a pack")
        if digest(facts["list"]) != facts["sha256"]:
            raise ValueError("its list is not as it was written")
        return Pack(**facts["list"])
    except ValidationError as error:
        why = reasons(error, Pack, ())[0]
    except (ValueError, TypeError, RecursionError) as error:
        why = str(error)
    raise UserError(f"{where}: {why}. Copy the pack again, or pack again where the dataset was made.")


def opened(folder: str | Path) -> Pack | None:
    """The list of a dataset that was opened from a pack; None of one that was made here."""
    path = Path(folder, LIST)
    return parsed(read_text(path), str(path)) if path.is_file() else None


def left_out(manifest: Manifest, without: list[Any]) -> bool:
    """Whether a pack has an artifact's manifest alone."""
    return manifest.facts["kind"] in without


def members(folder: Path, without: list[Any]) -> dict[str, Member]:
    """The files of a dataset's pack, sorted: the recorded config, the manifests that it names, and what those list.

    Raises `UserError` for a file that is missing, of another size or, of manifests, not the one recorded.
    """
    found = {}
    for config in (RECORDED.format(cut=cut) for cut in CUTS):
        found[config] = _described(folder / config)
        recorded = read_json(folder / config)
        if not isinstance(recorded, dict) or not isinstance(recorded.get("manifests"), dict):
            raise UserError(f"{folder / config}: not a recorded config. Run snakemake to make it.")
        for name, wanted in recorded["manifests"].items():
            found[name] = _described(folder / name)
            if found[name].sha256 != wanted:
                raise UserError(f"{folder / name}: is not the manifest that {config} recorded. Run snakemake again.")
            manifest = read_manifest(folder / name)
            files = {} if left_out(manifest, without) else manifest.facts["files"]
            for file, facts in files.items():
                manifest.file(file)
                found[f"{name.rpartition('/')[0]}/{file}"] = Member(size=facts["bytes"], sha256=facts["sha256"])
    return dict(sorted(found.items()))


def _described(path: Path) -> Member:
    if not path.is_file():
        raise UserError(f"{path}: no such file. Run snakemake, with the target preprocess, to make it.")
    return Member(size=path.stat().st_size, sha256=sha256(path))
