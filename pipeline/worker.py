"""One exporter's cursor over its pipeline's journal, at its own pace.

A worker waits until its exporter is due, takes what follows its position from the journal, hands it over until it is taken,
and moves on. What an exporter can never take is found by halving and becomes a dead letter; everything else is tried again
without a time limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import anyio
from msgspec.structs import replace

from pipeline.books import EVERYBODY, Account, Cursor
from pipeline.component import Exporter
from pipeline.config.fields import ExporterConfig
from pipeline.containment import AWAITED, ComponentFailed, asked_now, is_ours
from pipeline.data import Batch, Delivery, Position, Store
from pipeline.deadlines import Calls
from pipeline.errors import Blocked, Retryable, ServiceError, StartError, in_a_line, text_of
from pipeline.handover import Handover
from pipeline.interfaces import Database
from pipeline.journal import SLOW_DOWN_ITEMS, Journal
from pipeline.journal_file import JournalFile
from pipeline.journal_format import Durability, Group
from pipeline.journal_opening import REPLACED
from pipeline.journal_tail import UnreadableDelivery
from pipeline.memory import FIRST_DELIVERY, Hold
from pipeline.waiting import Waiting

BREATH = 0.01
"""Seconds between two deliveries to an exporter that takes at once, so that under load one holds many commits: each costs some
30 µs of the loop. A flush, which a scrape begins with, does not wait for it."""


ASK_SECONDS = 5.0
"""Seconds that a start waits for the position of an exporter. Afterwards only its worker waits."""
ANOTHER_STORE = "another store"


class _Answer(NamedTuple):
    """The store and the position that an exporter reports at a start."""

    store: Store | None
    position: Position | None


class _Opened(NamedTuple):
    """Where an exporter begins: its cursor there, and what waits behind it, in items and bytes.

    If its store is an older copy: how many items that it had stored are missing, and how many come again.
    """

    cursor: Cursor
    items: int
    size: int
    missing: int = 0
    again: int = 0


class Worker:
    """Delivers one pipeline's journal to one exporter."""

    def __init__(
        self, journal: Journal, exporter: Exporter[Any], advanced: Callable[[], None], calls: Calls | None = None
    ) -> None:
        self._calls = calls or Calls()
        self._saved: int | None = None
        self._saved_failed = False
        self.exporter = exporter
        self.position = 0
        self.waiting = Waiting()
        """What the exporter has yet to take."""
        self.account = Account()
        """What became of all that it has passed since it was placed."""
        self.placed = True
        """Whether the position of the exporter is known. Until then the journal keeps everything after the last known cursor."""
        self.missing_at_start = 0
        """Items that were missing when the exporter reported its position."""
        self._asked: asyncio.Task[_Answer] | None = None
        self._since: Waiting | None = None
        self._accept_reset = self._accept_new = False
        self._journal = journal
        self._rested = 0.0
        self._began = 0
        self._began_at = datetime.now(UTC)
        self._advanced = advanced
        self._log = logging.getLogger(f"{exporter.kind}.{exporter.id}")
        self.handover = Handover(
            journal, exporter, self._log, self._passed, self._move, self._tell_flushers, self._calls
        )
        self._attempts = self.handover.attempts
        self._due = asyncio.Event()
        self._moved = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._flush_upto = 0
        self._drop_upto = 0
        self._due_upto = 0
        self._not_kept: deque[Cursor] = deque()
        self._kept_cursor = Cursor(0, self.account)
        self._none_read = self._read_ahead = Delivery(journal.pipeline, 0, 0, ())
        self._hold = Hold(journal.memory.deliveries)
        self._most_cost = FIRST_DELIVERY
        self._scope: anyio.CancelScope | None = None
        self._finished = asyncio.Event()
        self._finished.set()

    @property
    def pending(self) -> int:
        """Items that the exporter has yet to take."""
        return self.waiting.items

    @property
    def failure(self) -> str | None:
        """Why the last try failed; None while the exporter works."""
        return self._attempts.failure

    def ask_saved(self) -> int | None:
        """What the exporter says that it has saved. Raises `ComponentFailed`."""

        def ask() -> Any:
            saved: Any = self.exporter.saved(self._journal.pipeline)
            if saved is not None and (not isinstance(saved, int) or isinstance(saved, bool)):
                raise TypeError(f"saved returned {in_a_line(saved)} (must return a position or None)")
            return saved

        saved: int | None = asked_now(self.exporter, ask)
        return saved

    @property
    def saved(self) -> int | None:
        """The same. While the exporter cannot say, what it said last: then the journal keeps too much rather than too little."""
        try:
            self._saved, self._saved_failed = self.ask_saved(), False
        except ComponentFailed as error:
            if not self._saved_failed:
                self._log.error(
                    "cannot read the saved position, the journal keeps everything since the last one: %s",
                    error,
                    exc_info=error,
                )
            self._saved_failed = True
            return self._began if self._saved is None else self._saved
        return self._saved

    @property
    def unaccounted(self) -> int:
        """Items of which nobody knows what became; 0 unless there is a bug."""
        journaled = self._journal.items - self.account.journaled_before
        return journaled - self.account.passed - self.pending

    @property
    def drops_oldest(self) -> bool:
        """Whether it would rather lose the oldest of what waits for it than keep the journal full."""
        config = self.exporter.config
        if self.exporter.keeps_position:
            return False  # it alone could move the cursor that it keeps
        return isinstance(config, ExporterConfig) and config.when_full == "drop_oldest"

    @property
    def kept(self) -> int:
        """Up to where the exporter needs the journal no more, whatever happens."""
        saved = self.saved if self.placed else None
        return self.position if saved is None else max(self._began, min(saved, self.position))

    @property
    def oldest(self) -> datetime | None:
        """When what the exporter has to take next was received, or at the latest; None if nothing waits."""
        if self.position >= self._journal.last:
            return None
        batch = self._journal.in_memory(self.position + 1)
        ahead = self.position - self._read_ahead.after
        if batch is None and 0 <= ahead < len(self._read_ahead.batches):
            batch = self._read_ahead.batches[ahead]
        return self._began_at if batch is None else batch.received_at

    def cursor(self) -> Cursor:
        """How far its data is durable, with what became of that: what the journal saves."""
        kept = self.kept
        while self._not_kept and self._not_kept[0].position <= kept:
            self._kept_cursor = self._not_kept.popleft()
        return self._kept_cursor

    async def ask(self) -> None:
        """Ask an exporter that keeps its own position where it is. Returns when it has answered, or after `ASK_SECONDS`."""
        if self.exporter.keeps_position:
            self._asked = asyncio.ensure_future(self._ask())
            await asyncio.wait([self._asked], timeout=ASK_SECONDS)

    async def _ask(self) -> _Answer:
        exporter = self.exporter
        where = partial(exporter.position, self._journal.pipeline, self._journal.id)
        try:
            store: Any = await self._calls.watch(exporter, "store", exporter.store)
            position: Any = await self._calls.watch(exporter, "position", where)
        except (SystemExit, BaseExceptionGroup) as error:
            raise Retryable(f"it raised {in_a_line(error)}") from error
        if type(position) is int:
            position = Position(position)
        if not isinstance(store, Store | None) or not isinstance(position, Position | None):
            raise Retryable(
                f"it said {in_a_line(store)} and {in_a_line(position)} (must be a Store and a Position, or None)"
            )
        return _Answer(store, position)

    async def begin(self, saved: dict[str, Cursor], *, accept_reset: bool, accept_new: bool = False) -> None:
        """Find where the exporter has got to, after `ask`. A new one starts at the end, and that is made durable before anything else.

        An exporter that could not answer is asked again by `run`. Raises `StartError` if the exporter's store and this journal do not
        belong together, or if it is beyond the journal, unless a replaced journal is accepted. With `accept_new`, a new database gets
        everything that the journal still holds.
        """
        self._accept_reset = accept_reset
        self._accept_new = accept_new and Database in self.exporter.requires
        cursor = saved.get(self.exporter.name, saved.get(EVERYBODY))
        if self._asked is None:
            await self._open(cursor, None, self._journal.last if cursor is None else cursor.position)
        elif (answer := self._answered(self._asked)) is not None:
            await self._place(cursor, answer)
        else:
            self.placed = False
            await self._open(cursor, None, self._journal.last if cursor is None else cursor.position)

    def _answered(self, asked: asyncio.Task[_Answer]) -> _Answer | None:
        """The answer, or None if there is none yet. Raises `StartError` if that is the answer."""
        if not asked.done():
            self._attempts.failure = f"it has not reported its position for {ASK_SECONDS:g} s"
            self._log.warning("%s: the start continues without it", self._attempts.failure)
            return None
        error = asked.exception() if not asked.cancelled() else Retryable("a task of its own was cancelled")
        if error is None:
            return asked.result()
        if isinstance(error, StartError):
            raise error
        self._attempts.failure = text_of(error)
        expected = None if isinstance(error, ServiceError) else error
        self._log.warning("cannot report its position: %s", self._attempts.failure, exc_info=expected)
        self._asked = None
        return None

    async def _place_late(self) -> None:
        """Ask again, and compare as a start does. Raises `Blocked` if its store and this journal do not belong together."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._ask())
        await asyncio.wait([self._asked])
        asked, self._asked = self._asked, None
        try:
            await self._place(self._kept_cursor, asked.result())
        except StartError as error:
            raise Blocked(str(error), ANOTHER_STORE) from error
        self.placed = True
        self._attempts.succeeded()
        self._advanced()
        self._tell_flushers()

    async def _place(self, cursor: Cursor | None, answer: _Answer) -> None:
        journal, store, own = self._journal, answer.store, answer.position
        recorded = journal.stores.get(self.exporter.name)
        known = store is not None and recorded is not None and recorded.id == store.id
        passed = cursor is not None and cursor.account.passed > 0
        if own is not None and own.journal_id not in ("", journal.id):
            if not known:
                await self._refuse(f"{self._where(store)} has the cursor of another journal than {journal.path}")
                await journal.skip_to(max(journal.last, own.upto))
            own = None
        elif own is None and store is not None and not known and passed and self._accept_new:
            self._log.error("%s is new: it gets what the journal still holds", store.name)
            known = True
        elif own is None and store is not None and not known and passed:
            await self._refuse(
                f"{self._where(store)} has no cursor for the journal {journal.path}, which had events stored",
                "; if the database is new, with --accept-database-reset" if Database in self.exporter.requires else "",
            )
        if own is None and known and passed:  # the store is new, or a copy from before its first delivery
            assert cursor is not None
            before = cursor.account.journaled_before
            own = Position(0, before)
        if own is not None and own.upto > journal.last:
            await self._go_on_beyond(own.upto)
        if store is not None:
            await journal.claim(self.exporter.name, store, accept_new=self._accept_new)
        position = own.upto if own is not None else journal.last if cursor is None else cursor.position
        await self._open(cursor, own, position)

    def _where(self, store: Store | None) -> str:
        return f"exporter {self.exporter.id}" if store is None else store.name

    async def _refuse(self, reason: str, new: str = "") -> None:
        if not self._accept_reset:
            raise StartError(
                f"{reason}: one of them was lost or replaced (put the right one back, or run with --accept-journal-reset{new})",
                REPLACED,
            )

    async def _go_on_beyond(self, position: int) -> None:
        journal = self._journal
        if journal.settings.durability is not Durability.POWER_LOSS:
            # A power cut may have cost the journal's end, and not what the exporter made of it: that is what this setting allows.
            self._log.error(
                "cursor %d is past the end of the journal (%d); continuing from %d", position, journal.last, position
            )
        else:
            await self._refuse(
                f"exporter {self.exporter.id} has taken up to {position}, but the journal {journal.path} ends at {journal.last}"
            )
        await journal.skip_to(position)

    async def _open(self, cursor: Cursor | None, own: Position | None, position: int) -> None:
        """Begin at that position. While this waits for the journal's thread, nothing behind it is trimmed, and what comes in is counted."""
        former = self._kept_cursor
        self._kept_cursor = Cursor(min(position, former.position), former.account)
        last, total = self._journal.last, self._journal.items
        since = self._since = Waiting()
        try:
            opened = await self._journal.call(
                partial(self._open_account, cursor=cursor, own=own, position=position, last=last, total=total)
            )
        except BaseException:
            self._kept_cursor = former
            raise
        finally:
            self._since = None
        self.position = self._began = position
        self.waiting = Waiting(opened.items, opened.size)
        self.waiting.append(since)
        self._kept_cursor = opened.cursor
        self._not_kept.clear()
        self.account = opened.cursor.account
        self.missing_at_start += opened.missing
        if opened.again or opened.missing:
            self._log.error(
                "its store ends at position %d, before its cursor in the journal (%d), as after a restore:"
                " %s%d items that it had stored are missing, and %d are delivered again",
                position,
                former.position if cursor is None else cursor.position,
                "" if own is None or own.items is not None or not opened.missing else "about ",
                opened.missing,
                opened.again,
            )

    def place_at_end(self) -> None:
        """The same for a new exporter while the journal is in use. Made durable with the first batch that it is to take, at the latest."""
        self.position = self._began = self._journal.last
        self.account = Account(journaled_before=self._journal.items)
        self._kept_cursor = Cursor(self.position, self.account)
        self._journal.advance(self.exporter.name, self._kept_cursor)

    def change(self, exporter: Exporter[Any]) -> None:
        """After a stop: deliver to this one from now on, from where the former one has got to. `run` goes on."""
        self.exporter = self.handover.exporter = exporter
        self._attempts.begin_again()

    def _open_account(
        self, file: JournalFile, cursor: Cursor | None, own: Position | None, position: int, last: int, total: int
    ) -> _Opened:
        """The account at the position where it begins, of `total` items up to `last`.

        An exporter that keeps its own position has sent what lies between that and the saved cursor. If it is before the saved cursor,
        its store is an older copy.
        """
        items = file.items_after(position) - file.items_after(last)
        size = file.bytes_after(position) - file.bytes_after(last)
        passed = total - items
        missing = again = 0
        if cursor is None:
            before = passed if own is None or own.items is None or position >= file.trimmed else min(own.items, passed)
            missing = passed - before
            account = Account(journaled_before=before, missing=missing)
        elif cursor.position == position:
            account = cursor.account
        elif cursor.position < position:
            account = cursor.account.plus(sent=passed - cursor.account.journaled_before - cursor.account.passed)
        else:
            former = cursor.account
            account = file.rewind(self.exporter.name, former, _at(own, position, file.trimmed, passed), passed)
            missing = account.missing - former.missing
            again = former.journaled_before + former.passed - passed
        opened = Cursor(position, account)
        if opened != cursor:
            file.place(self.exporter.name, opened)
        return _Opened(opened, items, size, missing, again)

    def notice(self, group: Group) -> None:
        """A group has become durable."""
        self.waiting.add(group.items, group.size)
        if self._since is not None:
            self._since.add(group.items, group.size)
        self._wake_when_due()

    def _wake_when_due(self) -> None:
        if self.position >= self._journal.last:
            return
        if self._is_due():
            self._due.set()
        elif self._timer is None:
            seconds = BREATH if self.exporter.at_once else self._journal.settings.flush_interval
            self._timer = asyncio.get_running_loop().call_later(seconds, self._due.set)

    def _is_due(self) -> bool:
        if self.position < max(self._flush_upto, self._drop_upto, self._due_upto) or self._attempts.stopping:
            return True
        if self.exporter.at_once:
            return asyncio.get_running_loop().time() >= self._rested
        return self.pending >= min(self._journal.settings.size, SLOW_DOWN_ITEMS)

    async def run(self) -> None:
        """Deliver until `stop`."""
        self._finished.clear()
        try:
            with anyio.CancelScope() as self._scope:
                while not self.placed and not self._attempts.stopping:
                    self._attempts.resume()
                    await self._attempts.until_done(self._place_late)
                while not self._attempts.stopping:
                    self._wake_when_due()
                    await self._due.wait()
                    self._due.clear()
                    self._cancel_timer()
                    self._attempts.resume()
                    if self._drop_upto > self.position:
                        await self._attempts.until_done(self._drop)
                    elif self.position < self._journal.last:
                        # One delivery holds only so much memory: what was due together stays due.
                        self._due_upto = self._journal.last
                        if await self._attempts.until_done(self._read):
                            await self._deliver_read()
                            self._forget_read()
        finally:
            if not self._attempts.stopping:
                self._attempts.failure = "its worker has ended"
            self._forget_read()
            self._finished.set()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _read(self) -> None:
        self._most_cost = min(self._most_cost, self._journal.memory.share)
        most_items = self.exporter.most_items
        self._read_ahead, cost = await self._journal.read_within(self.position, most_items, self._most_cost)
        self._hold.set(cost)

    def _forget_read(self) -> None:
        self._read_ahead = self._none_read
        self._hold.give_back()

    async def _deliver_read(self) -> None:
        delivery = self._read_ahead
        if not delivery.batches and not isinstance(delivery, UnreadableDelivery):
            missing = (delivery.after + 1, delivery.upto)
            self._log.error(
                "positions %d to %d are damaged, or were trimmed while it was not configured: passed over", *missing
            )
            if not await self._attempts.until_done(partial(self._note_missing, delivery.upto)):
                return
        passed = self.account.journaled_before + self.account.passed
        delivery = replace(delivery, journal_id=self._journal.id, items_upto=passed + delivery.items)
        if await self.handover.deliver(delivery):
            self._most_cost *= 2
        self._rested = asyncio.get_running_loop().time() + BREATH

    async def replay(self, batch: Batch) -> str | None:
        """See `Handover.replay`."""
        return await self.handover.replay(batch, self._nothing)

    def _nothing(self) -> Delivery:
        passed = self.account.journaled_before + self.account.passed
        at, id = self.position, self._journal.id
        return Delivery(self._journal.pipeline, at, at, (), journal_id=id, items_upto=passed)

    @property
    def dropping_upto(self) -> int:
        """The position up to which `drop_upto` was last called."""
        return self._drop_upto

    def drop_upto(self, position: int) -> None:
        """Give up what waits up to that position."""
        self._drop_upto = max(self._drop_upto, position)
        self._attempts.interrupt()
        self._due.set()

    async def _waiting_upto(self, position: int) -> int:
        """How many of the items that wait come up to that position."""
        last, waiting = self._journal.last, self.pending
        # Up to `last`, of which `pending` tells now: what comes in meanwhile is added to it as ever.
        left = await self._journal.call(lambda file: file.items_after(position) - file.items_after(last))
        return max(0, waiting - left)

    async def _note_missing(self, upto: int) -> None:
        items = await self._waiting_upto(upto)
        self.waiting.pass_over(items)
        self.account = self.account.plus(missing=items)

    async def _drop(self) -> None:
        upto = self._drop_upto
        items = await self._waiting_upto(upto)
        self._log.error("the journal is full: %d items that waited for it are given up (when_full: drop_oldest)", items)
        self._move(Cursor(upto, self.account.plus(dropped=items)), items)

    def _passed(self, position: int, sent: int, dead_lettered: int) -> Cursor:
        return Cursor(position, self.account.plus(sent=sent, dead_lettered=dead_lettered))

    def _move(self, cursor: Cursor, items: int) -> None:
        self.position, self.account = cursor
        self.waiting.pass_over(items)
        self._not_kept.append(cursor)
        self._journal.advance(self.exporter.name, self.cursor())
        self._advanced()
        self._tell_flushers()

    def _tell_flushers(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def flush(self, upto: int) -> bool:
        """Return when the exporter has passed that position and holds nothing back (true), or does not work."""
        self._flush_upto = max(self._flush_upto, upto)
        self._wake_when_due()
        while self.position < upto and self.failure is None and not self._attempts.stopping:
            await self._moved.wait()
        if self.position < upto:
            return False
        try:
            await self._calls.watch(self.exporter, "flush", self.exporter.flush)
        except AWAITED as error:  # the caller gets an answer whatever a plugin raises
            if is_ours(error):
                raise
            expected = isinstance(error, ServiceError)
            self._log.info("cannot flush: %s", text_of(error), exc_info=None if expected else error)
            return False
        return True

    async def stop(self, grace: float) -> None:
        """Let the delivery in hand end, within `grace` seconds; the rest stays in the journal. Safe twice."""
        self._attempts.stop()
        self._due.set()
        self._tell_flushers()
        self._cancel_timer()
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None
        with anyio.move_on_after(grace):
            await self._finished.wait()
        if self._scope is not None:
            self._attempts.cancelled = True
            self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._finished.wait()


def _at(own: Position | None, position: int, trimmed: int, passed: int) -> Position:
    """Where an older store ends, and how many items the journal had stored by then: about, if neither the store nor the journal knows."""
    if position >= trimmed:
        return Position(position, passed)
    if own is not None and own.items is not None:
        return Position(position, own.items)
    return Position(position, passed * position // trimmed)
