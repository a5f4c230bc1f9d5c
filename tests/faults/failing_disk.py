"""A disk whose syncs fail as told, by a library that is preloaded into the service, and what such a disk would hold after a power cut.

The model is of Linux: a sync that fails forgets what it should have written. The pages stay in the cache, where every reader finds
them, and count as clean: a later sync writes them only if they were written to again meanwhile.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.programs import need

PAGE = 4096
HEAD = struct.Struct("=c3xIqQ")


@dataclass
class File:
    """One file: what a reader finds, and what is on the disk."""

    cache: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)

    def write(self, offset: int, data: bytes) -> None:
        """Into the cache."""
        end = offset + len(data)
        self.cache.extend(bytes(max(0, end - len(self.cache))))
        self.cache[offset:end] = data
        self.dirty.update(range(offset // PAGE, (end - 1) // PAGE + 1))

    def truncate(self, size: int) -> None:
        """The same for the cache; on the disk with the next sync."""
        del self.cache[size:]
        self.cache.extend(bytes(size - len(self.cache)))
        self.dirty = {page for page in self.dirty if page * PAGE < size}

    def sync(self, *, failing: bool) -> None:
        """Write what is dirty to the disk, or forget that it is."""
        if not failing:
            del self.disk[len(self.cache) :]
            self.disk.extend(bytes(len(self.cache) - len(self.disk)))
            for page in self.dirty:
                part = slice(page * PAGE, page * PAGE + PAGE)
                self.disk[part] = self.cache[part]
        self.dirty.clear()


class FailingDisk:
    """Where the service's data is."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.data.mkdir()
        self._record = folder / "record"
        self._failing = folder / "failing"
        self._library = folder / "failing_disk.so"
        self._read = 0
        """Bytes of the record whose failures are counted."""
        self._failures = 0
        source = Path(__file__).with_name("failing_disk.c")
        command: list[str | Path] = [
            need("gcc"),
            "-O1",
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            self._library,
            source,
            "-ldl",
        ]
        subprocess.run(command, check=True)

    def variables(self, files: str, *syncs: int) -> Mapping[str, str]:
        """What to start the service with, so that these syncs of files whose paths end so will fail."""
        return {
            "LD_PRELOAD": str(self._library),
            "RECORD": str(self._record),
            "FAILING": files,
            "AT": ",".join(map(str, syncs)),
            "WHILE": str(self._failing),
            "SQLITE_DB_PATH": str(self.data / "metrics.db"),
        }

    def fail(self) -> None:
        """From now on they all fail."""
        self._failing.touch()

    def recover(self) -> None:
        """They succeed again."""
        self._failing.unlink()

    def failures(self) -> int:
        """How many syncs have failed."""
        for end, what, *_ in self._events(self._read):
            self._read = end
            self._failures += what == b"E"
        return self._failures

    def cut(self) -> None:
        """The power was cut: the files hold what is on the disk. Nobody may have them open."""
        files = self.files()
        for left in self.data.rglob("*.db-*"):
            left.unlink()
        for path, file in files.items():
            if path.parent.exists():  # a start that failed removes the folder that it made
                path.write_bytes(file.disk)

    def files(self) -> dict[Path, File]:
        """All that were written to, as they are now."""
        files: dict[Path, File] = {}
        for _, what, path, offset, data in self._events():
            file = files.setdefault(path, File())
            if what == b"W":
                file.write(offset, data)
            elif what == b"T":
                file.truncate(offset)
            elif what == b"U":
                del files[path]
            else:
                file.sync(failing=what == b"E")
        return files

    def _events(self, since: int = 0) -> Iterator[tuple[int, bytes, Path, int, bytes]]:
        """What happened behind the first so many bytes of the record: each with how many bytes there are up to its end."""
        with self._record.open("rb") as file:
            file.seek(since)
            record, at = file.read(), 0
        while at + HEAD.size <= len(record):
            what, named, offset, size = HEAD.unpack_from(record, at)
            at += HEAD.size
            if at + named + size > len(record):
                return  # it was killed
            path, data = Path(record[at : at + named].decode()), record[at + named : at + named + size]
            at += named + size
            yield since + at, what, path, offset, data
