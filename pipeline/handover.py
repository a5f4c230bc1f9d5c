"""Handing deliveries to one exporter: until it has taken them, all or in parts, and what it refuses for good is kept.

taken                  move on
anything else          try again (pipeline/attempts.py)
Permanent with items   these items become dead letters, then the rest is delivered
Permanent, Oversized   halve it; what is refused down to single items becomes dead letters, the rest is delivered
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio
from msgspec.structs import replace

from pipeline.attempts import Attempts
from pipeline.books import Cursor
from pipeline.component import Exporter
from pipeline.data import Batch, Delivery
from pipeline.dead_letters import Refused
from pipeline.deadlines import Calls
from pipeline.errors import Oversized, Permanent, Retryable, text_of
from pipeline.halving import halve, pick
from pipeline.journal import Journal
from pipeline.journal_tail import UnreadableDelivery

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
        if isinstance(delivery, UnreadableDelivery):
            unreadable = delivery.unreadable
            reason = f"it cannot be read: {unreadable.reason}"
            return await self._bury(delivery, [Refused(delivery.upto, unreadable, reason)])
        return await self._deliver(delivery)

    async def _deliver(self, delivery: Delivery, buried: Sequence[Refused] = ()) -> bool:
        """Deliver a part of it. The items in `buried` are dead letters already, and are not in it."""
        while True:
            try:
                taken = await self.attempts.until_done(partial(self._export, delivery))
                break
            except Permanent as error:
                named = self._named(delivery, error)
                if named is None:
                    return await self._divide(delivery, error, buried)
                refused, rest = named
            if not rest.batches:
                return await self._bury(delivery, refused, buried)
            # Bury first, then deliver the rest: after a crash in between, the exporter names the same items again.
            self._log_refused(delivery, refused)
            buried, at = _in_order(buried, refused), {each.position for each in refused}
            parts = [each for each in buried if each.position in at]
            if not await self.attempts.until_done(partial(self._keep, None, parts)):
                return False
            delivery = rest
        if taken:
            gone = _items(buried)
            self._refusals_left += delivery.items // RESCUED_FOR_A_TRY
            self.sent += delivery.items
            self.dead_lettered += gone
            self.attempts.succeeded()
            self._moved(self._passed(delivery.upto, delivery.items, gone), delivery.items + gone)
        return taken

    def _named(self, delivery: Delivery, error: Permanent) -> tuple[list[Refused], Delivery] | None:
        """The items of the delivery that the error names, and the delivery without them; None if it names no item of the delivery."""
        indices: dict[int, set[int]] = {}
        named: Any = getattr(error, "items", ())  # a plugin's class may not have it, or anything in it
        for item in named if isinstance(named, tuple) else ():
            if isinstance(item, tuple) and len(item) == 2 and all(isinstance(each, int) for each in item):
                indices.setdefault(item[0], set()).add(item[1])
        refused, batches, positions = list[Refused](), list[Batch](), list[int]()
        for number, whole in enumerate(delivery.batches):
            batch, position = whole, delivery.position(number)
            picked = pick(batch, found) if (found := indices.get(position)) else None
            if picked is not None and len(picked[0]):
                chosen, batch = picked
                refused.append(Refused(position, chosen, text_of(error)))
            if len(batch):
                batches.append(batch)
                positions.append(position)
        return (refused, replace(delivery, batches=batches, positions=tuple(positions))) if refused else None

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

    async def _divide(self, delivery: Delivery, error: Permanent, buried: Sequence[Refused]) -> bool:
        """The exporter will never take this as it is."""
        batches, half = delivery.batches, len(delivery.batches) // 2
        if not half and not self.exporter.keeps_position:
            refused: list[Refused] = []
            return await self._find(delivery, batches[0], error, refused) and await self._bury(
                delivery, refused, buried
            )
        if self._may_divide(error) and half:
            middle, positions = delivery.position(half - 1), delivery.positions
            before = [each for each in buried if each.position <= middle]
            behind = [each for each in buried if each.position > middle]
            second = replace(delivery, after=middle, batches=batches[half:], positions=positions[half:])
            items = delivery.items_upto - second.items - sum(len(each.batch) for each in behind)
            first = replace(delivery, upto=middle, batches=batches[:half], positions=positions[:half], items_upto=items)
            return await self._deliver(first, before) and await self._deliver(second, behind)
        # A position that is stored with the data counts whole batches: of a part, nobody could tell whether it was stored.
        refused = [Refused(delivery.position(n), each, text_of(error)) for n, each in enumerate(batches)]
        return await self._bury(delivery, refused, buried)

    def _may_divide(self, error: Permanent) -> bool:
        if isinstance(error, Oversized):
            return error.divide
        self._refusals_left -= 1
        return error.divide and self._refusals_left > 0

    async def _find(self, delivery: Delivery, batch: Batch, error: Permanent, refused: list[Refused]) -> bool:
        """Hand over what the exporter takes of a batch that it refused, and add the rest to `refused`. False if interrupted."""
        parts: Sequence[Batch]
        if (named := self._named(replace(delivery, batches=(batch,)), error)) is not None:
            refused += named[0]
            parts = named[1].batches
        elif (halves := halve(batch) if self._may_divide(error) and len(batch) > 1 else None) is not None:
            parts = halves
        else:
            refused.append(Refused(delivery.position(0), batch, text_of(error)))
            return True
        for part in parts:
            try:
                if not await self.attempts.until_done(partial(self._export, replace(delivery, batches=(part,)))):
                    return False
                self._refusals_left += len(part) // RESCUED_FOR_A_TRY
            except Permanent as again:
                if not await self._find(delivery, part, again, refused):
                    return False
        return True

    def _log_refused(self, delivery: Delivery, refused: Sequence[Refused]) -> None:
        self._log.error(
            "%d of %d items refused permanently, kept as dead letters: positions %d to %d: %s",
            *(_items(refused), delivery.items, delivery.after + 1, delivery.upto, refused[0].reason),
        )

    async def _bury(self, delivery: Delivery, refused: Sequence[Refused], buried: Sequence[Refused] = ()) -> bool:
        """Keep the refused items as dead letters and move past the delivery. The items in `buried` were set aside before."""
        if refused:
            self._log_refused(delivery, refused)
        sent, items = delivery.items - _items(refused), _items(refused) + _items(buried)
        refused = _in_order(buried, refused)
        cursor = self._passed(delivery.upto, sent, items)
        # Of one that keeps its own position, the journal's cursor follows that; else the account would run ahead of it.
        kept = None if self.exporter.keeps_position else cursor
        if not await self.attempts.until_done(partial(self._keep, kept, refused)):
            return False
        moves = replace(delivery, batches=(), positions=())
        if not await self.attempts.until_done(partial(self._export, moves)):
            return False
        self.attempts.succeeded()
        self.dead_lettered += items
        self.sent += sent
        self._moved(cursor, sent + items)
        return True

    async def _keep(self, cursor: Cursor | None, refused: Sequence[Refused]) -> None:
        name, limit = self.exporter.name, self._journal.settings.max_dead_letter_bytes
        evicted = await self._journal.call(lambda file: file.bury(name, cursor, refused, limit))
        if evicted.letters:
            self.evicted += evicted.items
            self._log.error("deleted the oldest %d dead letters (%d items) to make room", *evicted)

    async def replay(self, batch: Batch, nothing: Callable[[], Delivery]) -> str | None:
        """Send a dead letter to the exporter again. `nothing()` returns an empty delivery that moves no cursor.

        Returns the reason if the exporter refuses it again, else None. Raises any other exception of the exporter; then try again later.
        """

        async def export() -> None:
            async with self._one_at_a_time:
                await self._call(replace(nothing(), batches=(batch,)))

        try:
            await self.attempts.once(export)
        except Permanent as error:
            return text_of(error)
        self.replayed += len(batch)
        return None


def _items(refused: Sequence[Refused]) -> int:
    return sum(len(each.batch) for each in refused)


def _in_order(buried: Sequence[Refused], refused: Sequence[Refused]) -> list[Refused]:
    """All of these by position; those of one position in the order in which they were refused, which numbers them as parts."""
    return sorted((*buried, *refused), key=lambda each: each.position)
