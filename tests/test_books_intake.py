"""The books of what comes in: every item that a receiver took or a connector made is filtered, refused, repeated or journaled."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import pytest

from pipeline import (
    Batch,
    ComponentConfig,
    Context,
    Declaration,
    Decoder,
    Event,
    EventBatch,
    Processor,
    Signal,
    hookimpl,
)
from pipeline.journal_file import JournalFile
from tests.running import running, until
from tests.scrapes import total

pytestmark = pytest.mark.anyio

EVENT = {"type": "custom", "value": 1}


class Careless(Decoder[ComponentConfig]):
    """A decoder that loses the last of more than one item, and tells nobody."""

    async def decode(self, document: bytes, context: Context) -> EventBatch:
        values = json.loads(document)["metrics"]
        context.received = len(values)
        events = [Event("custom", each["value"], context.received_at) for each in values]
        return EventBatch("test", events[:-1] or events, context.received_at)


class Doubling(Processor[ComponentConfig]):
    """Adds a copy of every event, leaves out 0, and rejects 13."""

    async def process(self, batch: Batch, context: Context) -> Batch:
        assert isinstance(batch, EventBatch)
        kept = [event for event in batch.events if event.value not in (0, 13)]
        for event in batch.events:
            if event.value == 13:
                context.reject(["is unlucky"])
        return EventBatch(batch.service, kept * 2, batch.received_at)


class Grasping(Processor[ComponentConfig]):
    """Takes an event out of what it has given on, when nobody looks any more."""

    async def process(self, batch: Batch, context: Context) -> Batch:
        assert isinstance(batch, EventBatch)
        if len(batch) > 1:
            asyncio.get_running_loop().call_soon(msgspec.structs.force_setattr, batch, "events", batch.events[1:])
        return batch


class IntakePlugin:
    @hookimpl
    def declare_components(self) -> Sequence[Declaration]:
        events = frozenset({Signal.EVENTS})
        return [
            Declaration("careless", Careless, ComponentConfig, takes=events),
            Declaration("doubling", Doubling, ComponentConfig, takes=events),
            Declaration("grasping", Grasping, ComponentConfig, takes=events),
        ]


def with_processors(folder: Path, *processors: str) -> str:
    own = folder / "own.yaml"
    text = {
        "extends": "development",
        "processors": dict.fromkeys({*processors} & {"careless", "doubling", "grasping"}),
        "service": {"pipelines": {"events": {"processors": ["auth", *processors, "batch"]}}},
    }
    own.write_text(json.dumps(text))
    return str(own)


async def test_what_comes_in_is_accounted_for_to_the_item(tmp_path: Path) -> None:
    config = with_processors(tmp_path, "validate", "doubling")
    for round in range(2):  # the second time the journal has what the first has left, which is not counted again
        async with running(tmp_path, config=config, plugins=[IntakePlugin()]) as service:
            document = {"service": "test", "metrics": [EVENT, {"type": "custom"}, {**EVENT, "value": 13}]}
            for _ in range(2):
                answer = await service.client.post("/metrics", json=document, headers={"Idempotency-Key": "a"})
                assert (answer.status_code, answer.json()["accepted"], answer.json()["rejected"]) == (200, 1, 2)
            assert (await service.push({**EVENT, "value": 0}, EVENT, EVENT, EVENT)).status_code == 200
            assert (await service.push({**EVENT, "value": 0})).status_code == 200
            assert (await service.push({"type": "custom"}, {"type": "custom"})).status_code == 422
            other = {**document, "metrics": [EVENT]}
            answer = await service.client.post("/metrics", json=other, headers={"Idempotency-Key": "a"})
            assert answer.status_code == 409
            assert (await service.client.post("/metrics", content=b"{")).status_code == 400
            await service.flush()
            (events, metrics) = (one.intake for one in service.service.graph.pipelines)
            text = await service.scrape()
        # Twice 1 good and 2 bad ones; 4 of which 1 is left out and 3 are doubled; 1 that is left out; 2 bad ones; 1 whose key was used.
        assert (events.received, events.filtered, events.refused) == (14, 1, 2 * 2 + 2 + 1)
        assert events.generated == 2 * 1 + (3 - 1)
        assert (events.repeated, events.journaled) == ((2, 8) if round == 0 else (4, 6))
        assert events.difference == metrics.difference == 0
        assert (metrics.received, metrics.generated) == (0, metrics.journaled)
        assert metrics.journaled > 0
        assert total(text, "books_intake_items", pipeline="events", column="refused") == 7
        assert total(text, "receiver_received_items_total", pipeline="events", receiver="http") == 14
        assert total(text, "books_intake_difference_items") == 0


async def test_a_processor_that_changes_a_batch_after_it_returned_it_changes_nothing(tmp_path: Path) -> None:
    config = with_processors(tmp_path, "validate", "grasping")
    async with running(tmp_path, config=config, plugins=[IntakePlugin()]) as service:
        for count in (1, 3, 3):
            assert (await service.push(*[EVENT] * count)).status_code == 200
        await service.flush()
        assert total(await service.scrape(), "books_intake_difference_items", pipeline="events") == 0
        assert service.rows() == [(7,)]


async def test_a_processor_that_swallows_an_item_without_saying_so_is_found(tmp_path: Path) -> None:
    config = with_processors(tmp_path, "careless")

    async def push_some() -> None:
        async with running(tmp_path, config=config, plugins=[IntakePlugin()]) as service:
            for count in (1, 3, 3):
                assert (await service.push(*[EVENT] * count)).status_code == 200
            await service.flush()
            assert total(await service.scrape(), "books_intake_difference_items", pipeline="events") == 2

    with pytest.raises(AssertionError, match=r"'events', Intake\(received=7, .*journaled=5"):
        await push_some()


async def test_whoever_gives_up_waiting_is_in_the_books_all_the_same(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        (events, _) = service.service.graph.pipelines
        (chain,) = events.chains.values()
        committer = events.journal._committer
        assert committer is not None
        held = anyio.Event()

        def hold(file: JournalFile) -> None:
            anyio.from_thread.run_sync(held.set, token=token)
            release.wait(10)

        token, release = anyio.lowlevel.current_token(), threading.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(committer.call, hold)
            await held.wait()
            async with anyio.create_task_group() as waiting:
                for _ in range(3):
                    batch = EventBatch("test", [Event("custom", 1.0, datetime.now(UTC))] * 2, datetime.now(UTC))
                    waiting.start_soon(chain.process, batch, Context(scope=None))
                await anyio.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            assert events.intake == (0, 0, 0, 0, 0, 0)
            release.set()
        await until(lambda: events.intake.received > 0)
        assert events.intake.received == events.intake.journaled == 6
        await service.flush()
        assert service.rows() == [(6,)]
