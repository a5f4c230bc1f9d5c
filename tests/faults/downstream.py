"""A collector that fails in one way after the other, until it is told to be well."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import anyio
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from tests.collector import http_collector, points_of
from tests.faults.oracle import Fact
from tests.running import free_port

WELL = "well"
ANSWERED = ("503", "429", "reset", "slow")
GONE = "gone"
PATIENCE = 30.0
"""Seconds until a way to fail is over that nobody has met."""
ALL_WAYS = 180.0
"""Seconds until somebody has met all of them."""
TIMEOUT = 2
"""Seconds that the service waits for an answer; a slow one may take longer."""


def held_port() -> socket.socket:
    """A port that nobody else gets while this socket is open, on which one may listen again and again."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", free_port()))
    return held


class Reset(web.StreamResponse):
    """The connection breaks in place of an answer."""

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        """Break it."""
        if request.transport is not None:
            request.transport.abort()
        return await super().prepare(request)


class Downstream:
    """Each way to fail lasts up to `longest` seconds, or until a request was answered so, and so do the times between them in which it
    takes everything."""

    def __init__(self, seed: str, longest: float) -> None:
        self._held = held_port()
        self._port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.failed: Counter[str] = Counter()
        """How often in which way: requests that were answered so, and absences."""
        self.arrived: Counter[Fact] = Counter()
        self._random = random.Random(seed)
        self._longest = longest
        self._mode = WELL
        self._answered = threading.Event()
        self._failed_in_each_way = threading.Event()
        self._recovered = threading.Event()
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Downstream:
        self._done = self._thread.submit(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._recovered.set()
        self._closed.set()
        self._thread.shutdown()
        self._held.close()
        self._done.result()

    def wait_until_it_failed_in_each_way(self) -> None:
        """There must be requests meanwhile."""
        assert self._failed_in_each_way.wait(ALL_WAYS), self.failed

    def recover(self) -> None:
        """Be well from now on."""
        self._recovered.set()

    def has(self, points: set[Fact]) -> bool:
        """Whether all of these have come."""
        return all(self.arrived[point] for point in points)

    def _run(self) -> None:
        with start_blocking_portal() as portal:
            while not self._recovered.is_set():
                self._listen(portal)
                self.failed[GONE] += 1
                self._last()
                if all(self.failed[mode] for mode in (*ANSWERED, GONE)):
                    self._failed_in_each_way.set()
            self._mode = WELL
            with portal.wrap_async_context_manager(http_collector(self._port)) as collector:
                collector.answer_http = self._answer
                self._closed.wait()

    def _listen(self, portal: BlockingPortal) -> None:
        """Fail in every way but that of not being there."""
        with portal.wrap_async_context_manager(http_collector(self._port)) as collector:
            collector.answer_http = self._answer
            for mode in self._random.sample(ANSWERED, len(ANSWERED)):
                for self._mode in (WELL, mode):
                    self._answered.clear()
                    self._last()
                    if not self._recovered.is_set():
                        self._answered.wait(PATIENCE)

    def _last(self) -> None:
        self._recovered.wait(self._random.uniform(0.2, self._longest))

    async def _answer(self, request: ExportMetricsServiceRequest) -> web.StreamResponse:
        mode = self._mode
        self.failed[mode] += 1
        self._answered.set()
        if mode in ("503", "429"):
            return web.Response(status=int(mode), headers={"Retry-After": "1"})
        if mode == "slow":
            await anyio.sleep(self._random.uniform(0.2, 1.5 * TIMEOUT))
        if mode != "reset" or self._random.random() < 0.5:  # taken, and yet the answer is lost
            self._take(request)
        return Reset() if mode == "reset" else web.Response(content_type="application/x-protobuf")

    def _take(self, request: ExportMetricsServiceRequest) -> None:
        for _, name, attributes, value, _ in points_of(request):
            labels = dict(attributes)
            self.arrived[labels.get("id"), labels.get("place"), name, value] += 1
