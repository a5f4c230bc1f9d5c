"""The thread that makes batches durable.

It commits one group after the other, as the journal hands them over: the fsync of one is the time in which the next one
gathers on the event loop, so there is no timer (docs/decisions/0002-one-commit-for-a-burst.md). A group is committed as a
whole or refused as a whole, and wakes the event loop once.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.books import Cursor
from pipeline.commit import Answers, Commit, Record
from pipeline.cursors import MovedCursors
from pipeline.data import Store
from pipeline.errors import Overloaded, StartError
from pipeline.failed_sync import end_process, is_failed_sync
from pipeline.files import CANNOT_CREATE
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability
from pipeline.reserve import is_out_of_room
from pipeline.salvage import is_damage
from pipeline.watched_files import WatchedFiles

T = TypeVar("T")


class Opened(NamedTuple):
    """What the file held when it was opened: the last position given, how many items it has ever stored, how many bytes wait, its identity,
    and the stores that it belongs to."""

    last: int
    items: int
    bytes: int
    id: str
    stores: Mapping[str, Store]


@dataclass(frozen=True)
class _Call:
    function: Callable[[JournalFile], object]
    future: asyncio.Future[object]
    transaction: bool = True


class Committer:
    """Owns the journal's file and the thread that alone writes to it. Public methods are called on the event loop's thread."""

    def __init__(
        self, path: Path, durability: Durability, settled: Callable[[Commit], None], stopped: Callable[[], None]
    ) -> None:
        self.failure: str | None = None
        """Why the last commit failed; None once one has succeeded."""
        self.ended = False
        """Whether the thread has ended, so that nothing will be committed any more."""
        self.trim_upto = 0
        """Rows that end at or before this position are deleted."""
        self.moved = MovedCursors()
        self.make_room: Callable[[], None] = lambda: None
        """Called in the thread when there was no room for a write."""
        self._file = JournalFile(path, durability)
        self._settled = settled
        self._stopped = stopped
        self._log = logging.getLogger(f"journal.{path.stem}")
        self._queue: queue.SimpleQueue[list[Record] | _Call | None] = queue.SimpleQueue()
        self._in_hand: Sequence[Record] = ()
        self._busy_since: float | None = None
        self._rolled_back = True

    async def start(self, *, accept_reset: bool) -> Opened:
        """Start the thread and open the file in it. Raises `StartError`."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[Opened] = self._loop.create_future()
        self._has_ended = self._loop.create_future()
        name = f"committer {self._file.path.stem}"
        self._thread = threading.Thread(target=self._run, args=(opened, accept_reset), name=name, daemon=True)
        self._thread.start()
        return await opened

    async def stop(self) -> None:
        """Commit all that was submitted, close the file and end the thread."""
        self._queue.put(None)
        await asyncio.shield(self._has_ended)
        self._thread.join()

    @property
    def busy_for(self) -> float:
        """How many seconds what it does now has taken."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, records: list[Record]) -> None:
        """Hand over records to be committed. Their futures are resolved when they are, or cannot be."""
        self._put(records)

    def watch(self, files: WatchedFiles) -> None:
        """Have these files examined while the journal is open. Call it before `start`."""
        self._file.files = files

    async def call(self, function: Callable[[JournalFile], T], *, transaction: bool = True) -> T:
        """Run a function on the file, in the thread, in a transaction of its own. Raises `Overloaded` if that fails."""
        future: asyncio.Future[object] = self._loop.create_future()
        self._put(_Call(function, future, transaction))
        return await future  # type: ignore[return-value]

    # What follows runs in the thread.

    def _run(self, opened: asyncio.Future[Opened], accept_reset: bool) -> None:
        try:
            self._file.open(accept_reset=accept_reset)
        except Exception as error:  # whatever it is, somebody waits
            self.ended = True
            reason = error
            if isinstance(error, sqlite3.Error | OSError):
                reason = StartError(f"cannot open the journal {self._file.path}: {error}", CANNOT_CREATE)
            self._back(_fail, opened, reason)
            self._back(_succeed, self._has_ended, None)
            return
        file = self._file
        self._back(_succeed, opened, Opened(file.last, file.items, file.held, file.id, dict(file.stores)))
        failed_sync: BaseException | None = None
        try:
            self._work()
            self._file.close()
        except BaseException as error:
            # Nobody else would notice a dead thread: from here on every append is refused at once.
            self.failure = f"the committer ended: {error}"
            self._log.critical("the committer ended", exc_info=error)
            failed_sync = error if is_failed_sync(error) else None
        finally:
            self.ended = True
            self._refuse_the_rest()
            self._back(self._stopped)
            if failed_sync is not None:
                end_process(f"cannot synchronise {self._file.path}: {failed_sync}")
            self._back(_succeed, self._has_ended, None)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            self._busy_since = time.monotonic()
            if isinstance(work, _Call):
                self._do(work)
            else:
                self._in_hand = work
                commit = self._commit(work)
                self._in_hand = ()
                self._back(self._settled, commit)
            self._file.checkpoint_if_due()
            self._busy_since = None

    def _commit(self, records: Sequence[Record]) -> Commit:
        trim_upto = self.trim_upto  # before the cursors are taken: nothing goes that one of those saved has yet to pass
        moved = self.moved.take()
        try:
            self._begin()
            if moved or not records or self._file.worth_trimming or any(record.idempotency for record in records):
                commit = self._commit_all(records, moved, trim_upto)
            else:
                commit = self._store(records, [])
        except Exception as error:
            self.moved.put_back(moved)
            self._roll_back(error)
            self.failure = str(error)
            refusal = Overloaded(f"the journal cannot be written: {error}")
            commit = Commit(None, [(record, refusal) for record in records])
        else:
            self._file.note()
            if self.failure is not None:
                self._log.info("commits again")
            self.failure = None
        commit.held = self._file.held
        return commit

    def _commit_all(self, records: Sequence[Record], moved: dict[str, Cursor], trim_upto: int) -> Commit:
        """Everything that one commit may have to do, in one transaction."""
        file = self._file
        file.begin()
        keyed = sum(record.idempotency is not None for record in records)
        forgotten = file.forget_keys(keyed) if keyed else 0
        answers, fresh = self._sort_out_repeated(records)
        commit = self._store(fresh, answers)
        commit.forgotten_keys = forgotten
        file.save_cursors(moved)
        if not records:
            file.probe()
        if not records or file.worth_trimming:
            commit.more_to_trim = file.trim(trim_upto)
        file.commit()
        return commit

    def _store(self, fresh: Sequence[Record], answers: Answers) -> Commit:
        group = None
        if fresh:
            encoded, batches = [record.encoded for record in fresh], [record.batch for record in fresh]
            group = self._file.write(encoded, batches, [record.cost for record in fresh])
        return Commit(group, [*answers, *((record, record.outcome) for record in fresh)])

    def _roll_back(self, error: Exception) -> None:
        if str(error) != self.failure:
            expected = isinstance(error, sqlite3.Error | OSError)
            self._log.error("cannot commit: %s", error, exc_info=None if expected else error)
        if is_out_of_room(error):
            self.make_room()
        try:
            if is_damage(error):
                self._file.set_aside(error)
            else:
                self._file.rollback()
            self._rolled_back = True
        except (sqlite3.Error, OSError) as again:
            if again is not error:
                self._log.error("cannot roll back: %s", again)
            self._rolled_back = False  # tried again before the next commit, which fails as long as this does

    def _begin(self) -> None:
        if not self._rolled_back:
            self._file.rollback()
            self._rolled_back = True

    def _sort_out_repeated(self, records: Sequence[Record]) -> tuple[Answers, list[Record]]:
        """Answer the records whose idempotency key was used before; record the use of the others."""
        answers: Answers = []
        fresh = []
        for record in records:
            if record.idempotency is not None:
                outcome = self._file.remembered(record.idempotency)
                if outcome is not None:
                    answers.append((record, outcome))
                    continue
                self._file.remember(record.idempotency, record.outcome)
            fresh.append(record)
        return answers, fresh

    def _do(self, call: _Call) -> None:
        try:
            self._begin()
            try:
                result = self._in_a_transaction(call.function) if call.transaction else call.function(self._file)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._roll_back(error)
                if not self._rolled_back:
                    raise
                result = self._in_a_transaction(call.function)  # of the file that is in its place now
        except Exception as error:
            self._back(_fail, call.future, Overloaded(f"the journal cannot be written: {error}"))
            self._roll_back(error)
        else:
            self._back(_succeed, call.future, result)

    def _in_a_transaction(self, function: Callable[[JournalFile], object]) -> object:
        self._file.begin()
        result = function(self._file)
        self._file.commit()
        self._file.note()
        return result

    def _refuse_the_rest(self) -> None:
        """Answer what will not be committed any more. Runs in the thread when it ends, and in the loop for what came later."""
        refusal = Overloaded("the journal is closed")
        records, self._in_hand = list(self._in_hand), ()
        while True:
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                break
            if isinstance(work, _Call):
                self._back(_fail, work.future, refusal)
            else:
                records += work or ()
        self._back(Commit(None, [(record, refusal) for record in records]).settle)

    def _put(self, work: list[Record] | _Call) -> None:
        self._queue.put(work)
        if self.ended:
            self._refuse_the_rest()

    def _back(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._log.debug("the event loop ended before its journal")


def _succeed(future: asyncio.Future[object], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[object], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
