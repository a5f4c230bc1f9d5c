"""The high-water mark: how far a journal has got, kept outside of its SQLite file (docs/decisions/0019-high-water-mark.md).

One damaged byte in a write-ahead log hides all that was committed behind it, and SQLite finds nothing wrong. Only what is kept elsewhere
can tell that a journal is shorter than it was.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_RECORD = struct.Struct("<16sQQQQ")
_CHECKSUM = struct.Struct("<I")
_SLOT = 128
"""Two slots, written in turn: one is whole, whenever the process is killed."""
MARK_BYTES = 4096
"""The size of the file."""

_log = logging.getLogger("journal.mark")


class Mark(NamedTuple):
    """What is known of a journal. All but its identity are 0 if nothing is."""

    journal: bytes = bytes(16)
    """Its identity, which it was given when it was made."""
    last: int = 0
    """The last position that is durable."""
    items: int = 0
    """How many items were ever stored."""
    trimmed: int = 0
    """The last position that was trimmed, since every exporter had passed it."""
    trimmed_items: int = 0
    """How many items were trimmed."""


class HighWaterMark:
    """The mark of one journal, in a file that is mapped into memory.

    To note it is a copy in memory, without a system call: one of those would give the GIL up, and a busy event loop gives it back late.
    It survives the process at once, and a power cut as it was some time before. Belongs to the committer's thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: mmap.mmap | None = None
        self._turn = 0

    def open(self) -> Mark:
        """Open the file, or make it, and return what it says. One that cannot be made is logged, and then nothing will be noticed."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
            try:
                content = os.read(descriptor, MARK_BYTES)
                if len(content) < MARK_BYTES:
                    os.pwrite(descriptor, bytes(MARK_BYTES - len(content)), len(content))
                    os.fsync(descriptor)  # what is mapped must have its place on the disk
                self._map = mmap.mmap(descriptor, MARK_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            _log.warning("%s cannot be kept, so a journal that lost its end will not be noticed: %s", self._path, error)
            return Mark()
        found = [mark for start in (0, _SLOT) if (mark := _read(content[start:])) is not None]
        if not found and any(content):
            _log.error("%s is damaged, so it is not known whether the journal lost its end: begun anew", self._path)
        return max(found, key=lambda mark: (mark.last, mark.trimmed), default=Mark())

    def note(self, mark: Mark) -> None:
        """The journal has got so far."""
        if self._map is not None:
            record = _RECORD.pack(*mark)
            record += _CHECKSUM.pack(zlib.crc32(record))
            start = self._turn * _SLOT
            self._map[start : start + len(record)] = record
            self._turn = 1 - self._turn

    def synchronise(self) -> None:
        """Let what was noted survive a power cut, too."""
        if self._map is not None:
            with suppress(OSError):  # it is the second line
                self._map.flush()

    def close(self) -> None:
        """Synchronise and close it. Safe twice, and without `open`."""
        if self._map is not None:
            self.synchronise()
            self._map.close()
            self._map = None


def _read(content: bytes) -> Mark | None:
    record = content[: _RECORD.size]
    end = content[_RECORD.size : _RECORD.size + _CHECKSUM.size]
    if len(end) < _CHECKSUM.size or _CHECKSUM.unpack(end) != (zlib.crc32(record),):
        return None
    return Mark._make(_RECORD.unpack(record))
