"""The graph: what starts and stops when, and how data passes from one pipeline to another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import anyio
import pytest

from pipeline import (
    Batch,
    Buffer,
    ComponentConfig,
    Connector,
    Context,
    Declaration,
    Delivery,
    Exporter,
    Extension,
    JournalSettings,
    Permanent,
    Receiver,
    Signal,
    StartError,
    hookimpl,
)
from pipeline.component import Component
from pipeline.config.load import load_configuration
from pipeline.registry import load_registry
from pipeline.service import Service
from tests.pipeline.test_journal import batch_of

pytestmark = pytest.mark.anyio

BOTH = frozenset(Signal)
CONFIG = """
receivers: {source: }
processors: {keep: {folder: FOLDER}}
connectors: {copy: }
exporters: {collect: , collect/copies: }
extensions: {shared: }
service:
  extensions: [shared]
  stop_timeout: 1s
  pipelines:
    events: {receivers: [source], processors: [keep], exporters: [collect, copy]}
    events/copies: {receivers: [copy], processors: [keep], exporters: [collect/copies]}
"""


class World:
    """What all components of one test remember together."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails_to_start = ""


class KeepConfig(ComponentConfig):
    folder: Path


def components(world: World) -> ModuleType:
    """A plugin whose components note their life in `world`."""

    class Noted(Component[Any]):
        async def start(self) -> None:
            world.log.append(f"start {self.id}")
            if self.id == world.fails_to_start:
                raise StartError(f"{self.id} cannot start")

        async def stop(self) -> None:
            world.log.append(f"stop {self.id}")

    class Shared(Noted, Extension[ComponentConfig]):
        pass

    class Source(Noted, Receiver[ComponentConfig]):
        pass

    class Keep(Buffer[KeepConfig]):
        def journal_settings(self) -> JournalSettings:
            return JournalSettings(self.config.folder, size=1000, flush_interval=60, max_bytes=2**30)

    class Collect(Noted, Exporter[ComponentConfig]):
        taken: ClassVar[dict[str, list[Batch]]] = {}
        hangs = anyio.Event()

        async def export(self, delivery: Delivery) -> None:
            self.taken.setdefault(self.id, []).extend(delivery.batches)

    class Copy(Noted, Connector[ComponentConfig]):
        async def export(self, delivery: Delivery) -> None:
            for batch in delivery.batches:
                await self.chain.process(batch, Context())

    @hookimpl
    def declare_components() -> Sequence[Declaration]:
        return [
            Declaration("shared", Shared, ComponentConfig),
            Declaration("source", Source, ComponentConfig, gives=BOTH),
            Declaration("keep", Keep, KeepConfig, takes=BOTH),
            Declaration("collect", Collect, ComponentConfig, takes=BOTH),
            Declaration("copy", Copy, ComponentConfig, takes=BOTH, gives=BOTH),
        ]

    plugin = ModuleType("noted")
    plugin.__dict__.update(declare_components=declare_components, Collect=Collect)
    return plugin


def make_service(folder: Path, world: World) -> tuple[Service, ModuleType]:
    plugin = components(world)
    file = folder / "graph.yaml"
    file.write_text(CONFIG.replace("FOLDER", str(folder / "metrics-journal")))
    registry = load_registry(installed=False, extra=[plugin])
    return Service(load_configuration([str(file)], [], {}, registry)), plugin


@asynccontextmanager
async def started(service: Service) -> AsyncIterator[Any]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.run)
        await service.started.wait()
        (source,) = (each for each in service.graph.components() if isinstance(each, Receiver))
        yield source
        service.ask_to_stop()


def before(log: list[str], first: str, second: str) -> bool:
    return log.index(first) < log.index(second)


async def test_receivers_start_last_and_stop_first(tmp_path: Path) -> None:
    world = World()
    service, _ = make_service(tmp_path, world)
    async with started(service):
        pass
    starts = [line for line in world.log if line.startswith("start")]
    stops = [line for line in world.log if line.startswith("stop")]
    assert starts[0] == "start shared"
    assert starts[-1] == "start source"
    assert stops[0] == "stop source"
    assert stops[-1] == "stop shared"


async def test_a_failed_start_stops_everything_and_says_why(tmp_path: Path) -> None:
    world = World()
    world.fails_to_start = "collect"
    service, _ = make_service(tmp_path, world)
    with pytest.raises(ExceptionGroup) as raised:
        await service.run()
    (error,) = raised.value.exceptions
    assert isinstance(error, StartError)
    assert {"stop shared", "stop source", "stop collect", "stop copy"} <= set(world.log)
    assert "start source" not in world.log


async def test_flush_passes_through_connectors(tmp_path: Path) -> None:
    service, plugin = make_service(tmp_path, World())
    async with started(service) as source:
        await source.chain.process(batch_of(1.0), Context())
        assert await service.flush() == []
        assert plugin.Collect.taken == {"collect": [batch_of(1.0)], "collect/copies": [batch_of(1.0)]}


async def test_flush_names_who_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, plugin = make_service(tmp_path, World())

    async def down(self: Exporter[Any], delivery: Delivery) -> None:
        raise OSError("down")

    monkeypatch.setattr(plugin.Collect, "export", down)
    async with started(service) as source:
        await source.chain.process(batch_of(1.0), Context())
        assert set(await service.flush()) == {"exporter collect", "exporter collect/copies"}
        assert service.health().components["exporter/collect"].startswith("cannot deliver since 20")
        assert service.health().accepting


async def test_a_hanging_exporter_does_not_keep_the_service_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, plugin = make_service(tmp_path, World())
    entered = anyio.Event()

    async def hang(self: Exporter[Any], delivery: Delivery) -> None:
        entered.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(plugin.Collect, "export", hang)
    monkeypatch.setattr(plugin.Collect, "at_once", True)
    with anyio.fail_after(10):
        async with started(service) as source:
            await source.chain.process(batch_of(1.0), Context())
            await entered.wait()


async def test_an_exporter_that_lets_its_own_cancellation_out_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    service, plugin = make_service(tmp_path, World())
    tries = []
    taken = anyio.Event()

    async def careless(self: Exporter[Any], delivery: Delivery) -> None:
        tries.append(delivery)
        if len(tries) == 1:
            raise anyio.get_cancelled_exc_class()
        taken.set()

    monkeypatch.setattr(plugin.Collect, "export", careless)
    monkeypatch.setattr(plugin.Collect, "at_once", True)
    async with started(service) as source:
        await source.chain.process(batch_of(1.0), Context())
        await taken.wait()


async def test_what_the_next_pipeline_refuses_for_good_does_not_stop_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, plugin = make_service(tmp_path, World())

    async def refuse(self: Exporter[Any], delivery: Delivery) -> None:
        if delivery.batches:
            raise ExceptionGroup("tasks", [Permanent("never")])

    monkeypatch.setattr(plugin.Collect, "export", refuse)
    async with started(service) as source:
        await source.chain.process(batch_of(1.0), Context())
        assert await service.flush() == []


async def test_a_failed_background_task_is_shown_and_does_not_refuse_pushes(tmp_path: Path) -> None:
    service, _ = make_service(tmp_path, World())
    async with started(service):
        (shared,) = service.graph.extensions
        failed = anyio.Event()

        async def fail() -> None:
            failed.set()
            raise RuntimeError("broken")

        service.spawn(shared, fail)
        await failed.wait()
        await anyio.lowlevel.checkpoint()
        health = service.health()
        assert health.components["extension/shared"] == "failed with RuntimeError"
        assert health.accepting


async def test_cancelling_the_service_stops_everything(tmp_path: Path) -> None:
    world = World()
    service, _ = make_service(tmp_path, world)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.run)
            await service.started.wait()
            (shared,) = service.graph.extensions
            service.spawn(shared, anyio.sleep_forever)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert "stop shared" in world.log
