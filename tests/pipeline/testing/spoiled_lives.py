"""Faults in what a component does."""

from __future__ import annotations

from tests.pipeline.testing.spoiled import Fault
from tests.pipeline.testing.subjects import OfConnector, OfWords

OPEN = "self.file = os.open(self.config.path, os.O_WRONLY | os.O_CREAT)"
WAIT = "            await asyncio.sleep(0)\n            for batch"
IN_PLACE = (
    "event.dimensions = {}",
    "event.dimensions['new'] = 1",
    "event.dimensions.clear()",
    "event.metadata = {}",
    "event.value = 2.0",
    "batch.events = ()",
    "batch.events[0] = event",
    "batch.events.append(event)",
    "batch.service = 'x'",
    "dict.__setitem__(event.dimensions, 'new', 1)",
    "__import__('msgspec').structs.force_setattr(event, 'value', 2.0)",
)
"""Ways in which a plugin changes a batch; the last two get around what is immutable."""
FAULTS = [
    Fault(
        "construction_touches_nothing",
        "self.file = None\n        self.adding",
        "OURS.append(os.open('/dev/null', 0))\n        self.adding",
        "__init__ of ShelfExporter makes the open file /dev/null",
    ),
    Fault("construction_touches_nothing", "self.places = {}", "open(config.path, 'w').close()", "makes the file"),
    Fault(
        "construction_touches_nothing", "self.places = {}", "asyncio.create_task(asyncio.sleep(9))", "makes the task"
    ),
    Fault("construction_touches_nothing", "self.places = {}", "self.host.spawn(self, self.tidy)", "makes the task"),
    Fault(
        "construction_touches_nothing",
        "self.places = {}",
        "threading.Thread(target=time.sleep, args=(0.5,)).start()",
        "makes the thread",
    ),
    Fault(
        "every_extension_that_it_asks_for_is_named_in_requires",
        "self.places = {}",
        "self.places = {}; from tests.pipeline.testing.subjects import Labels; host.extension(Labels)",
        "asks its host for Labels",
    ),
    Fault(
        "every_extension_that_it_asks_for_is_named_in_requires",
        "self.places = {}",
        "host.extension(State)",
        "which no extension of the test offers",
    ),
    Fault(
        "it_stops_without_a_start",
        "        if self.file is not None:\n",
        "        if True:\n",
        "stop without a start raised",
    ),
    Fault("it_stops_twice", "            self.file = None\n", "", "stop a second time raised"),
    Fault(
        "it_stops_twice",
        '        """Close it."""\n',
        "        await asyncio.sleep(0 if self.file else 99)\n",
        "stop a second time does not return",
    ),
    Fault(
        "it_lives_again_in_the_same_process",
        OPEN,
        f"assert not hasattr(os, 'shelf_is_open'); {OPEN}; OURS.append(setattr(os, 'shelf_is_open', 1))",
        "start raised AssertionError",
    ),
    Fault(
        "what_it_tells_doctor_needs_no_start_and_changes_nothing",
        "    async def tidy(self):",
        "    def findings(self):\n        return ['fine']\n\n    async def tidy(self):",
        "findings of ShelfExporter gives ['fine']",
    ),
    Fault(
        "what_it_tells_doctor_needs_no_start_and_changes_nothing",
        "    async def tidy(self):",
        "    def findings(self):\n        open(self.config.path, 'w').close()\n        return []\n\n    async def tidy(self):",
        "(only look)",
    ),
    Fault(
        "it_takes_its_configuration_again_while_it_runs",
        "        return lambda: None",
        "        self.config = config",
        "reload gives None",
    ),
    Fault(
        "what_it_spawns_runs_and_ends_when_it_is_cancelled",
        "await asyncio.Event().wait()",
        "raise KeyError('tidy')",
        "KeyError('tidy')",
    ),
    Fault(
        "what_it_spawns_runs_and_ends_when_it_is_cancelled",
        "await asyncio.Event().wait()",
        """try:
            await asyncio.sleep(99)
        except asyncio.CancelledError:
            await asyncio.sleep(99)""",
        "goes on after it was cancelled",
    ),
    Fault(
        "nothing_is_left_after_a_stop",
        "            OURS.remove(self.file)\n            os.close(self.file)\n",
        "",
        "leaves behind the open file",
    ),
    Fault(
        "nothing_is_left_after_a_stop",
        "self.host.spawn(self, self.tidy)",
        "asyncio.create_task(self.tidy())",
        "leaves behind the task",
    ),
    Fault(
        "nothing_is_left_after_a_stop",
        "self.host.spawn(self, self.tidy)",
        "threading.Thread(target=time.sleep, args=(0.5,)).start()",
        "leaves behind the thread",
    ),
    Fault(
        "a_delivery_is_taken_or_refused_as_retryable_or_permanent",
        "        async with self.adding",
        "        delivery.batches[0]\n        async with self.adding",
        "export of a delivery with 0 batches raised IndexError",
    ),
    Fault(
        "a_delivery_is_taken_or_refused_as_retryable_or_permanent",
        "            for batch",
        "            await asyncio.sleep(99)\n            for batch",
        "does not end",
    ),
    Fault(
        "the_position_that_it_keeps_is_that_of_the_last_delivery",
        "        return self.places.get(pipeline)",
        "        raise NotImplementedError",
        "position is not implemented",
    ),
    Fault(
        "the_position_that_it_keeps_is_that_of_the_last_delivery",
        "self.places.get(pipeline)",
        "self.places.get(pipeline, 0)",
        "position is 0 before any delivery",
    ),
    Fault(
        "the_position_that_it_keeps_is_that_of_the_last_delivery",
        "= delivery.upto",
        "= delivery.after",
        "store it together with the data",
    ),
    Fault(
        "a_delivery_that_is_cancelled_at_any_await_can_be_made_again",
        "        async with self.adding",
        "        await self.adding.acquire()\n        if True",
        "does not end",
    ),
    Fault(
        "a_delivery_that_is_cancelled_at_any_await_can_be_made_again",
        WAIT,
        """
            if self.places.get("begun"):
                raise Retryable("still at it")
            self.places["begun"] = True
            await asyncio.sleep(0)
            self.places["begun"] = False
            for batch""",
        "it raises Retryable, and without that it succeeds",
    ),
    Fault(
        "a_delivery_that_is_cancelled_at_any_await_can_be_made_again",
        WAIT,
        """
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                return
            for batch""",
        "goes on as if it was not",
    ),
    Fault(
        "a_delivery_that_is_cancelled_at_any_await_can_be_made_again",
        WAIT,
        """
            try:
                await asyncio.sleep(0)
            except BaseException:
                raise Retryable("not now")
            for batch""",
        "raises Retryable('not now')",
    ),
    Fault(
        "a_delivery_that_is_cancelled_at_any_await_can_be_made_again",
        WAIT,
        """
            helper = asyncio.create_task(asyncio.sleep(9))
            await asyncio.sleep(0)
            helper.cancel()
            for batch""",
        "leaves behind the task",
    ),
    Fault(
        "a_call_that_is_cancelled_at_any_await_can_be_made_again",
        "        await asyncio.sleep(0)\n",
        """
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 1:
            raise Overloaded("busy")
        await asyncio.sleep(0)
        self.calls -= 1
""",
        "it raises Overloaded, and without that it succeeds",
        OfWords,
        "acme_words",
    ),
    Fault(
        "a_call_that_is_cancelled_at_any_await_can_be_made_again",
        "        if context.credential",
        """
        assert not getattr(self, "looking", False)
        self.looking = True
        await asyncio.sleep(0)
        self.looking = False
        if context.credential""",
        "admit, cancelled at its await number 1, cannot be done again: it raises AssertionError",
        OfWords,
        "acme_words",
    ),
    Fault(
        "it_refuses_with_nothing_but_a_refusal",
        "        await asyncio.sleep(0)\n",
        "        batch.events[0]\n",
        "process of EventBatch(service='test', events=()",
        OfWords,
        "acme_words",
    ),
    Fault(
        "it_refuses_with_nothing_but_a_refusal",
        "raise Unauthenticated(",
        "raise LookupError(",
        "admit raised LookupError",
        OfWords,
        "acme_words",
    ),
    Fault(
        "it_refuses_with_nothing_but_a_refusal",
        "        if document",
        "        document.decode()\n        if document",
        "raised UnicodeDecodeError",
        OfWords,
        "acme_words",
    ),
    Fault("it_gives_on_a_batch", "        return batch\n", "", "process returns None", OfWords, "acme_words"),
    Fault("it_gives_on_a_batch", "return EventBatch(", "return (", "decode returns (", OfWords, "acme_words"),
    Fault(
        "it_gives_on_a_batch",
        "        return batch\n",
        "        return list(batch.events)\n",
        "process returns [Event(",
        OfWords,
        "acme_words",
    ),
    Fault(
        "it_gives_on_a_batch",
        "        return batch\n",
        "        return MetricBatch(b'', 0, batch.received_at)\n",
        "process returns MetricBatch(",
        OfWords,
        "acme_words",
    ),
    Fault(
        "it_gives_on_a_batch",
        "        return batch\n",
        "        return batch.replace(events=[event.replace(value='12.5') for event in batch.events])\n",
        "process returns an invalid batch: events[0].value: got str (must be a finite number)",
        OfWords,
        "acme_words",
    ),
    Fault(
        "it_gives_on_a_batch",
        "Event('custom', 1.0, context.received_at)".replace("'", '"'),
        "Event('custom', 1.0, None)",
        "decode returns an invalid batch: events[0].timestamp: got NoneType (must be an aware datetime)",
        OfWords,
        "acme_words",
    ),
    *(
        Fault(
            "it_changes_no_batch_in_place",
            "        return batch\n",
            f"        event = batch.events[0]\n        {change}\n        return batch\n",
            "process changes its input in place (return a copy: event.replace(...), batch.replace(...))",
            OfWords,
            "acme_words",
        )
        for change in IN_PLACE
    ),
    *(
        Fault(
            "it_changes_no_delivery_in_place",
            'os.write(self.file, b"x" * len(batch))',
            f"event = batch.events[0]; {change}",
            "export changes its input in place",
        )
        for change in (*IN_PLACE, "delivery.batches = ()")
    ),
    Fault(
        "what_it_gives_on_is_valid",
        "self.chain.process(batch,",
        "self.chain.process(batch.replace(events=[None]),",
        "it sends an invalid batch: events[0]: got NoneType (must be Event)",
        OfConnector,
        "acme_rest",
    ),
]
