"""An exporter `otlp` behind a real journal and worker, and stand-ins for what is no collector."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import Batch, EventBatch
from pipeline.delivery import PipelineDelivery
from pipeline.journal import Journal
from pipeline.journal_format import decode_batch
from pipeline.journal_settings import JournalSettings
from pipeline.telemetry import Distribution
from pipeline.testing import NopHost
from pipeline.worker import Worker
from plugins.exporters.otlp.config import OtlpConfig
from plugins.exporters.otlp.exporter import OtlpExporter
from tests.collector import Collector, grpc_collector, http_collector, points_of
from tests.pipeline.test_journal import append
from tests.running import until


@dataclass
class Forwarding:
    """Exporters that run, and the journal that they read."""

    journal: Journal
    delivery: PipelineDelivery
    exporters: list[OtlpExporter]

    @property
    def worker(self) -> Worker:
        """That of the first exporter."""
        return self.delivery.workers[0]

    @property
    def blocked(self) -> str | None:
        """What a person has to mend."""
        return self.worker.handover.attempts.blocked

    async def put(self, *batches: Batch) -> None:
        """Make these durable, one after the other."""
        for batch in batches:
            await append(self.journal, batch)

    async def done(self) -> None:
        """Wait until the first exporter is behind all of it."""
        await until(lambda: self.worker.position == self.journal.last)

    async def failed(self, tries: int = 1) -> None:
        """Wait until it has failed that often."""
        await until(lambda: self.worker.handover.attempts.failed_tries >= tries)

    def counted(self, name: str, place: int = 0, **labels: str) -> float:
        """The sum of the values of one of its instruments that have these labels."""
        (found,) = (each for each in self.exporters[place].instruments() if each.name == name)
        values = [value for has, value in found.read() if labels.items() <= has.items()]
        return sum(value for value in values if not isinstance(value, Distribution))

    def dead_letters(self) -> list[tuple[list[float], str]]:
        """The values that each one holds, and why."""
        with closing(sqlite3.connect(f"file:{self.journal.path}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT payload, reason FROM dead_letters ORDER BY id").fetchall()
        return [(values_of(decode_batch(payload)), reason) for payload, reason in found]


def values_of(batch: Batch) -> list[float]:
    """What its items say."""
    if isinstance(batch, EventBatch):
        return [event.value for event in batch.events]
    return request_values(ExportMetricsServiceRequest.FromString(batch.request))


def request_values(request: ExportMetricsServiceRequest) -> list[float]:
    """The values of a request's points."""
    return [value for _, _, _, value, _ in points_of(request)]


def exporter_for(id: str = "otlp", environ: Mapping[str, str] | None = None, **options: Any) -> OtlpExporter:
    """One with these options, not started."""
    return OtlpExporter(id, OtlpConfig.model_validate(options), NopHost(environ=environ))


@asynccontextmanager
async def forwarding(
    folder: Path,
    *others: Mapping[str, Any],
    grace: float = 1.0,
    size: int = 1,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Forwarding]:
    """An exporter with these options, and one more for each of `others`."""
    journal = Journal("metrics", JournalSettings(folder, size, 60.0, 2**30))
    exporters = [exporter_for(f"otlp/{number}", environ, **each) for number, each in enumerate([options, *others])]
    delivery = PipelineDelivery(journal, exporters)
    async with anyio.create_task_group() as tasks:
        try:
            for exporter in exporters:
                await exporter.start()
            await journal.open()
            await delivery.start(tasks, accept_reset=False)
            yield Forwarding(journal, delivery, exporters)
        finally:
            with anyio.CancelScope(shield=True):
                await delivery.stop(grace)
                for exporter in exporters:
                    await exporter.stop()
                await journal.close()


Serves = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Port:
    """A TCP port of ours. `connections` counts those that were made to it."""

    number: int = 0
    connections: int = 0

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.number}"


@asynccontextmanager
async def listening(serve: Serves) -> AsyncIterator[Port]:
    """A TCP server that does this with every connection, and then closes it."""
    port, tasks = Port(), set[asyncio.Task[None]]()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    port.number = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """One HTTP request: its first line, its headers in lower case, its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    return head[0], headers, await reader.readexactly(int(headers.get("content-length", 0)))


@asynccontextmanager
async def over(protocol: str, folder: Path, **options: Any) -> AsyncIterator[tuple[Collector, Forwarding]]:
    """A collector, and an exporter that sends to it."""
    collecting = http_collector if protocol == "http" else grpc_collector
    async with collecting() as collector:
        chosen = {"endpoint": collector.url, "protocol": "grpc" if protocol == "grpc" else "http/protobuf", **options}
        async with forwarding(folder, **chosen) as found:
            yield collector, found


def answers(
    collector: Collector, answer: Any, when: Callable[[ExportMetricsServiceRequest], bool] = lambda request: True
) -> None:
    """Have it answer so, an HTTP status or a gRPC code with or without details, when that is true, else with success."""

    def http(request: ExportMetricsServiceRequest) -> web.Response | None:
        if not when(request):
            return None
        return answer() if callable(answer) else web.Response(status=answer, text="its own words")

    def rpc(request: ExportMetricsServiceRequest) -> tuple[Any, ...] | None:
        if not when(request):
            return None
        return answer if isinstance(answer, tuple) else (answer, "its own words")

    collector.answer_http, collector.answer_grpc = http, rpc


def first(at: list[float]) -> Callable[[ExportMetricsServiceRequest], bool]:
    """True for the first request; notes when each one came."""

    def when(request: ExportMetricsServiceRequest) -> bool:
        at.append(anyio.current_time())
        return len(at) == 1

    return when


def taken(collector: Collector) -> Counter[float]:
    """How often each value was taken."""
    return Counter(value for request in collector.taken for value in request_values(request))
