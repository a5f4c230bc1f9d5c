"""Dead letters on their way back: those that `metrics-service dead-letters replay` has marked are handed to their exporters again."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from functools import partial

import msgspec

from pipeline.errors import ServiceError
from pipeline.journal import Journal
from pipeline.journal_file import JournalFile
from pipeline.journal_format import decode_batch
from pipeline.worker import Worker

LOOK_EVERY = 5.0
"""Seconds between two looks for letters that were marked: the command writes into the file, and tells nobody."""


class Replays:
    """Looks for the marked letters of one pipeline."""

    def __init__(self, journal: Journal, workers: Sequence[Worker]) -> None:
        self._journal = journal
        self._workers = workers
        self._handed: dict[int, str | None] = {}
        """What became of letters that were handed over, where the journal has yet to be told."""
        self._log = logging.getLogger(f"journal.{journal.pipeline}")

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            try:
                await self._look()
            except (ServiceError, sqlite3.Error, OSError) as error:
                self._log.warning("cannot replay dead letters, will try again: %s", error)
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        last, failed = 0, set[str]()
        while True:
            # The others' letters wait until it is configured again, or works again.
            workers = {each.exporter.name: each for each in self._workers}
            working = [name for name, each in workers.items() if each.failure is None and name not in failed]
            if (found := await self._journal.next_to_replay(last, working)) is None:
                return
            last, exporter, payload = found
            try:
                if last not in self._handed:
                    self._handed[last] = await workers[exporter].replay(decode_batch(payload))
            except msgspec.MsgspecError as error:
                self._handed[last] = f"what it holds is damaged: {error}"
            except Exception as error:  # whatever a plugin raises, the letter is kept and tried again
                failed.add(exporter)
                expected = isinstance(error, ServiceError)
                self._log.warning(
                    "cannot replay dead letter %d, will try again: %s",
                    last,
                    error,
                    exc_info=None if expected else error,
                )
                continue
            refusal = self._handed[last]
            await self._journal.call(partial(JournalFile.settle_replay, id=last, refusal=refusal))
            del self._handed[last]
            self._log.info("dead letter %d: %s", last, "taken" if refusal is None else f"refused again: {refusal}")
