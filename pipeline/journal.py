"""The durable buffer of one pipeline: batches in, in order, and out again for each exporter at its own position.

Every batch gets a position, 1 and up, never given twice. What one commit of the committer's thread holds is one row, a
group. The newest groups stay in memory, decoded, so that exporters that keep up read no disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from pipeline.books import Cursor
from pipeline.commit import Commit, Record, Told, first_of
from pipeline.committer import Committer
from pipeline.counts import Counts
from pipeline.data import Batch, Context, Delivery, Outcome, Store
from pipeline.errors import Overloaded, StartError
from pipeline.files import FileLock, make_private_folder
from pipeline.high_water import MARK_BYTES
from pipeline.identity import CONFLICT, OWNER
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability, Group
from pipeline.journal_reader import JournalReader
from pipeline.journal_settings import JournalSettings
from pipeline.journal_tail import TAIL_ITEMS, Tail, next_delivery
from pipeline.memory import Memory, RequestHold, cost_of
from pipeline.rescue import copy_database, refuse_rescued
from pipeline.room import Room
from pipeline.salvage import is_damage
from pipeline.watched_files import WatchedFiles

T = TypeVar("T")

GROUP_RECORDS = 1024
"""Nothing waits for more than that to gather."""
GROUP_BYTES = 8 * 2**20
"""The most bytes of one commit, unless its last record exceeds them, so that a large one delays others only briefly."""
SLOW_DOWN_ITEMS = 10_000
"""How far a working exporter may be behind before accepting slows down; below TAIL_ITEMS, so that it never has to read disk."""
SLOWEST = 0.25
"""The longest that one append is held back for that, in seconds."""
CURSORS_SAVED_EVERY = 1.0
"""Seconds between two saves of cursors while nothing is appended."""


class Journal:
    """One pipeline's journal. All methods are called on the event loop's thread."""

    def __init__(self, pipeline: str, settings: JournalSettings) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.path = settings.folder / f"{pipeline.replace('/', '-')}.db"
        self.id = ""
        """Its identity, in hexadecimal, once it is open."""
        self.stores: dict[str, Store] = {}
        """The stores that it belonged to when it was opened, by holder (`pipeline/identity.py`)."""
        self.accepting = True
        """Whether anything may be appended: only after a start has compared every exporter's position."""
        self.last = 0
        """The position of the newest durable batch."""
        self.items = self.items_before = 0
        """How many items it has ever made durable, and how many of these it had when it was opened."""
        self.bytes = self.forgotten_keys = 0
        """What waits in the file for the slowest exporter, and how many idempotency keys it had no room to remember for a day."""
        self.sources: list[Counts] = []  # what became of what came in, of each that has ever fed it
        self.subscribers: list[Callable[[Group], None]] = []
        """Called with each group once it is durable."""
        self.backlog: Callable[[], int] = lambda: 0
        """How many items the slowest exporter that works is behind; set by who delivers."""
        self.room = Room(settings.folder)
        self.memory = Memory()
        """The memory budget; set by the graph, before `open`."""
        self.tell_ended: Callable[[str], None] = lambda fault: None
        """Called with the reason when the thread that commits has ended by itself: nothing is accepted any more."""
        self.fault: str | None = None
        """That reason, once there is one."""
        self.withheld: str | None = None
        """Why nothing is accepted although the journal itself works: a file of the service is gone. Set by `Presence`."""
        self.trims_when_confirmed = False
        """Whether a trim needs `confirm`, and not only `keep_from`."""
        self.passed = 0
        """The position up to which every exporter needs the journal no more."""
        self._log = logging.getLogger(f"journal.{pipeline}")
        self._lock = FileLock(self.path.with_suffix(".lock"))
        beside = {self.path.with_suffix(".mark"): MARK_BYTES, self._lock.path: 0}
        self.files = WatchedFiles(self.path, beside, copy=self._copy, checkpoint=self._checkpoint, can_repair=True)
        """What `Presence` examines while the journal is open."""
        self._new: list[Path] = []
        self._committer: Committer | None = None
        self._reader = JournalReader(self.path, self._log)
        self._encoder = msgspec.msgpack.Encoder()
        self._gathered: list[Record] = []
        self._gathered_bytes = self._submitted_bytes = 0
        self._committing = 0
        self._closing = False
        self._tail = Tail()
        self._unsettled: asyncio.Future[Outcome] | None = None
        self._save: asyncio.TimerHandle | None = None

    async def open(self, *, accept_reset: bool = False) -> None:
        """Take the files, or make them. Raises `StartError`, also if they were lost or replaced, unless that is accepted."""
        self._closing = False
        self._tail.leave()
        self._tail.join(self.memory.recent)
        refuse_rescued([self.path])
        self._new = []
        make_private_folder(self.settings.folder)
        new_lock = [] if self._lock.path.exists() else [self._lock.path]
        self._lock.acquire()
        self._new = [*new_lock, *(file for file in self._files() if not file.exists())]
        self._loop = asyncio.get_running_loop()
        committer = Committer(self.path, self.settings.durability, self._settled, self._stopped)
        committer.make_room = self.room.reserve.release
        committer.watch(self.files)
        try:
            opened = await committer.start(accept_reset=accept_reset)
            self._committer = committer
            self.last, self.items, self.bytes, self.id = opened.last, opened.items, opened.bytes, opened.id
            self.stores = dict(opened.stores)
            self.items_before = self.items
            await self._reader.open()
        except (OSError, sqlite3.Error) as error:
            raise StartError(f"cannot open the journal {self.path}: {error}") from None

    async def close(self) -> None:
        """Commit what is in hand, save the cursors and close the files; the data stays. Safe twice and without `open`."""
        self._closing = True
        self.files.pause()
        if self._save is not None:
            self._save.cancel()
        await self._reader.close()
        if self._committer is not None:
            self._hand_over()
            # A group takes so many bytes only, and who was answered already (`none`) may have left more.
            while self._gathered:
                self._hand_over()
            await self._committer.stop()
            self._committer = None
        self._tail.leave()
        self._lock.release()

    async def abandon(self) -> None:
        """Close, and leave nothing behind that `open` has made: an empty journal must not stand where the right one belongs."""
        await self.close()
        if self.path in self._new:
            for file in self._new:
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others keep their journals there
                self.settings.folder.rmdir()

    def _files(self) -> Sequence[Path]:
        logs = (Path(f"{self.path}{end}") for end in ("-wal", "-shm"))
        return (self.path, *logs, self.path.with_suffix(".mark"))

    @property
    def failure(self) -> str | None:
        """Why nothing can be made durable now, or None."""
        if self._committer is not None and self._committer.failure is not None:
            return f"the journal cannot be written: {self._committer.failure}"
        return self.refusal()

    def refusal(self) -> str | None:
        """Why an append is not even tried. After a failed commit it is: the disk may have room again."""
        if self._closing or self._committer is None or self._committer.ended:
            return "the journal is closed"
        if self.withheld is not None:
            return self.withheld
        if not self.accepting:
            return "the service is starting"
        coming = self._gathered_bytes + self._submitted_bytes
        return self.room.refusal(self.bytes, coming, self.settings.max_bytes, self._committer.busy_for)

    async def append(self, batch: Batch, context: Context, told: Told = lambda answer: None) -> Outcome:
        """Make the batch durable and return what to answer. Raises `Overloaded` or, for a misused key, `Conflict`.

        `told` is called with what came of it when that is certain, also if the caller has given up waiting by then.
        """
        try:
            if (behind := self.backlog()) > SLOW_DOWN_ITEMS and self.refusal() is None:
                await asyncio.sleep(min(SLOWEST, SLOWEST * (behind - SLOW_DOWN_ITEMS) / TAIL_ITEMS))
            if (refusal := self.refusal()) is not None:
                raise Overloaded(refusal)
            encoded = self._encoder.encode(batch)
        except Exception as error:
            told(error)
            raise
        future: asyncio.Future[Outcome] = self._loop.create_future()
        outcome = context.outcome(context.received - context.rejected)
        record = Record(batch, encoded, outcome, future, context.idempotency, told)
        self._count(record, context)
        if not self._gathered:
            self._loop.call_soon(self._hand_over_when_quiet, 0)
        self._gathered.append(record)
        self._gathered_bytes += len(record.encoded)
        if self.settings.durability is Durability.NONE and context.idempotency is None:
            # Nobody waits but a flush; whether it is ever stored is what this setting leaves open.
            future.add_done_callback(asyncio.Future.exception)
            self._unsettled = future
            return outcome
        return await future

    def _count(self, record: Record, context: Context) -> None:
        """Count the batch until its commit is settled, even if its request is cancelled."""
        record.cost = cost_of(record.batch, len(record.encoded), is_ascii=context.is_ascii)
        record.hold, context.hold = context.hold or RequestHold(self.memory), None
        record.hold.decoded.set(record.cost + len(record.encoded))

    async def settled(self) -> None:
        """Return when what was answered before it was committed (`Durability.NONE`) is committed, or has failed to be."""
        if self._unsettled is not None and not self._unsettled.done():
            await asyncio.wait([self._unsettled])

    def _hand_over_when_quiet(self, seen: int) -> None:
        """Gather while a commit is under way, and for as long as every turn of the loop brings more: a commit costs the same
        for one record as for many, and the loop is busy meanwhile anyway. A lone record waits for one empty turn."""
        if self._committing:
            return
        if seen < len(self._gathered) < GROUP_RECORDS and self._gathered_bytes < GROUP_BYTES:
            self._loop.call_soon(self._hand_over_when_quiet, len(self._gathered))
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._committer is None or self._committer.ended:
            refusal = Overloaded("the journal is closed")
            Commit(None, [(record, refusal) for record in self._gathered]).settle()
            self._gathered, self._gathered_bytes = [], 0
            return
        group, size = self._gathered, self._gathered_bytes
        if size > GROUP_BYTES:
            group, size = first_of(group, GROUP_BYTES)
        self._gathered = self._gathered[len(group) :]
        self._gathered_bytes -= size
        self._submitted_bytes = size
        self._committing += 1
        self._committer.submit(group)

    def _settled(self, commit: Commit) -> None:
        """The thread has committed a group, or failed to."""
        group = commit.group
        self.bytes = commit.held
        self.forgotten_keys += commit.forgotten_keys
        try:
            if group is not None:
                self.last = group.last
                self.items += group.items
                self._tail.add(group)
            commit.settle()
        finally:  # whatever went wrong, those that have gathered are not left waiting
            self._committing -= 1
            self._submitted_bytes = 0
            if self._gathered and not self._committing:
                self._loop.call_soon(self._hand_over_when_quiet, 0)
        if group is not None:
            for subscriber in self.subscribers:
                subscriber(group)
        if self._committer is not None and (commit.more_to_trim or self._committer.failure is not None):
            self._save_soon()

    def _stopped(self) -> None:
        """The thread has ended, perhaps with a commit in hand: whoever gathered behind that one is refused."""
        self._committing = 0
        self._hand_over()
        if self._committer is not None and not self._closing:
            self.fault = f"journal {self.pipeline}: {self._committer.failure}"
            self.tell_ended(self.fault)

    async def read(self, after: int, most_items: int | None = None) -> Delivery:
        """See `read_within`, with the memory share of one delivery."""
        return (await self.read_within(after, most_items, self.memory.share))[0]

    async def read_within(self, after: int, most_items: int | None, most_cost: int) -> tuple[Delivery, int]:
        """What follows that position, from memory, or from disk for an exporter that is far behind; and what it costs, in bytes.

        It holds at most `most_items`, never more than `TAIL_ITEMS`, and costs at most `most_cost`, unless the first batch is larger.
        What is missing there comes as a delivery without batches. Raises `sqlite3.Error` if the file cannot be read; if it is damaged, it
        can the next time.
        """
        groups = self._tail.after(after)
        if groups is None:
            try:
                groups = await self._reader.read(after, upto=self.last, most_cost=most_cost)
            except sqlite3.Error as error:
                if is_damage(error):
                    await self.call(partial(JournalFile.report, error=error))
                raise
        return next_delivery(self.pipeline, after, groups, most_items, most_cost)

    async def claim(self, holder: str, store: Store, *, accept_new: bool = False) -> None:
        """Record the store of this holder, unless it is recorded already.

        Raises `StartError` if another store is recorded and the journal has stored something, unless `accept_new`.
        """
        known = self.stores.get(holder)
        if known is not None and known.id != store.id and self.last and not accept_new:
            if known.name == store.name:
                reason, advice = (
                    f"{store.name} was replaced by another one",
                    "put the right one back, or a backup of it"
                    + ("; if it is new, run with --accept-database-reset" if holder == OWNER else ""),
                )
            else:
                reason = f"it belongs to {known.name}, and not to {store.name}"
                advice = "set METRICS_JOURNAL_DIR to a folder of its own, or put the right one back"
            raise StartError(f"the journal {self.path}: {reason} ({advice})", CONFLICT)
        if known != store:
            await self.call(partial(JournalFile.record_store, holder=holder, store=store))
            self.stores[holder] = store

    async def call(self, function: Callable[[JournalFile], T]) -> T:
        """Do something with the file, in its thread, in a transaction of its own. Raises `Overloaded` if that fails."""
        assert self._committer is not None
        return await self._committer.call(function)

    async def skip_to(self, position: int) -> None:
        """Give no position up to that one any more: the journal was replaced, and exporters have passed it already."""
        await self.call(lambda file: file.skip_to(position))
        self.last = position

    def in_memory(self, position: int) -> Batch | None:
        """The batch at that position, if it is still kept decoded."""
        return self._tail.find(position)

    def keep_from(self, taken: int, kept: int) -> None:
        """Every exporter has passed `taken`, which needs no place in memory any more, and, durably, `kept`, which may be trimmed."""
        self.passed = kept
        if self._committer is not None and not self.trims_when_confirmed:
            self._committer.trim_upto = kept
        self._tail.forget_upto(taken)
        self._save_soon()

    def confirm(self, position: int) -> None:
        """Allow to trim up to `position`: every exporter had passed it before all files of the service were found in place."""
        if self._committer is not None and position > self._committer.trim_upto:
            self._committer.trim_upto = position
            self._save_soon()

    async def _copy(self, target: Path) -> None:
        assert self._committer is not None
        await self._committer.call(lambda file: file.use(partial(copy_database, target=target)), transaction=False)

    async def _checkpoint(self) -> bool:
        assert self._committer is not None
        return await self._committer.call(JournalFile.checkpoint_all, transaction=False)

    def advance(self, exporter: str, cursor: Cursor) -> None:
        """Note an exporter's cursor; saved with the next commit, or a second later if there is none."""
        if self._committer is not None:
            self._committer.moved.note(exporter, cursor)
            self._save_soon()

    async def forget(self, exporter: str) -> None:
        """Delete the cursor of an exporter that is gone. Raises `Overloaded` if that fails."""
        if self._committer is not None:
            self._committer.moved.forget(exporter)
        await self.call(lambda file: file.forget(exporter))

    def _save_soon(self) -> None:
        if self._save is None and not self._closing:
            self._save = self._loop.call_later(CURSORS_SAVED_EVERY, self._save_now)

    def _save_now(self) -> None:
        self._save = None
        if self._committing:
            self._save_soon()
        elif self._committer is not None:
            self._hand_over()

    async def next_to_replay(self, after: int, exporters: Sequence[str]) -> tuple[int, str, bytes] | None:
        """See `JournalReader.next_to_replay`."""
        return await self._reader.next_to_replay(after, exporters)
