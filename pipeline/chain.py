"""What a receiver or a connector calls: the processors of its pipeline, then the journal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.component import Decoder, Processor
from pipeline.data import Batch, Context, Outcome

if TYPE_CHECKING:
    from pipeline.journal import Journal


class Chain:
    """The synchronous half of a pipeline: while it runs, the client waits."""

    def __init__(self, processors: Sequence[Processor[Any]], journal: Journal) -> None:
        self.authenticates = any(each.authenticates for each in processors)
        """Whether `admit` finds out who is asking."""
        self._journal = journal
        # Only the steps that a processor really has are called: most requests pass few.
        self._admit = [each.admit for each in processors if type(each).admit is not Processor.admit]
        self._process = [each.process for each in processors if type(each).process is not Processor.process]
        self._decode, self._after_decode = None, self._process
        for place, each in enumerate(processors):
            if isinstance(each, Decoder):
                self._decode = each.decode
                behind = processors[place + 1 :]
                self._after_decode = [each.process for each in behind if type(each).process is not Processor.process]

    async def admit(self, context: Context) -> None:
        """Let the request in, before its body is read. Raises a `Refusal`."""
        for step in self._admit:
            await step(context)

    async def receive(self, document: bytes, context: Context) -> Outcome:
        """Decode, process and make durable what was sent. Raises a `Refusal`; then nothing of it is stored."""
        assert self._decode is not None, "checked with the configuration"
        batch = await self._decode(document, context)
        for step in self._after_decode:
            batch = await step(batch, context)
        return await self._append(batch, context)

    async def process(self, batch: Batch, context: Context) -> Outcome:
        """Process and make durable a batch that was decoded already. Raises a `Refusal`; then nothing of it is stored."""
        context.received = len(batch) + context.rejected
        for step in self._process:
            batch = await step(batch, context)
        return await self._append(batch, context)

    async def _append(self, batch: Batch, context: Context) -> Outcome:
        if not len(batch):
            return context.outcome(context.received - context.rejected)
        return await self._journal.append(batch, context)
