"""Whatever a component of another package sends on, a journal holds only valid batches, and the error names that component."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline import (
    Batch,
    Caller,
    ComponentConfig,
    Connector,
    Context,
    Declaration,
    Decoder,
    Delivery,
    Event,
    EventBatch,
    MetricBatch,
    Processor,
    Receiver,
    Signal,
    TokenBucket,
    hookimpl,
)
from pipeline.checked_entry import InvalidBatch
from pipeline.testing import doubles, metric_batch
from pipeline.testing.doubles import NOON, RecordingExporter
from tests.books import lines
from tests.running import Running, running, until
from tests.test_cli_dead_letters import letters

pytestmark = pytest.mark.anyio

GOOD = {"type": "custom", "value": 1, "dimensions": {"tool": "x"}, "metadata": {"a": 1}}
BAD = {**GOOD, "value": 13}
"""The event that the components below spoil."""

Change = Callable[[EventBatch], Any]


class SubEvent(Event, frozen=True, array_like=True, gc=False):
    """A class of a plugin's own."""


class SubBatch(EventBatch, frozen=True, array_like=True, tag="events"):
    """A class of a plugin's own."""


class Text(str):
    """A class of a plugin's own."""

    __slots__ = ()


class Number(float):
    """A class of a plugin's own."""

    __slots__ = ()


VALUES: dict[str, Any] = {
    "text": "12.5",
    "none": None,
    "true": True,
    "int": 7,
    "large int": 2**70,
    "huge int": 10**400,
    "unsigned int": 2**63,
    "float": 2.5,
    "nan": math.nan,
    "infinity": -math.inf,
    "decimal": Decimal("12.5"),
    "bytes": b"12.5",
    "date": date(2026, 11, 30),
    "naive datetime": datetime(2026, 11, 30),  # noqa: DTZ001 - the fault
    "datetime": datetime(2026, 11, 30, tzinfo=timezone(timedelta(hours=2))),
    "list": [1],
    "tuple": (1,),
    "set": {1},
    "dict": {"a": 1},
    "object": object(),
    "class": int,
    "event": Event("custom", 1.0, NOON),
    "surrogate": "\ud83c",
    "subclass of str": Text("x"),
    "subclass of float": Number(1),
}
TEXTS = {"text"}
NUMBERS = {"int", "float", "unsigned int"}
SCALARS = {"text", "none", "true", "int", "float"}
RIGHT: dict[str, set[str]] = {
    "event.type": TEXTS,
    "event.value": NUMBERS,
    "event.timestamp": {"datetime"},
    "event.duration_ms": {*NUMBERS, "none"},
    "dimension": SCALARS,
    "name of a dimension": TEXTS,
    "metadata value": set(VALUES)
    - {"large int", "huge int", "object", "class", "surrogate", "subclass of str", "subclass of float"},
    "batch.service": TEXTS,
    "batch.received_at": {"datetime"},
    "batch.request_id": TEXTS,
    "batch.version": {*TEXTS, "none"},
    "batch.instance_id": {*TEXTS, "none"},
    "batch.key_service": {*TEXTS, "none"},
    "item": {"event"},
}
"""By field, the values that are right there. Metadata becomes JSON, which has a form for most of them."""


def spoiled(field: str, value: Any) -> Change:
    """A change of the events with the value 13, or of a batch that holds one."""

    def of_event(event: Event) -> Any:
        if event.value != 13:
            return event
        match field:
            case "dimension":
                return event.replace(dimensions={"tool": value})
            case "name of a dimension":
                return event.replace(dimensions={value: 1})
            case "metadata value":
                return event.replace(metadata={"a": [value]})
            case "item":
                return value
        return event.replace(**{field.removeprefix("event."): value})

    def of_batch(batch: EventBatch) -> Any:
        if not any(event.value == 13 for event in batch.events):
            return batch
        if field.startswith("batch."):
            return batch.replace(**{field.removeprefix("batch."): value})
        return batch.replace(events=[of_event(event) for event in batch.events])

    return of_batch


def whole(make: Change) -> Change:
    return lambda batch: make(batch) if any(event.value == 13 for event in batch.events) else batch


WHOLE: dict[str, Change] = {
    "none": whole(lambda batch: None),
    "a list": whole(lambda batch: [batch]),
    "a list of events": whole(lambda batch: list(batch.events)),
    "a tuple": whole(lambda batch: (batch,)),
    "text": whole(lambda batch: "batch"),
    "a number": whole(lambda batch: 1),
    "true": whole(lambda batch: True),
    "bytes": whole(lambda batch: b"batch"),
    "an event": whole(lambda batch: batch.events[0]),
    "a class": whole(lambda batch: EventBatch),
    "a generator": whole(lambda batch: iter([batch])),
    "a coroutine function": whole(lambda batch: Emitting.process),
    "a delivery": whole(lambda batch: Delivery("events", 0, 1, [batch])),
    "a batch of the other signal": whole(lambda batch: metric_batch()),
    "a subclass of the batch": whole(lambda batch: SubBatch("test", batch.events, NOON)),
    "a subclass of the event": spoiled("item", SubEvent("custom", 1.0, NOON)),
    "metadata that is not JSON": spoiled("event.metadata", "{"),
    "metadata that is not an object": spoiled("event.metadata", "[1]"),
    "metadata with a large number": spoiled("event.metadata", '{"a": 1e400}'),
    "metadata with a large integer": spoiled("event.metadata", '{"a": 1180591620717411303424}'),
    "metadata that is nested too deep": spoiled("event.metadata", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "more than fits": whole(lambda batch: batch.replace(events=[batch.events[0].replace(type="x" * 2**20)] * 65)),
}
INVALID = {
    **WHOLE,
    **{
        f"{field}: {name}": spoiled(field, value)
        for field, right in RIGHT.items()
        for name, value in VALUES.items()
        if name not in right
    },
}
VALID = {f"{field}: {name}": spoiled(field, VALUES[name]) for field, right in RIGHT.items() for name in right}


class Config(ComponentConfig):
    """Nothing to choose."""


class Emitting(Processor[Config]):
    """Returns what a test wants."""

    change: Change = staticmethod(lambda batch: batch)

    async def process(self, batch: Batch, context: Context) -> Batch:
        assert isinstance(batch, EventBatch)
        return type(self).change(batch)  # type: ignore[no-any-return]


class Second(Emitting):
    """Another one behind it."""


class Feeding(Receiver[Config]):
    """Sends what a test wants."""


class Passing(Connector[Config]):
    """Sends on what a test wants in place of a batch."""

    at_once = True
    change: Change = staticmethod(lambda batch: batch)

    async def export(self, delivery: Delivery) -> None:
        for batch in delivery.batches:
            assert isinstance(batch, EventBatch)
            await self.chain.process(type(self).change(batch), Context(scope=None))


class ThirdParty:
    """The plugin that declares them."""

    @hookimpl
    def declare_components(self) -> Sequence[Declaration]:
        events = frozenset({Signal.EVENTS})
        return [
            Declaration("emitting", Emitting, Config, takes=events),
            Declaration("second", Second, Config, takes=events),
            Declaration("feeding", Feeding, Config, gives=events),
            Declaration("passing", Passing, Config, takes=events, gives=events),
            Declaration("decoding", Decoding, Config, takes=events),
            Declaration("admitting", Admitting, Config, takes=events),
        ]


class Decoding(Decoder[Config]):
    """Decodes into what a test wants, and writes what it wants into the context."""

    change: Change = staticmethod(lambda batch: batch)
    touch: Callable[[Context], Any] = staticmethod(lambda context: None)

    async def decode(self, document: bytes, context: Context) -> EventBatch:
        value = 13.0 if b"13" in document else 1.0
        context.received = 1
        type(self).touch(context)
        return type(self).change(EventBatch("test", [Event("custom", value, NOON)], NOON))  # type: ignore[no-any-return]


class Admitting(Processor[Config]):
    """Says who is asking, as a test wants."""

    service: Any = "test"
    touch: Callable[[Context], Any] = staticmethod(lambda context: None)

    async def admit(self, context: Context) -> None:
        assert context.caller is not None
        caller = context.caller
        context.caller = Caller(type(self).service, caller.key_id, caller.scopes, caller.bucket)
        type(self).touch(context)


@pytest.fixture(autouse=True)
def harmless() -> Iterator[None]:
    yield
    for each in (Emitting, Second, Passing, Decoding):
        each.change = staticmethod(lambda batch: batch)
    Decoding.touch = Admitting.touch = staticmethod(lambda context: None)
    Admitting.service = "test"


def started(folder: Path, *processors: str, **sections: Any) -> Any:
    own = folder / "own.yaml"
    own.write_text(
        f"""
extends: development
receivers: {{feeding: }}
processors: {{emitting: , second: , decoding: , admitting: , filter/own: {{drop: [{{types: [other]}}]}}}}
connectors: {{passing: }}
exporters: {{recording: }}
service:
  pipelines:
    events:
      receivers: [http, feeding]
      processors: [auth, {", ".join(processors)}, batch]
      exporters: [sqlite, series, passing]
    events/second: {{receivers: [passing], processors: [batch], exporters: [recording]}}
"""
    )
    return running(folder, config=str(own), plugins=[ThirdParty(), doubles])


def component(service: Running, id: str) -> Any:
    (found,) = (each for each in service.service.graph.components() if each.id == id)
    return found


def logged(caplog: pytest.LogCaptureFixture) -> str:
    text = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)
    caplog.clear()
    return text


async def test_an_invalid_batch_of_a_processor_is_500_and_the_log_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong, good = [], 0
    async with started(tmp_path, "validate", "emitting") as service:
        for name, change in INVALID.items():
            Emitting.change = staticmethod(change)
            caplog.clear()
            answer = await service.push(GOOD, BAD)
            said = logged(caplog)
            if answer.status_code != 500 or "processor emitting" not in said or "emitting" in answer.text:
                wrong.append((name, answer.status_code, said))
            good += (await service.push(GOOD)).json()["accepted"]  # what others send is unaffected
        for name, change in VALID.items():
            Emitting.change = staticmethod(change)
            answer = await service.push(GOOD, BAD)
            good += 2
            if answer.status_code != 200:
                wrong.append((name, answer.status_code, logged(caplog)))
        await service.flush()
        assert wrong == []
        assert service.rows() == [(good,)]


async def test_an_invalid_batch_of_a_receiver_fails_its_call(tmp_path: Path) -> None:
    wrong, good = [], 0
    batch = EventBatch("test", [Event("custom", 1.0, NOON), Event("custom", 13.0, NOON)], NOON)
    async with started(tmp_path, "validate", "emitting") as service:
        chain = component(service, "feeding").chain
        for table, right in ((INVALID, False), (VALID, True)):
            for name, change in table.items():
                if not constructs(change):
                    assert not right, name
                    continue
                made = change(batch)
                try:
                    good += (await chain.process(made, Context(scope=None))).accepted
                except InvalidBatch as error:
                    if right or not str(error).startswith("receiver feeding: invalid batch: "):
                        wrong.append((name, str(error)))
                else:
                    wrong += [] if right else [(name, "accepted")]
        assert wrong == []
        await service.flush()
        assert service.rows() == [(good,)]


def constructs(change: Change) -> bool:
    """Whether it gets as far as a batch: some values fail the constructor of an event."""
    try:
        change(EventBatch("test", [Event("custom", 13.0, NOON)], NOON))
    except (TypeError, ValueError):
        return False
    return True


async def test_an_invalid_batch_of_a_connector_is_a_dead_letter_and_the_rest_is_delivered(tmp_path: Path) -> None:
    path = tmp_path / "metrics-journal" / "events.db"
    async with started(tmp_path, "validate") as service:
        recording: RecordingExporter = component(service, "recording")
        changes = dict(enumerate(change for change in INVALID.values() if constructs(change)))
        Passing.change = staticmethod(lambda batch: changes[int(batch.request_id)](batch))
        for number in changes:
            pushed = {"service": "test", "metrics": [GOOD, BAD, GOOD]}
            answer = await service.client.post("/metrics", json=pushed, headers={"X-Request-ID": str(number)})
            assert answer.status_code == 200
            if number % 4 == 0:  # with too many bad items in one delivery, the search for them ends early
                await service.flush()
        await service.flush()
        await until(lambda: sum(map(len, recording.batches)) == 2 * len(changes))
        (line,) = (line for line in lines(path) if line.exporter == "connector.passing")
        assert (line.account.dead_lettered, line.account.sent) == (len(changes), 2 * len(changes))
        assert service.rows() == [(3 * len(changes),)]
    found = letters(path)
    assert len(found) == len(changes) > 200
    assert {letter.items for letter in found} == {1}
    assert [letter for letter in found if "connector passing: invalid batch: " not in letter.reason] == []


async def test_of_two_plugins_the_one_that_is_wrong_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with started(tmp_path, "validate", "emitting", "second") as service:
        Emitting.change = staticmethod(spoiled("event.value", "12.5"))
        assert (await service.push(BAD)).status_code == 500
        assert "processor emitting: invalid batch: events[0].value: got str (must be a finite number)" in logged(caplog)

        Second.change = staticmethod(
            lambda batch: batch.replace(events=[event.replace(value=event.value + 1) for event in batch.events])
        )
        assert (await service.push(BAD)).status_code == 500
        assert "processor emitting: invalid batch" in logged(caplog), "and not the one that fails because of it"

        Emitting.change = staticmethod(lambda batch: batch)
        Second.change = staticmethod(spoiled("dimension", date(2026, 1, 1)))
        assert (await service.push(BAD)).status_code == 500
        assert "processor second: invalid batch: events[0].dimensions['tool']: got date" in logged(caplog)
        await service.flush()
        assert service.rows() == [(0,)]


async def test_a_built_in_that_fails_because_of_a_plugin_is_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tmp_path, "validate", "emitting", "filter/own", "second") as service:
        Emitting.change = staticmethod(whole(lambda batch: batch.replace(events=[None])))
        assert (await service.push(BAD)).status_code == 500
        assert "processor emitting: invalid batch: events[0]: got NoneType (must be Event)" in logged(caplog)


CONTEXTS: dict[str, Callable[[Context], Any]] = {
    "received is text": lambda context: setattr(context, "received", "1"),
    "received is negative": lambda context: setattr(context, "received", -1),
    "received is less than rejected": lambda context: setattr(context, "rejected", 2),
    "rejected is none": lambda context: setattr(context, "rejected", None),
    "errors is none": lambda context: setattr(context, "errors", None),
    "errors has an object": lambda context: context.errors.append(object()),  # type: ignore[arg-type]
    "errors has a surrogate": lambda context: context.errors.append("\ud83c"),
    "warnings has a number": lambda context: context.warnings.append(1),  # type: ignore[arg-type]
    "idempotency is text": lambda context: setattr(context, "idempotency", "key"),
    "faults is text": lambda context: setattr(context, "faults", "1"),
    "request_id is none": lambda context: setattr(context, "request_id", None),
    "request_id has a line feed": lambda context: setattr(context, "request_id", "a\r\nb: c"),
    "request_id has a surrogate": lambda context: setattr(context, "request_id", "\ud83c"),
    "caller is text": lambda context: setattr(context, "caller", "me"),
    "caller has no bucket": lambda context: setattr(
        context,
        "caller",
        Caller("test", "0123abcd", frozenset(), None),  # type: ignore[arg-type]
    ),
    "caller has no id": lambda context: setattr(
        context,
        "caller",
        Caller("test", None, frozenset(), TokenBucket(1)),  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("decoder", ["decoding", "validate"])
async def test_what_a_plugin_writes_into_the_context_is_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, decoder: str
) -> None:
    first = [] if decoder == "decoding" else ["admitting"]
    async with started(tmp_path, *first, decoder) as service:
        wrong = []
        for name, touch in CONTEXTS.items():
            if decoder == "validate" and name.startswith("received"):
                continue  # `validate` sets it
            Decoding.touch = Admitting.touch = staticmethod(touch)
            answer = await service.push(GOOD)
            said = logged(caplog)
            named = "processor decoding" in said or "processor admitting" in said
            if answer.status_code != 500 or not named or answer.json()["detail"] != "Internal Server Error":
                wrong.append((name, answer.status_code, said))
        Decoding.touch = Admitting.touch = staticmethod(lambda context: None)
        for service_name in (None, 5, b"x") if first else ():
            Admitting.service = service_name
            answer = await service.push(GOOD)
            if answer.status_code != 500 or "processor admitting" not in logged(caplog):
                wrong.append((str(service_name), answer.status_code, ""))
        Admitting.service = "test"
        assert wrong == []
        assert (await service.push(GOOD)).status_code == 200
        await service.flush()
        assert service.rows() == [(1,)]


async def test_an_invalid_batch_of_a_decoder_names_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with started(tmp_path, "decoding") as service:
        wrong = []
        for name, change in INVALID.items():
            Decoding.change = staticmethod(change)
            answer = await service.push(BAD)
            if answer.status_code != 500 or "processor decoding" not in logged(caplog):
                wrong.append((name, answer.status_code))
        assert wrong == []
        assert (await service.push(GOOD)).status_code == 200
        await service.flush()
        assert service.rows() == [(1,)]


async def test_what_a_plugin_changes_after_it_returned_reaches_nobody(tmp_path: Path) -> None:
    kept: list[EventBatch] = []

    def keep(batch: EventBatch) -> EventBatch:
        kept.append(batch)
        return batch

    async with started(tmp_path, "validate", "emitting") as service:
        Emitting.change = staticmethod(keep)
        assert (await service.push(GOOD)).status_code == 200
        dimensions: Any = kept[0].events[0].dimensions
        dict.__setitem__(dimensions, "tool", "changed")
        await service.flush()
        assert service.rows("SELECT dimensions FROM metrics") == [('{"tool":"x"}',)]


METRICS: dict[str, Any] = {
    "unreadable": MetricBatch(b"\xff\xff\xff", 1, NOON),
    "a wrong count": metric_batch(1.0).replace(points=2),
    "a negative count": metric_batch(1.0).replace(points=-1),
    "a count that is text": metric_batch(1.0).replace(points="1"),
    "text": metric_batch(1.0).replace(request="x"),
    "a bytearray": metric_batch(1.0).replace(request=bytearray(b"")),
    "a naive time": metric_batch(1.0).replace(received_at=datetime(2026, 1, 1)),  # noqa: DTZ001 - the fault
    "a number as id": metric_batch(1.0).replace(request_id=1),
    "events": EventBatch("test", [Event("custom", 1.0, NOON)], NOON),
    "a list": [metric_batch(1.0)],
}


async def test_metrics_are_checked_too(tmp_path: Path) -> None:
    class Plugin:
        @hookimpl
        def declare_components(self) -> Sequence[Declaration]:
            return [Declaration("feeding", Feeding, Config, gives=frozenset({Signal.METRICS}))]

    own = tmp_path / "own.yaml"
    own.write_text(
        "extends: development\nreceivers: {feeding: }\nexporters: {recording: }\nservice: {pipelines: "
        "{metrics/own: {receivers: [feeding], processors: [batch], exporters: [recording]}}}"
    )
    async with running(tmp_path, config=str(own), plugins=[Plugin(), doubles]) as service:
        chain = component(service, "feeding").chain
        for name, batch in METRICS.items():
            with pytest.raises(InvalidBatch) as caught:
                await chain.process(batch, Context(scope=None))
            assert str(caught.value).startswith("receiver feeding: invalid batch: "), name
        assert (await chain.process(metric_batch(1.0, 2.0), Context(scope=None))).accepted == 2
        await service.flush()
        await until(lambda: component(service, "recording").batches == [metric_batch(1.0, 2.0)])
