"""What a receiver or a connector calls: the processors of its pipeline, then the journal."""

from __future__ import annotations

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


class Chain:
    """The synchronous half of a pipeline: while it runs, the client waits."""

    def __init__(self, processors: Sequence[Processor[Any]], journal: Journal) -> None:
        self.authenticates = any(each.authenticates for each in processors)
        """Whether `admit` finds out who is asking."""
        self.counts = Counts()
        self._journal = journal
        # Only the steps that a processor really has are called: most requests pass few.
        self._admit = [contained(each, each.admit) for each in processors if type(each).admit is not Processor.admit]
        self._process = self._steps(processors)
        self._decode, self._after_decode = None, self._process
        for place, each in enumerate(processors):
            if isinstance(each, Decoder):
                self._decode = contained(each, each.decode)
                self._after_decode = self._steps(processors[place + 1 :])

    def _steps(self, processors: Sequence[Processor[Any]]) -> list[Step]:
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
        try:
            for step in self._admit:
                await step(context)
        except Exception as error:
            self.counts.refuse(error, 0)
            raise

    async def receive(self, document: bytes, context: Context) -> Outcome:
        """Decode, process and make durable what was sent. Raises a `Refusal`; then nothing of it is stored."""
        assert self._decode is not None, "checked with the configuration"
        try:
            batch = await self._decode(document, context)
            return await self._go_on(batch, self._after_decode, context)
        except Exception as error:
            self.counts.refuse(error, context.received)
            raise

    async def process(self, batch: Batch, context: Context) -> Outcome:
        """Process and make durable a batch that was decoded already. Raises a `Refusal`; then nothing of it is stored."""
        context.received = len(batch) + context.rejected
        try:
            return await self._go_on(batch, self._process, context)
        except Exception as error:
            self.counts.refuse(error, context.received)
            raise

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
