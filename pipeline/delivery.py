"""Delivery: one worker an exporter, each a cursor over the pipeline's journal, and the journal trimmed behind the slowest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence, Set
from functools import partial
from typing import Any

import anyio

from pipeline.books import EVERYBODY
from pipeline.component import Component, Exporter
from pipeline.deadlines import Calls
from pipeline.errors import Overloaded
from pipeline.journal import Journal
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Group
from pipeline.replay import Replays
from pipeline.supervision import Starts
from pipeline.worker import Worker

LOOK_AGAIN = 1.0
"""Seconds until the journal is trimmed again, while an exporter's state is not saved as far as it has taken deliveries."""


DROP_ABOVE, DROP_TO = 0.9, 0.8
"""Shares of the journal's limit: where giving up the oldest begins, for exporters that are configured so, and how far it goes."""


class PipelineDelivery:
    """All workers of one pipeline."""

    def __init__(self, journal: Journal, exporters: Sequence[Exporter[Any]], calls: Calls | None = None) -> None:
        self._calls = calls or Calls()
        self.workers = [Worker(journal, exporter, self._trim, self._calls) for exporter in exporters]
        self._journal = journal
        self._again: asyncio.TimerHandle | None = None
        self._replays = Replays(journal, self.workers)
        self._background: anyio.CancelScope | None = None
        self._background_ended = asyncio.Event()
        self._background_ended.set()
        self._stopping = False
        self._placed = False
        self._filling = asyncio.Event()
        journal.subscribers.append(self._notice)
        journal.backlog = self.backlog

    async def start(self, tasks: Starts, *, accept_reset: bool) -> None:
        """`compare`, then `begin`."""
        await self.compare(accept_reset=accept_reset)
        await self.begin(tasks)

    async def compare(self, *, accept_reset: bool, accept_new: bool = False) -> None:
        """Ask every exporter for its position, and compare its store with the journal. Delivers nothing. Raises `StartError`."""
        await asyncio.gather(*(worker.ask() for worker in self.workers))
        saved = await self._journal.call(lambda file: file.cursors())
        for worker in self.workers:
            await worker.begin(saved, accept_reset=accept_reset, accept_new=accept_new)
        for worker in self.workers:
            worker.ask_saved()  # one that raises here must end the start
        self._placed = True

    async def begin(self, tasks: Starts) -> None:
        """Run every worker, after `compare`. Drops the cursors of exporters that are no longer configured."""
        saved = await self._journal.call(lambda file: file.cursors())
        for gone in saved.keys() - {worker.exporter.name for worker in self.workers}:
            await self._give_up(gone, saved[gone].position)
        # What the last run did not come to trim, or was kept for one that is gone, may be what keeps the journal full.
        self._trim()
        for worker in self.workers:
            tasks.start_soon(worker.run, name=worker.exporter.name)
        tasks.start_soon(self._in_background, name=f"delivery {self._journal.pipeline}")
        self._look_at_room()

    async def _in_background(self) -> None:
        if self._stopping:
            return
        self._background_ended.clear()
        try:
            with anyio.CancelScope() as self._background:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._replays.run)
                    tasks.start_soon(self._keep_room)
        finally:
            self._background_ended.set()

    def _notice(self, group: Group) -> None:
        for worker in self.workers:
            worker.notice(group)
        self._look_at_room()

    def _look_at_room(self) -> None:
        if self._journal.bytes > DROP_ABOVE * self._journal.settings.max_bytes:
            self._filling.set()

    async def _keep_room(self) -> None:
        """When the journal is nearly full, give up the oldest for those exporters that would rather lose it than have pushes refused."""
        while True:
            await self._filling.wait()
            self._filling.clear()
            dropping = [worker for worker in self.workers if worker.drops_oldest]
            # What another exporter needs stays anyhow: to give it up would make no room.
            needed = min(
                (worker.kept for worker in self.workers if not worker.drops_oldest), default=self._journal.last
            )
            if all(worker.position >= needed for worker in dropping):
                continue
            passed = min(max(worker.position, worker.dropping_upto) for worker in dropping)
            limit = self._journal.settings.max_bytes
            try:
                target = await self._journal.call(partial(_excess, passed=passed, needed=needed, limit=limit))
            except Overloaded:
                await asyncio.sleep(LOOK_AGAIN)
                self._filling.set()
                continue
            for worker in dropping:
                if worker.position < target:
                    worker.drop_upto(target)

    def _trim(self) -> None:
        taken = min(worker.position for worker in self.workers)
        kept = min(worker.cursor().position for worker in self.workers)
        self.note_saved()  # together: a cursor in the file must not be from before what is trimmed
        self._journal.keep_from(taken, kept)
        # A journal that is full hears of no new groups, and this may be the one that kept others from giving up theirs.
        self._look_at_room()
        if kept < taken and self._again is None:
            # Nobody tells when it is saved, and a journal that is full sees no delivery that would lead here again.
            self._again = asyncio.get_running_loop().call_later(LOOK_AGAIN, self._trim_again)

    def _trim_again(self) -> None:
        self._again = None
        self._trim()

    def place(self, exporter: Exporter[Any], tasks: Starts) -> None:
        """Deliver to one exporter more, what is accepted from now on. For one that does not keep its position itself."""
        worker = Worker(self._journal, exporter, self._trim, self._calls)
        worker.place_at_end()
        self.workers.append(worker)
        tasks.start_soon(worker.run, name=exporter.name)

    async def replace(self, worker: Worker, exporter: Exporter[Any], grace: float, tasks: Starts) -> None:
        """Deliver to this exporter what the other one has not taken, once it has ended what it has in hand, or `grace` seconds later."""
        await worker.stop(grace)
        worker.change(exporter)
        tasks.start_soon(worker.run, name=exporter.name)

    async def remove(self, worker: Worker, grace: float) -> None:
        """Deliver to this one no more; it gives up its place."""
        await worker.stop(grace)
        self.workers.remove(worker)
        try:
            await self._give_up(worker.exporter.name, worker.position)
        finally:
            self._trim()  # also if its place is given up with the next start only: a full journal waits for this

    async def _give_up(self, gone: str, position: int) -> None:
        if gone != EVERYBODY:
            logging.getLogger(f"journal.{self._journal.pipeline}").warning(
                "%s is no longer configured: it gives up its place at %d of %d", gone, position, self._journal.last
            )
        await self._journal.forget(gone)

    def note_saved(self) -> None:
        """Note how far the exporters' data is durable, for those that save it later than they take it."""
        for worker in self.workers if self._placed else ():  # before that nobody knows where they are
            self._journal.advance(worker.exporter.name, worker.cursor())

    def backlog(self) -> int:
        """How many items the slowest exporter that works is behind. One that does not work delays nobody."""
        return max((worker.pending for worker in self.workers if worker.failure is None), default=0)

    async def flush(
        self, asked: Set[Component[Any]] | None = None, seconds: float | None = None
    ) -> tuple[list[str], list[str]]:
        """Wait until every working exporter has passed all batches that are durable now, or for `seconds`.

        Returns the names of the exporters that do not work, and of those that are behind then. With `asked`, only for these exporters.
        """
        until = None if seconds is None else anyio.current_time() + seconds
        with anyio.move_on_after(seconds):
            await self._journal.settled()
        upto = self._journal.last
        flushes = {
            asyncio.ensure_future(worker.flush(upto)): worker.exporter
            for worker in self.workers
            if asked is None or worker.exporter in asked
        }
        try:
            # Not a task group, which would wait for an exporter that hangs.
            if flushes:
                await asyncio.wait(flushes, timeout=None if until is None else max(0.0, until - anyio.current_time()))
        finally:
            behind = [exporter for task, exporter in flushes.items() if not task.done()]
            for task in flushes:
                task.cancel()
        not_working = [exporter for task, exporter in flushes.items() if task.done() and not task.result()]
        return [_named(each) for each in not_working], [_named(each) for each in behind]

    async def stop(self, grace: float) -> None:
        """Stop every worker, each within `grace` seconds. Safe twice."""
        self._stopping = True
        if self._background is not None:
            self._background.cancel()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        async with anyio.create_task_group() as tasks:
            for worker in self.workers:
                tasks.start_soon(worker.stop, grace)
        with anyio.CancelScope(shield=True):
            await self._background_ended.wait()


def _excess(file: JournalFile, passed: int, needed: int, limit: int) -> int:
    """The position up to which the oldest rows are over `DROP_TO` of the limit, at most `needed`; 0 if none are.

    It compares sizes within one transaction of the file. The size that the journal reports is older: rows that a trim deletes
    meanwhile would count twice, and the exporter would lose as many again.
    """
    if file.bytes_after(passed) <= DROP_ABOVE * limit:
        return 0  # the rest is over the threshold only until it is trimmed
    return file.position_after(size=file.held - int(DROP_TO * limit), upto=needed)


def _named(exporter: Exporter[Any]) -> str:
    return f"{exporter.kind} {exporter.id}"
