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


@pytest.mark.parametrize("lacking", ["inputs", "settings", "counts", "files"])
def test_a_manifest_without_one_of_its_parts_is_refused(tmp_path, lacking):
    make(tmp_path)
    facts = artifacts.read_json(tmp_path / "manifest.json")
    for wrong in ({key: value for key, value in facts.items() if key != lacking}, {**facts, lacking: []}):
        artifacts.write_json(tmp_path / "manifest.json", wrong)
        with pytest.raises(UserError, match=r"manifest\.json: not a manifest\. Delete it"):
            artifacts.read_manifest(tmp_path / "manifest.json")


def test_a_key_that_a_file_lacks_is_named_with_the_file_however_deep(tmp_path):
    found = make(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json: lacks 'm', has n\. Delete it and run snakemake again"):
        found.counts["m"]
    with pytest.raises(UserError, match=r"manifest\.json: lacks 'md5', has bytes"):
        found.facts["files"]["a.npy"]["md5"]
    assert found.counts.get("m") is None and dict(found.counts) == {"n": 3}


@pytest.mark.parametrize(
    ("make_it", "told"),
    [
        (os.mkfifo, "is no plain file"),
        (os.mkdir, "is a folder"),
        (lambda path: path.symlink_to("nowhere"), "no such file"),
        (lambda path: path.write_bytes(b"\xff"), "not UTF-8 text"),
        (lambda path: path.write_text("[" * 100_000), "not valid JSON"),
        (lambda path: path.write_text("1" * 10_000), "not valid JSON"),
    ],
    ids=["named pipe", "folder", "link to nothing", "Latin-1", "deep", "long number"],
)
def test_what_is_no_file_of_json_is_refused_and_never_waited_for(tmp_path, make_it, told):
    """It may be what snakemake made, or a user's own file, of a model that others made."""
    make_it(tmp_path / "a.json")
    with pytest.raises(UserError, match=rf"a\.json: {told}.*( file of your own|Give a file)"):
        artifacts.read_json(tmp_path / "a.json")
