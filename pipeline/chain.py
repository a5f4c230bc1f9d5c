"""What a receiver or a connector calls: the processors of its pipeline, then the journal."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.component import Decoder, Processor
from pipeline.containment import contained
from pipeline.data import Batch, Context, Outcome
from pipeline.errors import Refusal

if TYPE_CHECKING:
    from pipeline.journal import Journal


Step = Callable[[Batch, Context], Awaitable[Batch]]

INTERNAL = "internal"
"""What it is called where refusals are counted that a component failed."""


@dataclass
class Counts:
    """What became of what came in, since the start. Items, but for `refused_requests`; by reason, or by processor."""

    accepted: int = 0
    """Answered as durable, or as filtered."""
    journaled: int = 0
    repeated: int = 0
    refused_items: dict[str, int] = field(default_factory=dict)
    refused_requests: dict[str, int] = field(default_factory=dict)
    filtered: dict[str, int] = field(default_factory=dict)

    def refuse(self, error: Exception, items: int) -> None:
        """Count a request of which nothing was accepted, with how many items it is known to have held."""
        reason = reason_of(type(error)) if isinstance(error, Refusal) else INTERNAL
        self.refused_requests[reason] = self.refused_requests.get(reason, 0) + 1
        if items:
            self.refused_items[reason] = self.refused_items.get(reason, 0) + items

    def leave_out(self, items: int) -> None:
        """Count items that were bad, of a request that was accepted otherwise."""
        self.refused_items["invalid"] = self.refused_items.get("invalid", 0) + items

    def filter(self, processor: str, items: int) -> None:
        """Count what a processor left out."""
        self.filtered[processor] = self.filtered.get(processor, 0) + items


def reason_of(refusal: type[Refusal]) -> str:
    """What a refusal is called where refusals are counted: `RateLimited` is `rate_limited`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", refusal.__name__).lower()


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

    async def _through(self, processor: Processor[Any], batch: Batch, context: Context) -> Batch:
        """What the processor gives on."""
        before = len(batch)
        batch = await processor.process(batch, context)
        if len(batch) < before:
            self.counts.filter(processor.id, before - len(batch))
        return batch

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
            batch = await steps.decode(document, context)
            return await self._go_on(batch, steps.after_decode, context)
        except Exception as error:
            self.counts.refuse(error, context.received)
            raise
        finally:
            steps.leave()

    async def process(self, batch: Batch, context: Context) -> Outcome:
        """Process and make durable a batch that was decoded already. Raises a `Refusal`; then nothing of it is stored."""
        steps = self._steps
        steps.in_hand += 1
        context.received = len(batch) + context.rejected
        try:
            return await self._go_on(batch, steps.process, context)
        except Exception as error:
            self.counts.refuse(error, context.received)
            raise
        finally:
            steps.leave()

    async def _go_on(self, batch: Batch, steps: Sequence[Step], context: Context) -> Outcome:
        for step in steps:
            batch = await step(batch, context)
        items = len(batch)
        accepted = context.received - context.rejected
        outcome = await self._journal.append(batch, context) if items else context.outcome(accepted)
        self._count(outcome, items, accepted, context)
        return outcome

    def _count(self, outcome: Outcome, items: int, accepted: int, context: Context) -> None:
        counts = self.counts
        if outcome.repeated:
            counts.repeated += items
            return
        counts.accepted += accepted
        counts.journaled += items
        if context.rejected:
            counts.leave_out(context.rejected)
