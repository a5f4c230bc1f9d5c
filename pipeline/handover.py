"""Handing deliveries to one exporter: until it has taken them, all or in parts, and what it refuses for good is kept.

taken                  move on
anything else          try again (pipeline/attempts.py)
Permanent, Oversized   halve it; what is refused down to single items becomes dead letters, the rest is delivered
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio

from pipeline.attempts import Attempts
from pipeline.books import Cursor
from pipeline.component import Exporter
from pipeline.data import Batch, Delivery
from pipeline.dead_letters import Refused
from pipeline.deadlines import Calls
from pipeline.errors import Oversized, Permanent, Retryable, text_of
from pipeline.halving import halve
from pipeline.journal import Journal

SEARCH_TRIES = 128
"""How many pieces of one delivery may be refused in the search for what is at fault. A bad item of 8,192 takes 14; when all are bad,
what is left is not looked into any further."""


RESCUED_FOR_A_TRY = 2
"""Every so many items that are delivered by the search pay for one refusal more: while it saves something, it goes on."""


class Handover:
    """What is done with a delivery, and how often, for one exporter of one pipeline.

    `passed` gives the cursor at a position, after so many items more were sent and so many dead-lettered; `moved` is called with the
    new one and the number of items that no longer wait, `failed` after a try that failed.
    """

    def __init__(
        self,
        journal: Journal,
        exporter: Exporter[Any],
        log: logging.Logger,
        passed: Callable[[int, int, int], Cursor],
        moved: Callable[[Cursor, int], None],
        failed: Callable[[], None],
        calls: Calls | None = None,
    ) -> None:
        self._calls = calls or Calls()
        self.attempts = Attempts(log, failed)
        self.sent = 0
        """Items that the exporter has taken since the start."""
        self.dead_lettered = 0
        """Items that it refused for good since the start."""
        self.evicted = 0
        """Items of dead letters that were deleted to make room."""
        self.replayed = 0
        """Items of dead letters that it has taken after all."""
        self._journal = journal
        self.exporter = exporter
        self._log = log
        self._passed = passed
        self._moved = moved
        self._one_at_a_time = anyio.Lock()
        self._refusals_left = 0

    async def deliver(self, delivery: Delivery) -> bool:
        """Hand it over until the exporter is behind all of it (true), or this is interrupted (false)."""
        self._refusals_left = SEARCH_TRIES
        return await self._deliver(delivery)

    async def _deliver(self, delivery: Delivery) -> bool:
        try:
            taken = await self.attempts.until_done(partial(self._export, delivery))
        except Permanent as error:
            return await self._divide(delivery, error)
        if taken:
            self._refusals_left += delivery.items // RESCUED_FOR_A_TRY
            self.sent += delivery.items
            self.attempts.succeeded()
            self._moved(self._passed(delivery.upto, delivery.items, 0), delivery.items)
        return taken

    async def _call(self, delivery: Delivery) -> None:
        """Without a deadline: what waits stays in the journal. The health names it, and a stop cancels it."""
        deadlines = self._calls.deadlines
        await self._calls.watch(
            self.exporter,
            "export",
            partial(self.exporter.export, delivery),
            reported=deadlines.export_reported,
            patience=deadlines.export_cancelled,
        )

    async def _export(self, delivery: Delivery) -> None:
        async with self._one_at_a_time:
            if delivery.batches:
                await self._call(delivery)
            elif self.exporter.keeps_position:
                try:
                    await self.attempts.once(partial(self._call, delivery))
                except Permanent as error:
                    raise Retryable(f"cannot move its cursor: {text_of(error)}") from error

    async def _divide(self, delivery: Delivery, error: Permanent) -> bool:
        """The exporter will never take this as it is."""
        batches, after, half = delivery.batches, delivery.after, len(delivery.batches) // 2
        if not half and not self.exporter.keeps_position:
            refused: list[Refused] = []
            return await self._find(delivery, batches[0], error, refused) and await self._bury(delivery, refused)
        if self._may_divide(error) and half:
            first = Delivery(delivery.pipeline, after, after + half, batches[:half])
            second = Delivery(delivery.pipeline, after + half, delivery.upto, batches[half:])
            return await self._deliver(first) and await self._deliver(second)
        # A position that is stored with the data counts whole batches: of a part, nobody could tell whether it was stored.
        return await self._bury(
            delivery, [Refused(after + 1 + n, each, text_of(error)) for n, each in enumerate(batches)]
        )

    def _may_divide(self, error: Permanent) -> bool:
        if isinstance(error, Oversized):
            return error.divide
        self._refusals_left -= 1
        return error.divide and self._refusals_left > 0

    async def _find(self, delivery: Delivery, batch: Batch, error: Permanent, refused: list[Refused]) -> bool:
        """Hand over what the exporter takes of a batch that it refused, and add the rest to `refused`. False if interrupted."""
        halves = halve(batch) if self._may_divide(error) and len(batch) > 1 else None
        if halves is None:
            refused.append(Refused(delivery.upto, batch, text_of(error)))
            return True
        for half in halves:
            part = Delivery(delivery.pipeline, delivery.after, delivery.upto, (half,))
            try:
                if not await self.attempts.until_done(partial(self._export, part)):
                    return False
                self._refusals_left += len(half) // RESCUED_FOR_A_TRY
            except Permanent as again:
                if not await self._find(delivery, half, again, refused):
                    return False
        return True

    async def _bury(self, delivery: Delivery, refused: Sequence[Refused]) -> bool:
        """Make dead letters of what was refused, and move behind the delivery."""
        items = sum(len(each.batch) for each in refused)
        if refused:
            self._log.error(
                "%d of %d items refused for good, kept as dead letters: positions %d to %d: %s",
                *(items, delivery.items, delivery.after + 1, delivery.upto, refused[0].reason),
            )
        cursor = self._passed(delivery.upto, delivery.items - items, items)
        # Of one that keeps its own position, the journal's cursor follows that; else the account would run ahead of it.
        kept = None if self.exporter.keeps_position else cursor
        if not await self.attempts.until_done(partial(self._keep, kept, refused)):
            return False
        moves = Delivery(delivery.pipeline, delivery.after, delivery.upto, ())
        if not await self.attempts.until_done(partial(self._export, moves)):
            return False
        self.attempts.succeeded()
        self.dead_lettered += items
        self.sent += delivery.items - items
        self._moved(cursor, delivery.items)
        return True

    async def _keep(self, cursor: Cursor | None, refused: Sequence[Refused]) -> None:
        name, limit = self.exporter.name, self._journal.settings.max_dead_letter_bytes
        evicted = await self._journal.call(lambda file: file.bury(name, cursor, refused, limit))
        if evicted.letters:
            self.evicted += evicted.items
            self._log.error("deleted the oldest %d dead letters (%d items) to make room", *evicted)

    async def replay(self, batch: Batch, position: Callable[[], int]) -> str | None:
        """Hand a dead letter to the exporter again, which is at `position()`. Returns why it refuses it again, or None if it took it.

        Raises whatever else the exporter raises, and then it is to be tried another time.
        """

        async def export() -> None:
            async with self._one_at_a_time:
                await self._call(Delivery(self._journal.pipeline, position(), position(), (batch,)))

        try:
            await self.attempts.once(export)
        except Permanent as error:
            return text_of(error)
        self.replayed += len(batch)
        return None
