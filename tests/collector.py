"""A stand-in for a company's OTLP collector, over HTTP and gRPC, made of OTLP's own messages and service: it keeps what it takes, and
answers as it is told."""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import grpc
import grpc.aio
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

Point = tuple[str, str, frozenset[tuple[str, Any]], float, int]
"""Service, metric, attributes, value (of a histogram: its sum), time in nanoseconds."""


@dataclass
class Collector:
    """What came in, and what to answer. `taken` holds the requests that were answered with success, in order."""

    url: str = ""
    taken: list[ExportMetricsServiceRequest] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    """Of every request, taken or not."""
    requests: int = 0
    answer_http: Callable[
        [ExportMetricsServiceRequest], Awaitable[web.StreamResponse | None] | web.StreamResponse | None
    ] = lambda request: None
    """An answer in place of success; None is success."""
    answer_grpc: Callable[[ExportMetricsServiceRequest], tuple[Any, ...] | None] = lambda request: None
    """A status code, its details and, where there are any, the trailing metadata; None is success."""
    response: ExportMetricsServiceResponse = field(default_factory=ExportMetricsServiceResponse)
    """The body of a success."""
    changed: anyio.Event = field(default_factory=anyio.Event)

    def take(self, request: ExportMetricsServiceRequest) -> None:
        """Keep it."""
        self.taken.append(request)
        self._tell()

    def saw(self, headers: Mapping[str, str]) -> None:
        """Note that a request came."""
        self.requests += 1
        self.headers.append(headers)
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait for a request that makes it true."""
        with anyio.fail_after(seconds):
            while not condition():
                await self.changed.wait()

    @property
    def points(self) -> list[Point]:
        """All data points that were taken, in order."""
        return [point for request in self.taken for point in points_of(request)]

    def newest(self, metric: str) -> dict[frozenset[tuple[str, Any]], float]:
        """The last value of each series of that metric."""
        return {attributes: value for _, name, attributes, value, _ in self.points if name == metric}


def points_of(request: ExportMetricsServiceRequest) -> Iterator[Point]:
    """The data points of one request."""
    for resource in request.resource_metrics:
        own = {each.key: each.value.string_value for each in resource.resource.attributes}
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in data_points(metric):
                    attributes = frozenset(
                        (each.key, getattr(each.value, each.value.WhichOneof("value") or "string_value"))
                        for each in point.attributes
                    )
                    value = point.sum if metric.WhichOneof("data") == "histogram" else point.as_double
                    yield own.get("service.name", ""), metric.name, attributes, value, point.time_unix_nano


def ids_of(request: ExportMetricsServiceRequest) -> list[str]:
    """The attribute `id` of each data point of one request that has one."""
    found = (dict(attributes).get("id") for _, _, attributes, _, _ in points_of(request))
    return [str(id) for id in found if id is not None]


def data_points(metric: Metric) -> Any:
    """The points of a metric, whatever their kind."""
    data = metric.WhichOneof("data")
    return getattr(metric, data).data_points if data else ()


@asynccontextmanager
async def http_collector(port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Collector]:
    """One that listens for OTLP over HTTP, on loopback."""
    collector = Collector()

    async def take(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        collector.saw(request.headers)
        message = ExportMetricsServiceRequest.FromString(body)
        answer = collector.answer_http(message)
        if isinstance(answer, Awaitable) and not isinstance(answer, web.StreamResponse):
            answer = await answer
        if answer is not None:
            return answer
        collector.take(message)
        return web.Response(body=collector.response.SerializeToString(), content_type="application/x-protobuf")

    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/metrics", take)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.SockSite(runner, await _bound(port), ssl_context=tls)
    try:
        await site.start()
        (address,) = runner.addresses
        collector.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{address[1]}"
        yield collector
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


async def _bound(port: int) -> socket.socket:
    """A socket on that port. A process that is being started has a copy of one that listened there until it executes its program."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = anyio.current_time() + 5
    while True:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            if anyio.current_time() > deadline:
                raise
            await anyio.sleep(0.01)
        else:
            return sock


class _Servicer(MetricsServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(  # noqa: N802 - the service's name for it
        self, request: ExportMetricsServiceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ExportMetricsServiceResponse:
        """Take one request."""
        self._collector.saw({str(key): str(value) for key, value in context.invocation_metadata() or ()})
        answer = self._collector.answer_grpc(request)
        if answer is not None:
            await context.abort(*answer)
        self._collector.take(request)
        return self._collector.response


@asynccontextmanager
async def grpc_collector(port: int = 0, credentials: grpc.ServerCredentials | None = None) -> AsyncIterator[Collector]:
    """One that listens for OTLP over gRPC, on loopback."""
    collector = Collector()
    server = grpc.aio.server()
    add_MetricsServiceServicer_to_server(_Servicer(collector), server)  # type: ignore[no-untyped-call]
    if credentials is None:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    collector.url = f"{'http' if credentials is None else 'https'}://127.0.0.1:{bound}"
    try:
        yield collector
    finally:
        with anyio.CancelScope(shield=True):
            await server.stop(0.2)


def gunzip(body: bytes) -> bytes:
    """What a compressed body holds."""
    return zlib.decompress(body, wbits=31)
