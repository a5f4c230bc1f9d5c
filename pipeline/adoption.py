"""Renames the journal folder of an earlier version at a start, once its owner is certain (`Buffer.former_folder`)."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from pipeline.errors import StartError
from pipeline.files import CANNOT_CREATE, FileLock, sync_folder

_log = logging.getLogger("journal")


def adopt(former: Path, folder: Path) -> None:
    """Rename the folder, under the locks of its journals: an earlier version that runs still holds them. Raises `StartError`."""
    with ExitStack() as locks:
        for path in sorted(former.glob("*.db")):
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
            locks.callback(lock.release)
        try:
            former.rename(folder)
        except OSError as error:
            raise StartError(
                f"cannot rename the journal folder {former} to {folder}: {error.strerror}"
                f" (rename it, or set METRICS_JOURNAL_DIR={former})",
                CANNOT_CREATE,
            ) from None
        sync_folder(folder.parent)
    _log.warning("renamed the journal folder %s of an earlier version to %s", former, folder)
