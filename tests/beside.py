"""A plugin with a component of every kind, of which a test says what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pipeline import (
    Access,
    Batch,
    Component,
    ComponentConfig,
    Context,
    Declaration,
    Delivery,
    EventBatch,
    Exporter,
    Extension,
    Finding,
    Host,
    Instrument,
    InstrumentKind,
    JournalSettings,
    ListenerConfig,
    Processor,
    Reading,
    Receiver,
    Request,
    Response,
    Route,
    Signal,
    hookimpl,
)
from pipeline.deadlines import Deadlines
from plugins.processors.batch import BatchConfig, BatchProcessor
from plugins.processors.validate import ValidateConfig, ValidateProcessor
from tests.running import Running, running_within

KINDS = frozenset({"receiver", "processor", "exporter", "extension"})
CONFIGURATION = """
extends: development
receivers: {beside: }
processors: {beside: }
exporters: {beside: }
extensions: {beside: }
service:
  extensions: [database, api_keys, retention, beside]
  stop_timeout: 1s
  pipelines:
    events:
      processors: [auth, rate_limit, validate, beside, batch]
      exporters: [sqlite, series, beside]
    metrics/beside: {receivers: [beside], processors: [batch], exporters: [beside]}
"""


class World:
    """What the components of one test do, by the name of what is asked of them; what is not in `does` goes well."""

    def __init__(self, **does: Callable[..., Any]) -> None:
        self.does = does
        self.stopped: set[str] = set()

    def ask(self, name: str, well: Any, *given: Any) -> Any:
        """What the test says, or what is well."""
        return self.does[name](*given) if name in self.does else well

    async def wait(self, name: str, well: Any, *given: Any) -> Any:
        """The same for what is awaited."""
        result = self.ask(name, well, *given)
        return await result if asyncio.iscoroutine(result) else result


class _Beside(Component[ComponentConfig]):
    world: ClassVar[World]

    def __init__(self, id: str, config: ComponentConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.world.ask(f"{self.kind}_init", None)

    async def start(self) -> None:
        await self.world.wait(f"{self.kind}_start", None)
        if f"{self.kind}_task" in self.world.does:
            self.host.spawn(self, partial(self.world.wait, f"{self.kind}_task", None))

    async def stop(self) -> None:
        await self.world.wait(f"{self.kind}_stop", None)
        self.world.stopped.add(str(self.kind))


class BesideReceiver(_Beside, Receiver[ComponentConfig]):
    """Receives nothing, and listens if the test says what it answers."""

    async def start(self) -> None:
        await super().start()
        if "app" in self.world.does:
            await self.host.listen(self, ListenerConfig(port=0), self._app)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.world.wait("app", None)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class BesideProcessor(_Beside, Processor[ComponentConfig]):
    """Gives on what comes."""

    async def admit(self, context: Context) -> None:
        await self.world.wait("admit", None)

    async def process(self, batch: Batch, context: Context) -> Batch:
        given: Batch = await self.world.wait("process", batch, batch)
        return given


class BesideDecoder(ValidateProcessor):
    """Decodes as `validate` does, unless the test says otherwise."""

    world: ClassVar[World]

    async def decode(self, document: bytes, context: Context) -> EventBatch:
        await self.world.wait("decode", None)
        return await super().decode(document, context)


class BesideBuffer(BatchProcessor):
    """Keeps the journal as `batch` does, unless the test says otherwise."""

    world: ClassVar[World]

    def journal_settings(self) -> JournalSettings:
        settings: JournalSettings = self.world.ask("journal_settings", super().journal_settings())
        return settings


class BesideExporter(_Beside, Exporter[ComponentConfig]):
    """Takes everything."""

    async def export(self, delivery: Delivery) -> None:
        await self.world.wait("export", None)

    async def flush(self) -> None:
        await self.world.wait("flush", None)

    def saved(self, pipeline: str) -> int | None:
        position: int | None = self.world.ask("saved", None)
        return position


class BesideExtension(_Beside, Extension[ComponentConfig]):
    """Offers a route and an instrument."""

    def routes(self) -> Sequence[Route]:
        routes: Sequence[Route] = self.world.ask(
            "routes", [Route("GET", "/beside", Access.PUBLIC, self._answer, "Nothing much")]
        )
        return routes

    async def _answer(self, request: Request) -> Response:
        answer: Response = await self.world.wait("answer", Response({"fine": True}))
        return answer

    def findings(self) -> Sequence[Finding]:
        findings: Sequence[Finding] = self.world.ask("findings", [])
        return findings

    def instruments(self) -> Sequence[Instrument]:
        value = Instrument("beside_value", InstrumentKind.GAUGE, "Nothing much.", (), self._read)
        instruments: Sequence[Instrument] = self.world.ask("instruments", [value])
        return instruments

    def _read(self) -> Sequence[Reading]:
        readings: Sequence[Reading] = self.world.ask("read", [({}, 1)])
        return readings


class ReloadingExtension(BesideExtension):
    """The same, and it changes in place."""

    async def reload(self, config: ComponentConfig, host: Host) -> Callable[[], None]:
        await self.world.wait("reload", None)
        return partial(self.world.ask, "apply", None)


class Plugin:
    """Brings them all, for one test."""

    def __init__(self, world: World) -> None:
        self._world = world

    @hookimpl
    def declare_components(self) -> list[Declaration]:
        """Those above."""
        both = frozenset(Signal)
        return [
            self._declaration(BesideReceiver, gives=frozenset({Signal.METRICS})),
            self._declaration(BesideProcessor, takes=both),
            self._declaration(BesideExporter, takes=both),
            Declaration(
                "decoding",
                type("OfTheTest", (BesideDecoder,), {"world": self._world}),
                ValidateConfig,
                takes=frozenset({Signal.EVENTS}),
            ),
            Declaration("keeping", type("OfTheTest", (BesideBuffer,), {"world": self._world}), BatchConfig, takes=both),
            self._declaration(ReloadingExtension if "reload" in self._world.does else BesideExtension),
        ]

    def _declaration(self, component: type[_Beside], **signals: frozenset[Signal]) -> Declaration:
        of_the_test = type(component.__name__, (component,), {"world": self._world})
        return Declaration("beside", of_the_test, ComponentConfig, **signals)


def beside(
    folder: Path, world: World, *overrides: str, deadlines: Deadlines | None = None
) -> AbstractAsyncContextManager[Running]:
    """The service with these components beside its own."""
    (folder / "beside.yaml").write_text(CONFIGURATION)
    config, plugins = str(folder / "beside.yaml"), [Plugin(world)]
    return running_within(deadlines or Deadlines(), folder, *overrides, config=config, plugins=plugins)
