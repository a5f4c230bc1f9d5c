"""The wall clock of one process, which a test may put forward and back while the process runs (libfaketime)."""

from __future__ import annotations

from pathlib import Path

from tests.programs import lacking


class WallClock:
    """The monotonic clock goes on as it does."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock"
        libraries = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            lacking("libfaketime is missing (apt-get install libfaketime)")
        self._library = libraries[0]
        self.put(0)

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of the process."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def put(self, seconds: int) -> None:
        """From now on it is that much ahead of this machine's."""
        written = self._offset.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n")
        written.replace(self._offset)
