"""What a receiver or a connector calls: the processors of its pipeline, then the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.component import Decoder, Processor
from pipeline.containment import contained
from pipeline.counts import Changes, Counts
from pipeline.data import Batch, Context, Outcome
from pipeline.errors import Overloaded

if TYPE_CHECKING:
    from pipeline.journal import Journal


Step = Callable[[Changes, Batch, Context], Awaitable[Batch]]


@dataclass
class _Steps:
    """What one set of processors does. Only the steps that a processor really has are here: most requests pass few."""

    admit: list[Callable[[Context], Awaitable[None]]]
    process: list[Step]
    decode: Callable[[bytes, Context], Awaitable[Batch]] | None
    after_decode: list[Step]
    in_hand: int = 0
    """How many calls are on their way through them."""
    left: asyncio.Event | None = None
    """Set once the last of them has left; there only after others have taken their place."""

    def leave(self) -> None:
        """A call has ended."""
        self.in_hand -= 1
        if self.left is not None and not self.in_hand:
            self.left.set()


class Chain:
    """The synchronous half of a pipeline: while it runs, the client waits."""

    def __init__(self, processors: Sequence[Processor[Any]], journal: Journal) -> None:
        self.counts = Counts()
        journal.sources.append(self.counts)
        self._journal = journal
        self._use(processors)

    def _use(self, processors: Sequence[Processor[Any]]) -> None:
        self.authenticates = any(each.authenticates for each in processors)
        """Whether `admit` finds out who is asking."""
        self._steps = _Steps(
            [contained(each, each.admit) for each in processors if type(each).admit is not Processor.admit],
            self._having(processors),
            None,
            [],
        )
        for place, each in enumerate(processors):
            if isinstance(each, Decoder):
                self._steps.decode = contained(each, each.decode)
                self._steps.after_decode = self._having(processors[place + 1 :])

    def change(self, processors: Sequence[Processor[Any]]) -> Callable[[], Awaitable[Any]]:
        """Have every call from now on go through these processors. Gives what returns once no call is in the former ones."""
        former = self._steps
        self._use(processors)
        former.left = asyncio.Event()
        if not former.in_hand:
            former.left.set()
        return former.left.wait

    def _having(self, processors: Sequence[Processor[Any]]) -> list[Step]:
        having = [each for each in processors if type(each).process is not Processor.process]
        return [contained(each, partial(self._through, each)) for each in having]

    async def _through(self, processor: Processor[Any], changes: Changes, batch: Batch, context: Context) -> Batch:
        """What the processor gives on."""
        before = len(batch) + context.rejected
        batch = await processor.process(batch, context)
        if gone := before - len(batch) - context.rejected:
            changes.append((processor.id, gone))
        return batch

    def check_room(self) -> None:
        """Raise `Overloaded` if nothing could be stored now: for receivers, before they read what they could not keep."""
        if (refusal := self._journal.refusal()) is not None:
            error = Overloaded(refusal)
            self.counts.refuse(error, 0)
            raise error

    async def admit(self, context: Context) -> None:
        """Let the request in, before its body is read. Raises a `Refusal`."""
        steps = self._steps
        steps.in_hand += 1
        try:
            for step in steps.admit:
                await step(context)
        except Exception as error:
            self.counts.refuse(error, 0)
            raise
        finally:
            steps.leave()

    async def receive(self, document: bytes, context: Context) -> Outcome:
        """Decode, process and make durable what was sent. Raises a `Refusal`; then nothing of it is stored."""
        steps = self._steps
        assert steps.decode is not None, "checked with the configuration"
        steps.in_hand += 1
        try:
            try:
                batch = await steps.decode(document, context)
            except Exception as error:
                self.counts.refuse(error, context.received)
                raise
            return await self._go_on(batch, steps.after_decode, context)
        finally:
            steps.leave()

    async def process(self, batch: Batch, context: Context) -> Outcome:
        """Process and make durable a batch that was decoded already. Raises a `Refusal`; then nothing of it is stored."""
        steps = self._steps
        steps.in_hand += 1
        context.received = len(batch) + context.rejected
        try:
            return await self._go_on(batch, steps.process, context)
        finally:
            steps.leave()

    async def _go_on(self, batch: Batch, steps: Sequence[Step], context: Context) -> Outcome:
        changes: Changes = []
        try:
            for step in steps:
                batch = await step(changes, batch, context)
        except Exception as error:
            self.counts.refuse(error, context.received)
            raise
        items = len(batch)
        if items:
            return await self._journal.append(batch, context, partial(self.counts.settle, items, context, changes))
        outcome = context.outcome(context.received - context.rejected)
        self.counts.settle(items, context, changes, outcome)
        return outcome
