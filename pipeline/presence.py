"""Notice within a second that a file which a promise depends on is gone, replaced or truncated (docs/decisions/0027-presence.md).

SQLite writes on into a file that has no name any more, and all that it holds is lost when the process ends. So pushes are refused until
the file is back. If it is not back in time, its content is saved (`pipeline/rescue.py`) and the process ends.

A position in a journal is trimmed only after all files were found that were examined after every exporter had passed the position.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

import anyio

from pipeline.failed_sync import IO_ERROR, leave
from pipeline.journal import Journal
from pipeline.rescue import rescue
from pipeline.telemetry import Instrument, InstrumentKind
from pipeline.watched_files import Fault, WatchedFiles

Found = list[tuple[WatchedFiles, list[Fault]]]
"""What is wrong with the files of each owner; an owner whose files are all right is not in it."""

_log = logging.getLogger("presence")


class Presence:
    """Examines all files twice a second. The methods are called on the event loop's thread."""

    def __init__(
        self,
        watched: Callable[[], Iterable[WatchedFiles]],
        journals: Callable[[], Iterable[Journal]],
        *,
        every: float = 0.5,
        grace: float = 30.0,
        patience: float = 10.0,
    ) -> None:
        """All times are in seconds: between two examinations, until the process ends when a file does not come back, and how long an
        examination may take before the file system counts as hanging."""
        self.fault: str | None = None
        """What is wrong, in one sentence; None while all files are in place."""
        self.since: datetime | None = None
        """When that was noticed."""
        self._watched = watched
        self._journals = journals
        self._every = every
        self._grace = grace
        self._patience = patience
        self._found: Found = []
        self._faulty = 0.0
        self._looked = time.monotonic()
        self._looking: asyncio.Future[tuple[Found, bool]] | None = None
        self._one_at_a_time = anyio.Lock()
        self._ending = anyio.Lock()

    async def run(self) -> None:
        """Examine again and again. Ends the process when a file is gone for too long."""
        while True:
            await anyio.sleep(self._every)
            await self.check()
            if self._faulty >= self._grace:
                await self.end()

    async def check(self) -> None:
        """Examine all files once, and refuse or accept pushes accordingly."""
        async with self._one_at_a_time:
            passed = [(journal, journal.passed) for journal in self._journals()]
            found, complete = await self._look()
            if found and self.fault is None:
                found, complete = await self._look()  # an owner may have been about to close or replace them
            self._count_time()
            if found or (self._looking is not None):
                self._note(found)
            elif complete:
                self._all_is_well(passed)

    @property
    def state(self) -> str | None:
        """The fault, and since when, for the health page."""
        return None if self.fault is None else f"{self.fault} since {_shown(self.since)}"

    async def before_stop(self) -> None:
        """Call it before files are closed: SQLite would move the log into a file that has no name, and delete it.

        Ends the process, with the content saved, if a file is gone.
        """
        await self.check()
        if self._found:
            await self.end()

    async def end(self) -> None:
        """Save the content of what is gone, and end the process with exit code 74."""
        async with self._ending:  # a stop may call it at the same time
            rescued = await rescue(self._found, datetime.now(UTC))
            remedy = str(rescued) or "start the service again"
            _log.critical("%s since %s: the service ends (%d); %s", self.fault, _shown(self.since), IO_ERROR, remedy)
            await anyio.to_thread.run_sync(leave, IO_ERROR)

    def instruments(self) -> Iterator[Instrument]:
        """What it tells about itself."""
        yield Instrument(
            "data_files_missing",
            InstrumentKind.GAUGE,
            "Files in use that are missing, replaced or truncated; pushes are refused while there are any.",
            (),
            lambda: [({}, sum(len(faults) for _, faults in self._found))],
        )

    async def _look(self) -> tuple[Found, bool]:
        """What is wrong, and whether all files were examined."""
        loop = asyncio.get_running_loop()
        if self._looking is None:
            watched = [(files, files.version) for files in self._watched()]
            self._looking = loop.create_future()
            arguments = (watched, self._looking, loop)
            # Not a thread that others may need: it may never come back.
            threading.Thread(target=_examine, args=arguments, name="presence", daemon=True).start()
        done, _ = await asyncio.wait([self._looking], timeout=self._patience if self._faulty == 0 else self._every)
        if not done:
            return [], False
        found, complete = self._looking.result()
        self._looking = None
        still = {id(files) for files in self._watched()}
        return [(files, faults) for files, faults in found if id(files) in still], complete

    def _count_time(self) -> None:
        """Count how long something was wrong: a process that was stopped meanwhile has not looked."""
        now = time.monotonic()
        if self.fault is not None:
            self._faulty += min(now - self._looked, 2 * max(self._every, 0.5))
        self._looked = now

    def _note(self, found: Found) -> None:
        if self._looking is not None:
            text = "the file system of the data does not answer"
        else:
            first, *others = dict.fromkeys(str(fault) for _, faults in found for fault in faults)
            text = f"{first} (and {len(others)} more)" if others else first
            self._found = found
        if text != self.fault:
            self.since = self.since or datetime.now(UTC)
            _log.error(
                "%s: pushes are refused, and the service ends with exit code %d after %g s", text, IO_ERROR, self._grace
            )
        self.fault = text
        self._tell()

    def _all_is_well(self, passed: Sequence[tuple[Journal, int]]) -> None:
        if self.fault is not None:
            _log.info("all files are back: pushes are accepted")
        self.fault = self.since = None
        self._found, self._faulty = [], 0.0
        self._tell()
        for journal, position in passed:
            journal.confirm(position)

    def _tell(self) -> None:
        for journal in self._journals():
            journal.withheld = self.fault


def _shown(time: datetime | None) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}" if time else "now"


def _examine(
    watched: Sequence[tuple[WatchedFiles, int]],
    future: asyncio.Future[tuple[Found, bool]],
    loop: asyncio.AbstractEventLoop,
) -> None:
    found, complete = Found(), True
    for files, version in watched:
        faults = files.examine()
        if faults is None or files.version != version:
            complete = False
        elif faults:
            found.append((files, faults))
    try:
        loop.call_soon_threadsafe(_give, future, (found, complete))
    except RuntimeError:
        _log.debug("the event loop ended first")


def _give(future: asyncio.Future[tuple[Found, bool]], result: tuple[Found, bool]) -> None:
    if not future.done():
        future.set_result(result)
