"""What a receiver or a connector calls: the processors of its pipeline, then the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.checked_entry import Entry, InvalidBatch, Produced, caller_fault
from pipeline.component import Component, Decoder, Processor
from pipeline.containment import contained
from pipeline.counts import Changes, Counts
from pipeline.data import Batch, Context, Outcome, Signal
from pipeline.deadlines import Asked, Calls
from pipeline.errors import Overloaded, Refusal
from pipeline.memory import UNTIL_LESS, RequestHold, estimate

if TYPE_CHECKING:
    from pipeline.journal import Journal


Admit = Callable[[Context], Awaitable[None]]
Process = Callable[[Batch, Context], Awaitable[Batch]]


@dataclass
class _Path:
    """The processors that a decoded batch passes, in order."""

    steps: list[tuple[Processor[Any], Process]]
    maker: Component[Any] | None = None
    """The last component of another package that touched the batch or its context before; None if there is none."""
    check_after: int | None = None
    """The step after which the batch is checked in full; -1: before the first step, None: never."""

    def __post_init__(self) -> None:
        self.check_after = None if self.maker is None else -1
        for number, (processor, _) in enumerate(self.steps):
            if processor.third_party:
                self.check_after = number


@dataclass
class _Steps:
    """What one set of processors does. Only the steps that a processor really has are here: most requests pass few."""

    admit: list[tuple[Processor[Any], Admit]]
    process: _Path
    decode: Callable[[bytes, Context], Awaitable[Batch]] | None
    decoder: Processor[Any] | None
    after_decode: _Path
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

    def __init__(
        self,
        processors: Sequence[Processor[Any]],
        journal: Journal,
        source: Component[Any],
        signal: Signal,
        calls: Calls | None = None,
    ) -> None:
        self.counts = Counts()
        self._calls = calls or Calls()
        journal.sources.append(self.counts)
        self._journal = journal
        self._source = source
        self._entry = Entry(signal)
        self._use(processors)

    def _use(self, processors: Sequence[Processor[Any]]) -> None:
        self.authenticates = any(each.authenticates for each in processors)
        """Whether `admit` finds out who is asking."""
        admitting = [each for each in processors if type(each).admit is not Processor.admit]
        # A component that has the context can change the sender of the batch.
        touching = [each for each in (self._source, *admitting) if each.third_party]
        maker = touching[-1] if touching else None
        decoder = next((each for each in processors if isinstance(each, Decoder)), None)
        behind = processors[processors.index(decoder) + 1 :] if decoder else ()
        self._steps = _Steps(
            [(each, contained(self._asked(each, "admit"), each.admit)) for each in admitting],
            _Path(self._having(processors), maker),
            contained(self._asked(decoder, "decode"), decoder.decode) if decoder else None,
            decoder,
            _Path(self._having(behind), decoder if decoder and decoder.third_party else maker),
        )

    def change(self, processors: Sequence[Processor[Any]]) -> Callable[[], Awaitable[Any]]:
        """Have every call from now on go through these processors. Gives what returns once no call is in the former ones."""
        former = self._steps
        self._use(processors)
        former.left = asyncio.Event()
        if not former.in_hand:
            former.left.set()
        return former.left.wait

    def _having(self, processors: Sequence[Processor[Any]]) -> list[tuple[Processor[Any], Process]]:
        having = [each for each in processors if type(each).process is not Processor.process]
        return [(each, contained(self._asked(each, "process"), each.process)) for each in having]

    def _asked(self, processor: Processor[Any], doing: str) -> Asked:
        return Asked(self._calls, processor, doing, self._calls.deadlines.call)

    def check_room(self) -> None:
        """Raise `Overloaded` if nothing could be stored now: for receivers, before they read what they could not keep."""
        if (refusal := self._journal.refusal()) is not None:
            error = Overloaded(refusal)
            self.counts.refuse(error, 0)
            raise error

    def hold(self) -> RequestHold:
        """A share of the memory budget for one request. The caller gives it back, unless the journal has taken it over and set
        `context.hold` to None."""
        return RequestHold(self._journal.memory)

    async def admit(self, context: Context) -> None:
        """Let the request in, before its body is read. Raises a `Refusal`."""
        steps = self._steps
        steps.in_hand += 1
        try:
            for processor, admit in steps.admit:
                await admit(context)
                if (fault := caller_fault(context)) is not None:
                    raise InvalidBatch(processor, fault)
        except Exception as error:
            self.counts.refuse(error, 0)
            raise
        finally:
            steps.leave()

    async def receive(self, document: bytes, context: Context) -> Outcome:
        """Decode, process and make durable what was sent. Raises a `Refusal`; then nothing of it is stored."""
        steps = self._steps
        assert steps.decode is not None, "checked with the configuration"
        assert steps.decoder is not None
        steps.in_hand += 1
        try:
            try:
                if type(document) is not bytes:
                    raise InvalidBatch(self._source, f"got {type(document).__name__} (must be bytes)")
                context.hold = context.hold or self.hold()
                await context.hold.decoded.take_in_turn(estimate(document))
                batch = await steps.decode(document, context)
                del document
                context.hold.bodies.give_back()
                if type(batch) is not self._entry.right:
                    raise self._entry.wrong_type(steps.decoder, batch)
            except Exception as error:
                self.counts.refuse(error, known_items(context))
                maker = steps.after_decode.maker
                if maker and not isinstance(error, Refusal | InvalidBatch):
                    raise (self._entry.blamed_for(maker, context) or error) from error.__cause__
                raise
            return await self._go_on(batch, steps.after_decode, context)
        finally:
            if context.hold is not None:
                context.hold.give_back()
            steps.leave()

    async def process(self, batch: Batch, context: Context) -> Outcome:
        """Process and make durable a batch that was decoded already.

        Raises a `Refusal`, or `InvalidBatch` if the batch is not a valid one of this pipeline; then nothing of it is stored.
        """
        steps = self._steps
        steps.in_hand += 1
        try:
            try:
                if type(batch) is not self._entry.right:
                    raise self._entry.wrong_type(self._source, batch)
                context.received = len(batch) + context.rejected
            except (InvalidBatch, TypeError, ValueError) as raised:
                error = self._entry.blamed([Produced(self._source, batch)], context) or raised
                self.counts.refuse(error, 0)
                raise error from None
            if self.counts.from_outside:
                self._check_budget(context)
            return await self._go_on(batch, steps.process, context)
        finally:
            steps.leave()

    def _check_budget(self, context: Context) -> None:
        """Raise `Overloaded` while requests in progress use up their part of the memory budget. A connector's batches are small."""
        requests = self._journal.memory.decoded
        if requests.used >= requests.limit:
            error = Overloaded("Too many bytes are being received now", UNTIL_LESS)
            self.counts.refuse(error, context.received)
            raise error

    async def _go_on(self, batch: Batch, path: _Path, context: Context) -> Outcome:
        changes: Changes = []
        produced: list[Produced] = [] if path.maker is None else [Produced(path.maker, batch)]
        try:
            if path.check_after == -1:
                batch = self._entry.checked(produced, context)
            for number, (processor, process) in enumerate(path.steps):
                before = len(batch) + context.rejected
                batch = await process(batch, context)
                if type(batch) is not self._entry.right:
                    raise self._entry.wrong_type(processor, batch)
                if processor.third_party:
                    produced.append(Produced(processor, batch))
                if number == path.check_after:
                    batch = self._entry.checked(produced, context)
                if gone := before - len(batch) - context.rejected:
                    changes.append((processor.id, gone))
        except Exception as error:
            self.counts.refuse(error, known_items(context))
            # A component may also fail because of what another one produced before it.
            if (
                produced
                and not isinstance(error, Refusal | InvalidBatch)
                and (wrong := self._entry.blamed(produced, context))
            ):
                raise wrong from error
            raise
        items = len(batch)
        if items:
            return await self._journal.append(batch, context, partial(self.counts.settle, items, context, changes))
        outcome = context.outcome(context.received - context.rejected)
        self.counts.settle(items, context, changes, outcome)
        return outcome


def known_items(context: Context) -> int:
    """The number of items of a refused request; 0 if its context holds something that is not a number of items."""
    return context.received if type(context.received) is int and context.received >= 0 else 0
