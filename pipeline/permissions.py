"""Warnings about what every user of the machine may read or change, and about more rights than are needed. They stop nothing:
docs/decisions/0006-refused-or-warned.md."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

_OTHERS_OFF = 0o027
"""What new files and folders are not for: the group writes nothing, others do nothing."""

_log = logging.getLogger("service")


def warn_if_others_read(secret: Path, log: logging.Logger) -> None:
    """Log a warning if every user of the machine may read the file, which holds a secret. A file that is not there is not our affair."""
    if _mode(secret) & stat.S_IROTH:
        log.warning("%s holds a secret, and every user of this machine can read it (must be chmod o-r)", secret)


def warn_if_others_write(folder: Path, log: logging.Logger) -> None:
    """Log a warning if every user of the machine may put files into the folder."""
    if _mode(folder) & stat.S_IWOTH:
        log.warning("every user of this machine can put files into %s (must be chmod o-w)", folder)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def give_up_rights() -> None:
    """For a service that is about to run: what it makes is not for others, and a warning if it runs as root.

    A stricter umask stays as it is.
    """
    os.umask(os.umask(0o077) | _OTHERS_OFF)
    if os.geteuid() == 0:
        _log.warning("runs as root, which nothing needs: give the service a user of its own")
