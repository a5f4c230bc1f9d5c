"""One exporter's cursor over its pipeline's journal, at its own pace.

A worker waits until its exporter is due, takes what follows its position from the journal, hands it over until it is taken,
and moves on. What an exporter can never take is found by halving and becomes a dead letter; everything else is tried again
without a time limit.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio

from pipeline.component import Exporter
from pipeline.data import Delivery
from pipeline.errors import Overloaded, Permanent, RateLimited, Refusal, Retryable, ServiceError, StartError
from pipeline.journal import SLOW_DOWN_ITEMS, Journal
from pipeline.journal_file import Group

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
LONGEST_RETRY_AFTER = 300.0
"""Seconds; what another side asks for beyond that is not believed, lest one wrong answer hold up delivery for days."""
BREATH = 0.01
"""Seconds between two deliveries to an exporter that takes at once, so that under load one holds many commits: each costs some
30 µs of the loop. A flush, which a scrape begins with, does not wait for it."""
REPLACED = 78
"""EX_CONFIG of sysexits.h: a person must decide."""


class Worker:
    """Delivers one pipeline's journal to one exporter."""

    def __init__(self, journal: Journal, exporter: Exporter[Any], advanced: Callable[[], None]) -> None:
        self.exporter = exporter
        self.position = 0
        self.pending = 0
        """Items that the exporter has yet to take."""
        self.failure: str | None = None
        """Why the last try failed; None while the exporter works."""
        self.sent = 0
        """Items that the exporter has taken since the start."""
        self.dead_lettered = 0
        """Items that it refused for good since the start."""
        self.failed_tries = 0
        """Deliveries that did not succeed, and are tried again."""
        self._journal = journal
        self._rested = 0.0
        self._began = 0
        self._began_at = datetime.now(UTC)
        self._advanced = advanced
        self._log = logging.getLogger(f"{exporter.kind}.{exporter.id}")
        self._due = asyncio.Event()
        self._moved = asyncio.Event()
        self._stopping = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._flush_upto = 0
        self._read_ahead = Delivery(journal.pipeline, 0, 0, ())
        self._scope: anyio.CancelScope | None = None
        self._finished = asyncio.Event()
        self._finished.set()

    @property
    def name(self) -> str:
        """The exporter's name in the journal's cursors."""
        return f"{self.exporter.kind}.{self.exporter.id}"

    @property
    def kept(self) -> int:
        """Up to where the exporter needs the journal no more, whatever happens."""
        saved = self.exporter.saved(self._journal.pipeline)
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

    async def begin(self, saved: dict[str, int], *, accept_reset: bool) -> None:
        """Find where the exporter has got to. A new one starts at the end, and that is made durable before anything else.

        Raises `StartError` if the exporter is beyond the journal, unless a replaced journal is accepted.
        """
        own = await self.exporter.position(self._journal.pipeline) if self.exporter.keeps_position else None
        position = saved.get(self.name) if own is None else own
        if position is None:
            position = self._journal.last
            await self._journal.place(self.name, position)
        if position > self._journal.last:
            if not accept_reset:
                raise StartError(
                    f"exporter {self.exporter.id} has taken up to {position}, but the journal {self._journal.path} ends at "
                    f"{self._journal.last}: it was lost or replaced (put the right one back, or run with --accept-journal-reset)",
                    REPLACED,
                )
            await self._journal.skip_to(position)
        self.position = self._began = position
        self.pending = await self._journal.items_after(position)

    def notice(self, group: Group) -> None:
        """A group has become durable."""
        self.pending += group.items
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
        if self.position < self._flush_upto or self._stopping.is_set():
            return True
        if self.exporter.at_once:
            return asyncio.get_running_loop().time() >= self._rested
        return self.pending >= min(self._journal.settings.size, SLOW_DOWN_ITEMS)

    async def run(self) -> None:
        """Deliver until `stop`."""
        self._finished.clear()
        try:
            with anyio.CancelScope() as self._scope:
                while not self._stopping.is_set():
                    self._wake_when_due()
                    await self._due.wait()
                    self._due.clear()
                    if self._timer is not None:
                        self._timer.cancel()
                        self._timer = None
                    if self.position < self._journal.last and await self._until_done(self._read):
                        self._name_gap(self._read_ahead)
                        await self._deliver(self._read_ahead)
                        self._rested = asyncio.get_running_loop().time() + BREATH
        finally:
            if not self._stopping.is_set():
                self.failure = "its worker has ended"
            self._finished.set()

    async def _read(self) -> None:
        self._read_ahead = await self._journal.read(self.position)

    def _name_gap(self, delivery: Delivery) -> None:
        if not delivery.batches:
            missing = (delivery.after + 1, delivery.upto)
            self._log.error(
                "positions %d to %d are damaged, or were trimmed while it was not configured: passed over", *missing
            )

    async def _deliver(self, delivery: Delivery) -> None:
        """Hand over until it is taken, all or in parts."""
        try:
            taken = await self._until_done(lambda: self._export(delivery))
        except Permanent as error:
            await self._divide(delivery, str(error))
        else:
            if taken:
                self.sent += delivery.items
                self._advance(delivery.upto, delivery.items)

    async def _export(self, delivery: Delivery) -> None:
        if delivery.batches:
            await self.exporter.export(delivery)
        elif self.exporter.keeps_position:
            try:
                await self.exporter.export(delivery)
            except Permanent as error:
                raise Retryable(f"cannot move its cursor: {error}") from error

    async def _until_done(self, action: Callable[[], Awaitable[None]]) -> bool:
        """Try until it succeeds (true) or the worker is to stop (false). `Permanent` goes through."""
        backoff = FIRST_BACKOFF
        while not self._stopping.is_set():
            try:
                await action()
            except Permanent:
                raise
            except asyncio.CancelledError:
                if self._is_cancelled():
                    raise
                # The exporter cancelled something of its own and let that out.
                error: Exception = Retryable("a task of its own was cancelled")
            except Exception as raised:  # whatever a plugin raises, nothing may be lost
                error = _reason(raised)
                if isinstance(error, Permanent):
                    raise error from raised
            else:
                return True
            self._failed(error)
            await self._wait(backoff, error)
            backoff = min(backoff * 2, LONGEST_BACKOFF)
        return False

    def _is_cancelled(self) -> bool:
        task = asyncio.current_task()
        return (self._scope is not None and self._scope.cancel_called) or (task is not None and task.cancelling() > 0)

    def _failed(self, error: Exception) -> None:
        self.failed_tries += 1
        reason = str(error) or type(error).__name__
        if reason != self.failure:
            expected = isinstance(error, ServiceError)
            self._log.warning("cannot deliver, will try again: %s", reason, exc_info=None if expected else error)
        self.failure = reason
        self._tell_flushers()

    async def _wait(self, backoff: float, error: Exception) -> None:
        seconds = random.uniform(backoff / 2, backoff)  # noqa: S311 - spreads retries, keeps no secret
        asked = error.retry_after if isinstance(error, Retryable | Overloaded | RateLimited) else None
        seconds = max(seconds, min(asked or 0, LONGEST_RETRY_AFTER))
        with anyio.move_on_after(seconds):
            await self._stopping.wait()

    async def _divide(self, delivery: Delivery, reason: str) -> None:
        """The exporter will never take this as it is: find the batches at fault, and deliver the others."""
        count = len(delivery.batches)
        if count > 1:
            middle = delivery.after + count // 2
            batches = delivery.batches
            await self._deliver(Delivery(delivery.pipeline, delivery.after, middle, batches[: count // 2]))
            if self.position == middle:
                await self._deliver(Delivery(delivery.pipeline, middle, delivery.upto, batches[count // 2 :]))
            return
        (batch,) = delivery.batches
        self._log.error("refused for good, kept as a dead letter: position %d: %s", delivery.upto, reason)
        if await self._until_done(lambda: self._journal.bury(self.name, delivery.upto, batch, reason)):
            self.pending -= len(batch)
            self.dead_lettered += len(batch)
            await self._deliver(Delivery(delivery.pipeline, delivery.after, delivery.upto, ()))

    def _advance(self, position: int, items: int) -> None:
        if self.failure is not None:
            self._log.info("delivers again")
            self.failure = None
        self.position = position
        # Damaged records and records that were trimmed hold items that never come by: at the end nothing waits.
        self.pending = self.pending - items if position < self._journal.last else 0
        self._journal.advance(self.name, self.kept)
        self._advanced()
        self._tell_flushers()

    def _tell_flushers(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def flush(self, upto: int) -> bool:
        """Return when the exporter has passed that position and holds nothing back (true), or does not work."""
        self._flush_upto = max(self._flush_upto, upto)
        self._wake_when_due()
        while self.position < upto and self.failure is None and not self._stopping.is_set():
            await self._moved.wait()
        if self.position < upto:
            return False
        try:
            await self.exporter.flush()
        except Exception as error:  # whatever a plugin raises, who asked gets an answer
            expected = isinstance(error, ServiceError)
            self._log.info("cannot give on what it holds back: %s", error, exc_info=None if expected else error)
            return False
        return True

    async def stop(self, grace: float) -> None:
        """Let the delivery in hand end, within `grace` seconds; the rest stays in the journal. Safe twice."""
        self._stopping.set()
        self._due.set()
        self._tell_flushers()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with anyio.move_on_after(grace):
            await self._finished.wait()
        if self._scope is not None:
            self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self._finished.wait()


def _reason(raised: Exception) -> Exception:
    """What an exporter means: the one error of a task group, and for a connector, what the next pipeline's refusal is to us."""
    while isinstance(raised, ExceptionGroup) and len(raised.exceptions) == 1:
        (raised,) = raised.exceptions
    if isinstance(raised, Refusal) and not isinstance(raised, Overloaded | RateLimited):
        return Permanent(f"the next pipeline refuses it: {raised}")
    return raised
