"""Finished blocks are reused if and only if they were made from the same things."""

import numpy as np
import pytest

from retro.base.shards import Blocks
from retro.base.stage import UserError

FACTS = {"encoder": "a", "inputs": ["1", "2"]}


def open_blocks(folder, **changed) -> Blocks:
    return Blocks(folder, {**FACTS, **changed}, (3,), np.float32)


def test_a_block_is_read_back(tmp_path):
    block = np.arange(6, dtype=np.float32).reshape(2, 3)
    with open_blocks(tmp_path / "b") as blocks:
        assert blocks.read(4, 6) is None
        blocks.write(4, block)
        assert (blocks.read(4, 6) == block).all()
    with open_blocks(tmp_path / "b") as blocks:
        assert (blocks.read(4, 6) == block).all()
        assert blocks.read(0, 2) is None


def test_blocks_made_from_something_else_are_discarded_with_a_line_saying_so(tmp_path, capsys):
    with open_blocks(tmp_path) as blocks:
        blocks.write(0, np.zeros((2, 3)))
        blocks.write(2, np.zeros((2, 3)))
    with open_blocks(tmp_path, encoder="b") as blocks:
        assert blocks.read(0, 2) is None
    assert "discarded 2 blocks made from other inputs" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.npy"))


def test_half_written_files_are_removed_and_strangers_left_alone(tmp_path):
    with open_blocks(tmp_path) as blocks:
        blocks.write(0, np.zeros((2, 3)))
    (tmp_path / f".000000000002-000000000004.{blocks.key}.npy.123.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    with open_blocks(tmp_path) as blocks:
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == [
            f"000000000000-000000000002.{blocks.key}.npy",
            "notes.txt",
        ]
        blocks.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_block_is_computed_again(tmp_path, capsys):
    with open_blocks(tmp_path) as blocks:
        blocks.write(0, np.zeros((2, 3)))
        path = next(tmp_path.glob("*.npy"))
        path.write_bytes(path.read_bytes()[:-5])
        assert blocks.read(0, 2) is None
        assert "damaged" in capsys.readouterr().err
        blocks.write(0, np.ones((2, 3)))
        assert blocks.read(0, 2).sum() == 6


def test_a_second_process_is_kept_out(tmp_path):
    with open_blocks(tmp_path), pytest.raises(UserError, match=r"in use by process \d+ on "):
        open_blocks(tmp_path).__enter__()
    with open_blocks(tmp_path):
        pass


def test_nothing_is_left_when_the_whole_is_done(tmp_path):
    with open_blocks(tmp_path / "b") as blocks:
        blocks.write(0, np.zeros((2, 3)))
        blocks.remove()
    assert not (tmp_path / "b").exists()
