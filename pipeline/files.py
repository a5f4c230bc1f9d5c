"""Folders and locks for data: private to the service's user and group, and to one process."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

from pipeline.errors import USER_MISTAKE, StartError
from pipeline.permissions import warn_if_others_write

CANNOT_CREATE = 73
"""EX_CANTCREAT of sysexits.h."""

_log = logging.getLogger("files")


def make_private_folder(folder: Path) -> None:
    """Make the folder and its parents, 0750 as in the deployment guide, where they are not there; check that it can be written.

    Warns if everybody can write there. Raises `StartError` with the folder's name and the reason.
    """
    try:
        # One by one, since `parents=True` makes the parents readable for everybody.
        for missing in reversed([each for each in (folder, *folder.parents) if not each.is_dir()]):
            missing.mkdir(exist_ok=True, mode=0o750)
            sync_folder(missing.parent)
    except OSError as error:
        raise StartError(f"cannot create the folder {folder}: {error.strerror}", CANNOT_CREATE) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartError(
            f"cannot write in the folder {folder}: it is not writable for user {os.getuid()}", CANNOT_CREATE
        )
    warn_if_others_write(folder, _log)


def sync_folder(folder: Path) -> None:
    """Let the names in the folder survive a power cut: what SQLite synchronises in a folder nobody finds is lost."""
    with suppress(OSError):  # not every file system can, nor may everybody read the folder; SQLite looks away, too
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_exists(what: str, path: Path) -> None:
    """Raise `StartError` if there is no such file: for commands that must not make one, but only look at what is there."""
    try:
        path.stat()
    except FileNotFoundError:
        raise StartError(f"there is no {what} {path} yet", USER_MISTAKE) from None
    except OSError as error:
        raise StartError(f"cannot look at the {what} {path}: {error.strerror}", CANNOT_CREATE) from None


def lock_holder(path: Path) -> int | None:
    """The process that holds a `FileLock` on that file, found without asking for the lock: a service that starts just now must get it."""
    try:
        inode = path.stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # ORDINAL: FLOCK ADVISORY WRITE PROCESS MAJOR:MINOR:INODE START END
    held = [line.split() for line in locks if " FLOCK " in line and "->" not in line]
    # The device is not compared, since btrfs and overlayfs tell stat another one.
    # One in another container has no number here, or one that is no process of ours.
    return next((int(words[4]) for words in held if words[5].endswith(f":{inode}") and int(words[4]) > 0), None)


class FileLock:
    """An advisory lock (flock) on a file beside the data: a second process that wants the same data is turned away.

    The kernel gives it back when the process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock and write our process id into the file. Raises `StartError` if another process has it."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise StartError(f"cannot open {self.path}: {error.strerror}", CANNOT_CREATE) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StartError(
                f"{self.path} is held by process {holder}: only one service may use this data", CANNOT_CREATE
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StartError(f"cannot lock {self.path}: {error.strerror}", CANNOT_CREATE) from None
        with suppress(OSError):  # a full disk: whose lock it is, is only for people to read
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back. Safe without `acquire`, and twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
