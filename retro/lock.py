"""One process at a time in a folder of unfinished work: blocks, checkpoints."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from retro.errors import UserError

FILE = ".lock"
# Another process holds it; where locks travel to a server (NFS), either number may say so.
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
# The file system carries no locks: NFS without a lock service, Lustre mounted without flock, some FUSE.
NONE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, for this process. The lock ends with the process, however it ends.

    Raises `UserError` if another process on this or, where the file system carries locks that far, another machine
    holds it, and if the folder cannot be written. Where the file system has no locks the log says so, and the
    work goes on without one: a lock file of our own would outlive a kill and stop the run that resumes.
    """
    path = folder / FILE
    with opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise UserError(
                    f"{folder}: in use by {holder(path)}. Wait for it to end, or stop it, and run this again: it goes "
                    f"on from what is finished."
                ) from None
            if error.errno not in NONE:
                raise OSError(error.errno, error.strerror, str(path)) from None
            print(
                f"warning: {folder}: not locked against a second process, which its file system cannot do "
                f"({error.strerror}). See to it that no other run works here.",
                file=sys.stderr,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def opened(path: Path) -> TextIO:
    """A lock file, made if need be. Raises `UserError` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(
            f"{path}: cannot be written ({error.strerror}). Unfinished work is kept there: make the folder writable, "
            f"or choose another results folder."
        ) from None


def holder(path: Path) -> str:
    """What the process that holds a lock wrote into it; some file systems keep others from reading that, too."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"
