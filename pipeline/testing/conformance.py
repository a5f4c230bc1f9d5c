"""The suite for each kind of component: what the engine relies on, as tests that a plugin's author inherits.

A test class names the plugin and the type, and overrides what its component needs:

    class TestRedact(ProcessorConformance):
        plugin = metrics_service_redact
        type = "redact"

        def options(self, folder: Path) -> Mapping[str, Any]:
            return {"keys": ["password"]}
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from pipeline import (
    Batch,
    Caller,
    Component,
    Connector,
    Context,
    Decoder,
    Delivery,
    EventBatch,
    Exporter,
    Kind,
    MetricBatch,
    Permanent,
    Position,
    Processor,
    Refusal,
    Retryable,
    Signal,
    TokenBucket,
)
from pipeline.checked_entry import Entry
from pipeline.testing.cancelled import Cancelled, Step
from pipeline.testing.declared import Declared
from pipeline.testing.doubles import SinkChain
from pipeline.testing.living import Living
from pipeline.testing.stage import outcome, within
from pipeline.testing.steps import Stepped
from pipeline.testing.subject import check, fail

PIPELINE = "events"
_encode = msgspec.msgpack.Encoder().encode
NONSENSE = (b"", b"\0", b"\xff", b"null", b"1", b"[]", b"{}", b'{"service": 1}', b"[" * 100_000)


class Conformance(Declared, Living, Cancelled):
    """What holds for a component of any kind. The classes below add what holds for one."""


class ReceiverConformance(Conformance):
    """What holds for receivers. What is received, and how, is for the tests of each."""

    kind = Kind.RECEIVER


class ExtensionConformance(Conformance):
    """What holds for extensions. What they offer is for the tests of each."""

    kind = Kind.EXTENSION


class ProcessorConformance(Conformance):
    """What holds for processors."""

    kind = Kind.PROCESSOR

    def documents(self) -> Sequence[bytes]:
        """What a `Decoder` is handed, of which each can be accepted."""
        return ()

    def contexts(self) -> Sequence[Context]:
        """Who asks: nobody, somebody with a key that nobody knows, and somebody who is known and is over the limit."""
        known = Context(credential="key", scope=None)
        known.caller = Caller("test", "0123abcd", frozenset({"ingest"}), TokenBucket(1))
        known.cost = 2
        return [Context(), Context(credential="not-a-key"), known]

    async def exercise(self, component: Component[Any]) -> None:
        """Process every sample."""
        processor = cast("Processor[Any]", component)
        for batch in self.batches():
            await outcome(processor.process(batch, Context()), "process")

    async def test_it_refuses_with_nothing_but_a_refusal(self, tmp_path: Path) -> None:
        """A `Refusal` is an answer to the client; anything else is a fault of the service, and answered 500."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            processor = cast("Processor[Any]", component)
            for context in self.contexts():
                await self._refusing("admit", processor.admit(context))
            for batch in self._all_batches():
                await self._refusing(f"process of {batch!r}", processor.process(batch, Context()))
            if isinstance(processor, Decoder):
                for document in (*NONSENSE, *self.documents()):
                    await self._refusing(f"decode of {document[:20]!r}", processor.decode(document, Context()))

    def _all_batches(self) -> list[Batch]:
        """The samples, and each without anything in it: the processor before may have filtered all."""
        return [each for batch in self.batches() for each in (batch, _emptied(batch))]

    async def _refusing(self, what: str, call: Coroutine[Any, Any, Any]) -> None:
        try:
            await within(call, f"{what} does not end")
        except Refusal:
            pass
        except Exception as error:
            fail(f"{what} raised {error!r} (raise a Refusal if it is the client's fault, and nothing else)", error)

    async def test_it_gives_on_a_batch(self, tmp_path: Path) -> None:
        """A valid one of the same signal, the same or another; one that filters everything returns an empty one."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            processor = cast("Processor[Any]", component)
            for batch in self._all_batches():
                with suppress(Refusal):
                    given = await within(processor.process(batch, Context()), "process does not end")
                    check(
                        type(given) is type(batch),
                        f"process returns {given!r} (return the batch, or one with less in it)",
                    )
                    check_batch(given, "process returns")
            if isinstance(processor, Decoder):
                for document in self.documents():
                    decoded = await processor.decode(document, Context())
                    check(
                        isinstance(decoded, (EventBatch, MetricBatch)), f"decode returns {decoded!r} (return a batch)"
                    )
                    check_batch(decoded, "decode returns")

    async def test_it_changes_no_batch_in_place(self, tmp_path: Path) -> None:
        """Other components hold the same batch."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            processor = cast("Processor[Any]", component)
            for batch in self.batches():
                await unchanged("process", [batch], processor.process(batch, Context()))

    async def test_a_call_that_is_cancelled_at_any_await_can_be_made_again(self, tmp_path: Path) -> None:
        """A client that goes away, a stop: both cancel."""
        calls: list[tuple[str, Step]] = [("process", partial(_process, batch)) for batch in self.batches()]
        calls += [("decode", partial(_decode, document)) for document in self.documents()]
        calls += [("admit", partial(self._admit, number)) for number in range(len(self.contexts()))]
        for number, (what, step) in enumerate(calls):
            await self.cancel_everywhere(tmp_path / f"call-{number}", what, step, Stepped.run_in_task)

    def _admit(self, number: int, component: Component[Any]) -> Coroutine[Any, Any, None]:
        # A context is one request: the call that is made again has a new one.
        return cast("Processor[Any]", component).admit(self.contexts()[number])


def check_batch(batch: object, what: str) -> None:
    """Fail unless the service would accept the batch from a plugin."""
    signal = Signal.METRICS if isinstance(batch, MetricBatch) else Signal.EVENTS
    if (fault := Entry(signal).fault(batch)) is not None:
        fail(f"{what} an invalid batch: {fault}")


async def unchanged(what: str, batches: Sequence[Batch], call: Coroutine[Any, Any, Any]) -> None:
    """Await the call, and fail if it changes the batches, or tries to: they are immutable."""
    before = [_encode(batch) for batch in batches]
    raised: Exception | None = None
    try:
        await within(call, f"{what} does not end")
    except Exception as error:
        raised = error
    # An attribute of an immutable object, an entry of a read-only mapping, an item of a tuple.
    said = ("immutable type", "read-only", "does not support item", "'tuple' object has no attribute")
    tried = isinstance(raised, (AttributeError, TypeError)) and any(words in str(raised) for words in said)
    if tried or [_encode(batch) for batch in batches] != before:
        fail(f"{what} changes its input in place (return a copy: event.replace(...), batch.replace(...))", raised)


def _emptied(batch: Batch) -> Batch:
    if isinstance(batch, EventBatch):
        return batch.replace(events=())
    return batch.replace(request=b"", points=0)


def _process(batch: Batch, component: Component[Any]) -> Coroutine[Any, Any, Batch]:
    return cast("Processor[Any]", component).process(batch, Context())


def _decode(document: bytes, component: Component[Any]) -> Coroutine[Any, Any, Batch]:
    return cast("Decoder[Any]", component).decode(document, Context())


class ExporterConformance(Conformance):
    """What holds for exporters."""

    kind = Kind.EXPORTER

    async def deliveries(self, exporter: Exporter[Any]) -> list[Delivery]:
        """One without batches, and one with every sample, from where the exporter is."""
        after = (_upto(await exporter.position(PIPELINE)) or 0) if exporter.keeps_position else 0
        batches = tuple(self.batches())
        return [
            Delivery(PIPELINE, after, after + 1, ()),
            Delivery(PIPELINE, after + 1, after + 1 + len(batches), batches),
        ]

    async def exercise(self, component: Component[Any]) -> None:
        """Export every sample."""
        exporter = cast("Exporter[Any]", component)
        for delivery in await self.deliveries(exporter):
            await outcome(exporter.export(delivery), "export")

    async def test_a_delivery_is_taken_or_refused_as_retryable_or_permanent(self, tmp_path: Path) -> None:
        """Only the exporter knows which of both it is; one without batches only moves the cursor."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            exporter = cast("Exporter[Any]", component)
            for delivery in await self.deliveries(exporter):
                what = f"export of a delivery with {len(delivery.batches)} batches"
                try:
                    await within(exporter.export(delivery), f"{what} does not end")
                except (Retryable, Permanent):
                    pass
                except Exception as error:
                    fail(f"{what} raised {error!r} (raise Retryable if it may succeed later, else Permanent)", error)

    async def test_it_changes_no_delivery_in_place(self, tmp_path: Path) -> None:
        """Other exporters get the same batches."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            exporter = cast("Exporter[Any]", component)
            for delivery in await self.deliveries(exporter):
                await unchanged("export", delivery.batches, exporter.export(delivery))

    async def test_the_position_that_it_keeps_is_that_of_the_last_delivery(self, tmp_path: Path) -> None:
        """After a start the engine goes on from there."""
        if not cast("type[Exporter[Any]]", self.declaration().component).keeps_position:
            return
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            exporter = cast("Exporter[Any]", component)
            try:
                before = await within(exporter.position(PIPELINE), "position does not return")
            except NotImplementedError as error:
                fail("keeps_position is set, and position is not implemented (implement it, or leave both out)", error)
            check(before is None, f"position is {before!r} before any delivery (must be None)")
            for delivery in await self.deliveries(exporter):
                if await outcome(exporter.export(delivery), "export"):
                    return
                now = _upto(await exporter.position(PIPELINE))
                check(
                    now == delivery.upto,
                    f"position is {now!r} after a delivery up to {delivery.upto} (store it together with the data)",
                )

    async def test_a_delivery_that_is_cancelled_at_any_await_can_be_made_again(self, tmp_path: Path) -> None:
        """A stop cancels, and the same delivery comes again."""
        delivery = Delivery(PIPELINE, 0, len(self.batches()), tuple(self.batches()))

        def export(component: Component[Any]) -> Coroutine[Any, Any, None]:
            return cast("Exporter[Any]", component).export(delivery)

        await self.cancel_everywhere(tmp_path, "export", export, Stepped.run_in_scope)


def _upto(position: Position | int | None) -> int | None:
    return position.upto if isinstance(position, Position) else position


class ConnectorConformance(ExporterConformance):
    """What holds for connectors: they are exporters, and give on to a chain."""

    kind = Kind.CONNECTOR

    async def test_what_it_gives_on_is_valid(self, tmp_path: Path) -> None:
        """The service refuses an invalid batch, and makes a dead letter of the delivery that it came from."""
        async with self.surroundings(tmp_path) as host, self.alive(tmp_path, host) as component:
            await self.exercise(component)
            chain = cast("Connector[Any]", component).chain
            for batch in chain.batches if isinstance(chain, SinkChain) else ():
                check_batch(batch, "it sends")
