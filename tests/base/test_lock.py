"""A folder of unfinished work is held by one process, where the file system can say so; where not, the log does."""

import errno
import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest

from retro.base import shards
from retro.base.shards import Blocks, locked
from retro.base.stage import UserError

# What flock answers on file systems without locks: NFS without lockd; Linux, POSIX; Lustre without flock; some FUSE.
WITHOUT = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]
TAKEN = [errno.EWOULDBLOCK, errno.EACCES]


@pytest.fixture
def answering(monkeypatch):
    """Let the system's flock answer with an error, as on a file system that cannot be had here."""

    def answer(number: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return answer


def blocks(folder):
    return Blocks(folder, {}, (3,), np.float32)


HOLDERS = pytest.mark.parametrize("hold", [locked, blocks], ids=["checkpoints", "blocks"])


@HOLDERS
def test_a_folder_is_held_by_one(hold, tmp_path):
    with hold(tmp_path / "work"):
        with open(tmp_path / "work/.lock") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (
            pytest.raises(UserError, match=rf"work: in use by process {os.getpid()} on .* Wait"),
            locked(tmp_path / "work"),
        ):
            pass
    with locked(tmp_path / "work"):
        pass


def test_the_lock_ends_with_a_process_that_is_killed(tmp_path):
    code = "import pathlib, sys, time; from retro.base.shards import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(UserError, match=f"in use by process {process.pid} on "), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass


@HOLDERS
@pytest.mark.parametrize("number", WITHOUT, ids=lambda number: errno.errorcode[number])
def test_a_file_system_without_locks_is_named_in_the_log_and_worked_on(hold, number, answering, tmp_path, capsys):
    answering(number)
    with hold(tmp_path):
        pass
    said = capsys.readouterr().err
    assert f"warning: {tmp_path}: not locked against a second process" in said and os.strerror(number) in said


@HOLDERS
@pytest.mark.parametrize("number", TAKEN, ids=lambda number: errno.errorcode[number])
def test_a_lock_that_another_machine_holds_is_refused_however_the_server_says_so(hold, number, answering, tmp_path):
    (tmp_path / ".lock").write_text("process 7 on node-3\n")
    answering(number)
    with pytest.raises(UserError, match="in use by process 7 on node-3"), hold(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "process 7 on node-3\n"


def test_a_holder_that_left_no_name_is_another_process(answering, tmp_path):
    answering(errno.EAGAIN)
    with pytest.raises(UserError, match="in use by another process"), locked(tmp_path):
        pass
    assert shards.holder(tmp_path / "absent") == "another process"


def test_a_fault_of_the_disk_is_not_taken_for_a_file_system_without_locks(answering, tmp_path):
    answering(errno.EIO)
    with pytest.raises(OSError, match=r"Input/output error: '.*\.lock'"), locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES], ids=lambda number: errno.errorcode[number])
def test_a_folder_that_cannot_be_written_is_refused_with_a_way_out(number, monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", refuse)  # root may write where others may not
    said = rf"\.lock: cannot be written \({os.strerror(number)}\).*choose another"
    with pytest.raises(UserError, match=said), locked(tmp_path):
        pass


def test_a_full_disk_stays_what_it_is(monkeypatch, tmp_path):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="No space left"), locked(tmp_path):
        pass
