"""Files appear whole or not at all; a manifest knows what its files are."""

import os

import numpy as np
import pytest

from retro.base import artifacts
from retro.base.stage import UserError


def make(folder, content=(1, 2, 3)):
    artifacts.write_array(folder / "a.npy", np.array(content, np.int32))
    artifacts.write_manifest(
        folder / "manifest.json", kind="demo", stage="retro.base.artifacts", files=[folder / "a.npy"], counts={"n": 3}
    )
    return artifacts.read_manifest(folder / "manifest.json", "demo")


def test_an_artifact_comes_back_as_it_was_written(tmp_path):
    manifest = make(tmp_path)
    manifest.check()
    assert manifest.array("a.npy").tolist() == [1, 2, 3]
    assert manifest.facts["files"]["a.npy"]["shape"] == [3]
    assert manifest.facts["files"]["a.npy"]["dtype"] == "<i4"


def test_the_same_content_gives_the_same_manifest_bytes(tmp_path):
    make(tmp_path / "x")
    make(tmp_path / "y")
    assert (tmp_path / "x/manifest.json").read_bytes() == (tmp_path / "y/manifest.json").read_bytes()


def test_a_flipped_byte_is_named(tmp_path):
    manifest = make(tmp_path)
    content = bytearray((tmp_path / "a.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npy: content changed"):
        manifest.check()


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.unlink()])
def test_a_truncated_or_missing_file_is_refused_on_opening(tmp_path, change):
    manifest = make(tmp_path)
    change(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"a\.npy: (has \d+ bytes|is missing), its manifest says"):
        manifest.array("a.npy")


def test_another_kind_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match="describes 'demo', wanted 'tokens'"):
        artifacts.read_manifest(tmp_path / "manifest.json", "tokens")


def test_a_failure_leaves_the_old_file_and_no_trace(tmp_path):
    artifacts.write_text(tmp_path / "f", "old")
    with pytest.raises(RuntimeError), artifacts.replacing(tmp_path / "f") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"p\.npy: not a plain \.npy array"):
        artifacts.open_array(tmp_path / "p.npy")


def test_growing_array_appears_only_when_finished(tmp_path):
    with pytest.raises(KeyError), artifacts.growing_array(tmp_path / "g.npy", (4, 2), np.float32):
        raise KeyError
    assert not (tmp_path / "g.npy").exists()
    with artifacts.growing_array(tmp_path / "g.npy", (4, 2), np.float32) as array:
        array[:] = 7
    assert artifacts.open_array(tmp_path / "g.npy").sum() == 56
    with artifacts.growing_array(tmp_path / "e.npy", (0, 2), np.float32):
        pass
    assert artifacts.open_array(tmp_path / "e.npy").shape == (0, 2)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"kind": 1}'])
def test_a_broken_manifest_is_one_clear_message(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        artifacts.read_manifest(tmp_path / "manifest.json")
