"""A small preprocessed dataset, and a way to store something wrong that looks right."""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from retro.base.artifacts import canonical, sha256, write_json
from retro.tools import verify
from tests.database.stages import Corpus
from tests.retrieval.conftest import corpus, dataset  # noqa: F401


class Copy:
    """A dataset's folder that may be tampered with."""

    def __init__(self, folder: Path):
        self.folder = folder

    def manifests(self, kind: str = "*") -> list[Path]:
        return sorted(
            path for path in self.folder.rglob("manifest.json") if kind in ("*", path.parts[-2], path.parts[-3])
        )

    def vouch(self) -> None:
        """Make every manifest tell of the files as they are now: nothing looks changed, nothing looks stale."""
        before = None
        while before != (before := [path.read_bytes() for path in self.manifests()]):
            for path in self.manifests():
                facts = json.loads(path.read_text())
                for name, file in facts["files"].items():
                    file |= {"sha256": sha256(path.parent / name), "bytes": (path.parent / name).stat().st_size}
                for name in facts["inputs"]:
                    facts["inputs"][name] = sha256(path.parent / name)
                write_json(path, facts)
        config = json.loads((self.folder / "config.json").read_text())
        config["manifests"] = {name: sha256(self.folder / name) for name in config["manifests"]}
        write_json(self.folder / "config.json", config)

    def verify(self) -> None:
        """`python -m retro.tools.verify`; raises `UserError` if it finds anything."""
        with patch.object(sys, "argv", ["verify", str(self.folder)]):
            verify.main()

    def contents(self) -> str:
        """Every file and its digest."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return canonical({str(path): sha256(path) for path in files})


@pytest.fixture
def copy(corpus: Corpus, dataset, tmp_path) -> Copy:  # noqa: F811
    """The dataset with all its artifacts, beside the sources it was made from."""
    for path in corpus.folder.glob("*.jsonl"):
        shutil.copy2(path, tmp_path)
    shutil.copytree(dataset.folder, tmp_path / "D")
    return Copy(tmp_path / "D")
