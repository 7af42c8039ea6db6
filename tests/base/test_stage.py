"""What ends a stage is one message; what is ours to mend stays a traceback."""

import errno

import numpy as np
import pytest
import torch

from retro.base import stage


def ended(capsys, error: BaseException) -> str:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        stage.run(main)
    assert stopped.value.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (stage.UserError("a: found b. Do c."), "error: a: found b. Do c."),
        (PermissionError(errno.EACCES, "Permission denied", "results"), "Permission denied: 'results'"),
        (OSError(errno.ENOSPC, "No space left on device"), "Make room and run again"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "error: out of memory: CUDA"),
        (MemoryError(), "error: out of memory: no more is to be had"),
        (KeyboardInterrupt(), "error: interrupted"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(capsys, monkeypatch, error, words):
    monkeypatch.delenv("RETRO_DEBUG", raising=False)
    said = ended(capsys, error)
    assert words in said and said.count("\n") == 1


def test_real_allocations_that_fail_are_told_in_one_line(capsys):
    for allocate in (lambda: np.ones(2**50), lambda: torch.ones(2**50)):
        with pytest.raises(SystemExit):
            stage.run(allocate)
        assert "error: out of memory: " in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("ours"), OSError("no number")])
def test_our_own_mistakes_keep_their_traceback(error):
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        stage.run(main)


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("RETRO_DEBUG", "1")
    with pytest.raises(MemoryError):
        stage.run(lambda: np.ones(2**50))
