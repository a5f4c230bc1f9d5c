"""What `metrics-service doctor` finds: findings as plain values, and how components look at the machine without touching it.

A component offers its own by `Component.findings`. The engine knows what has to be looked at, and not who does it: an item of the
checklist that nobody says anything about is a finding too.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.rescue import rescued_copies


class Level(StrEnum):
    """How bad it is. A problem makes the exit code 1."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Item(StrEnum):
    """What is looked at: the production checklist of the deployment guide, then what else a service relies on."""

    BACKUPS = "backups"
    TLS = "tls"
    KEYS = "keys"
    MONITORING = "monitoring"
    LOGS = "logs"
    LIMITS = "limits"
    RETENTION = "retention"
    DATA = "data"
    MACHINE = "machine"


CHECKLIST = (Item.BACKUPS, Item.TLS, Item.KEYS, Item.MONITORING, Item.LOGS, Item.LIMITS, Item.RETENTION)
"""What somebody must say something about."""


@dataclass(frozen=True)
class Finding:
    """One finding. `where` is the path of an option, a file or a folder, `advice` what would be right or what to do."""

    level: Level
    item: Item
    where: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f" ({self.advice})" if self.advice else ""
        return f"{self.where}: {self.what}{advice}"


_REMOTE = {"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
_FLEETING = {"overlay", "ramfs", "tmpfs"}


def file_system(path: Path) -> str:
    """The type of the file system that the path is on, or would be, as the kernel calls it; empty if it does not say."""
    where = str(path.resolve())
    best, found = -1, ""
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines():
        mount = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])  # a space is \040
        inside = where == mount or where.startswith(f"{mount.rstrip('/')}/")
        if inside and len(mount) >= best:  # of two mounts in one place, the later one is seen
            best, found = len(mount), line.partition(" - ")[2].split()[0]
    return found


def look_at_place(where: str, path: Path) -> Iterator[Finding]:
    """Whether a file or folder is where data may be, and is not for everybody. `where` is the option that names it."""
    kind = file_system(path)
    if kind in _REMOTE or kind.startswith("fuse."):
        what = f"{path} is on {kind}, where neither locks nor the write-ahead log can be relied on"
        yield Finding(Level.PROBLEM, Item.DATA, where, what, "must be on a local disk")
    elif kind in _FLEETING:
        what = f"{path} is on {kind}, which ends with the machine or the container"
        yield Finding(Level.PROBLEM, Item.DATA, where, what, "must be on a disk, or a volume")
    for copy, place in rescued_copies(path):
        what = f"{copy} holds the content of a file that disappeared, so the service does not start"
        advice = f"move it to {place}, or elsewhere if {place} is right"
        yield Finding(Level.PROBLEM, Item.DATA, where, what, advice)
    yield from look_at_mode(where, path, Item.DATA)


def look_at_mode(where: str, path: Path, item: Item) -> Iterator[Finding]:
    """Whether every user of the machine may read a file, or change a file or folder. What is not there is no finding."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        advice = "run doctor as the user of the service"
        yield Finding(Level.PROBLEM, item, where, f"cannot look at {path}: {error.strerror}", advice)
        return
    if mode & stat.S_IWOTH:
        yield Finding(Level.PROBLEM, item, where, f"every user of this machine can change {path}", f"chmod o-w {path}")
    if mode & stat.S_IROTH and not stat.S_ISDIR(mode):
        yield Finding(Level.PROBLEM, item, where, f"every user of this machine can read {path}", f"chmod o-r {path}")


@contextmanager
def looking_at(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a SQLite file that changes nothing, not even what is beside it. Raises `sqlite3.Error` or `OSError`.

    Where no service runs and none was killed there is no write-ahead log, and SQLite would make one to read.
    """
    path.stat()
    how = "mode=ro" if Path(f"{os.path.realpath(path)}-wal").exists() else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, timeout=5)) as connection:
        connection.execute("PRAGMA query_only=1")
        yield connection
