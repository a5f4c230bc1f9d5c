"""Receives events as JSON over HTTP, and serves the rest of the API on the same port.

What is answered with 200 is durable. The smallest YAML that works:

    receivers:
      http:
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from pipeline import (
    Access,
    ASGIApp,
    Boolean,
    ComponentConfig,
    Declaration,
    Duration,
    Host,
    Instrument,
    ListenerConfig,
    Receiver,
    Request,
    Response,
    Route,
    Signal,
    Size,
    StartError,
    hookimpl,
)
from plugins.receivers.http.openapi import PAGE_HEADERS, api_page, description, program_version
from plugins.receivers.http.pages import make_pages
from plugins.receivers.http.push import Push
from plugins.receivers.http.request_log import RequestLog
from plugins.receivers.http.traffic import Traffic

SERVICE = "metrics-collection"
CONFIGURATION = 78
"""EX_CONFIG of sysexits.h."""
TITLE = "MCP Metrics Collection Service"


class HttpConfig(ListenerConfig, ComponentConfig):
    """Where to listen, and what a request may be."""

    port: int = Field(8890, ge=0, le=65535)
    """The TCP port to bind; 0 takes a free one."""
    max_request_size: Size = 10_000_000
    """The largest body, in bytes, before and after decompression."""
    max_bytes_in_flight: Size = 0
    """How many bytes the bodies of all pushes together may hold in memory, packed and unpacked; past it a push is answered 503.
    0: eight times `max_request_size`. An upper bound within `service.memory_budget`, which counts decoded events as well."""
    body_timeout: Duration = 10.0
    """How long the body of a request may take to arrive, in seconds."""
    request_log_rate: int = Field(20, ge=0)
    """How many requests a second get a log line of their own; above that they are only counted."""
    docs: Boolean = True
    """Serve the description of the API for people at `/docs`."""


class HttpReceiver(Receiver[HttpConfig]):
    """Receives events as JSON over HTTP, and serves the rest of the API.

    The hot route is a bare ASGI callable; everything else is a Quart application.
    """

    gives_documents = True
    _app: ASGIApp

    def __init__(self, id: str, config: HttpConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._mounted: Sequence[Route] = ()
        self._traffic = Traffic()

    async def start(self) -> None:
        """Mount what the components offer, and listen."""
        self._mounted = self._routes_to_mount(self.config, self.host)
        self._app = self._make_app(self.config, self._mounted)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self._app(scope, receive, send)

        await self.host.listen(self, self.config, app)

    async def reload(self, config: HttpConfig, host: Host) -> Callable[[], None]:
        """Mount what the components will offer. Requests that have begun end as they began; sockets and connections stay."""
        mounted = self._routes_to_mount(config, host)
        app = self._make_app(config, mounted)

        def apply() -> None:
            self._app, self._mounted = app, mounted

        return apply

    def _make_app(self, config: HttpConfig, routes: Sequence[Route]) -> ASGIApp:
        lines = RequestLog(self.log, config.request_log_rate)
        push = Push(self.chain, config, self._traffic, self.log, lines)
        pages = make_pages(routes, self.chain, self._traffic, config.max_request_size, config.body_timeout, lines)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/metrics" and scope["method"] == "POST":
                await push(scope, receive, send)
            else:
                await pages(scope, receive, send)

        return app

    def _routes_to_mount(self, config: HttpConfig, host: Host) -> list[Route]:
        """Ours and those of other components. What needs a key is closed where nobody asks for one: our own is left out, but
        for the push itself, and another's is a mistake."""
        own = [
            route for route in self._own_routes(config) if route.access is not Access.KEY or self.chain.authenticates
        ]
        taken = {(route.method, route.path) for route in own}
        others = host.routes()
        for route in others:
            if route.access is not Access.PUBLIC and not self.chain.authenticates:
                reason = "needs a key, but the pipeline has no processor that asks for one (auth)"
                raise StartError(f"receivers.{self.id}: {route.path} {reason}", CONFIGURATION)
            if (route.method, route.path) in taken:
                raise StartError(f"receivers.{self.id}: {route.method} {route.path} is ours already", CONFIGURATION)
        return [*own, *others]

    def instruments(self) -> Sequence[Instrument]:
        """Requests and how long they took."""
        return self._traffic.instruments()

    def routes(self) -> Sequence[Route]:
        """The routes of docs/api.md that belong to no other component."""
        return self._own_routes(self.config)

    def _own_routes(self, config: HttpConfig) -> list[Route]:
        docs = [Route("GET", "/docs", Access.PUBLIC, self._docs, "This API, for people")] if config.docs else []
        return [
            Route("GET", "/", Access.PUBLIC, self._about, "What this service is, and where its endpoints are"),
            Route("POST", "/metrics", Access.INGEST, _hot, "Push metrics; 200 means that they are durable"),
            Route("GET", "/health", Access.PUBLIC, self._health, "Whether a push would be accepted now"),
            Route("GET", "/health/live", Access.PUBLIC, self._live, "Whether the process lives"),
            Route(
                "GET",
                "/health/ready",
                Access.PUBLIC,
                self._ready,
                "Whether a push would be accepted, and each component's state",
            ),
            Route("POST", "/flush", Access.KEY, self._flush, "Return when all that was accepted has been exported"),
            Route("GET", "/openapi.json", Access.PUBLIC, self._openapi, "This API, for programs"),
            *docs,
        ]

    async def _about(self, request: Request) -> Response:
        endpoints = {_endpoint_name(route): route.path for route in self._mounted if route.path != "/"}
        about = {"service": TITLE, "version": program_version(), "status": "running", "endpoints": endpoints}
        return Response(about)

    async def _health(self, request: Request) -> Response:
        accepting = self.host.health().accepting
        return Response(
            {"status": "healthy" if accepting else "unhealthy", "service": SERVICE}, 200 if accepting else 503
        )

    async def _live(self, request: Request) -> Response:
        return Response({"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        health = self.host.health()
        status = "ready" if health.accepting else "not ready"
        return Response({"status": status, "components": dict(health.components)}, 200 if health.accepting else 503)

    async def _flush(self, request: Request) -> Response:
        behind = await self.host.flush()
        if behind:
            message = f"Metrics flushed, but not by what cannot deliver now: {', '.join(behind)}"
            return Response({"status": "partial", "message": message})
        return Response({"status": "success", "message": "Metrics flushed to storage"})

    async def _openapi(self, request: Request) -> Response:
        return Response(description(self._mounted))

    async def _docs(self, request: Request) -> Response:
        page = api_page(description(self._mounted))
        return Response(page, headers=PAGE_HEADERS, content_type="text/html; charset=utf-8")


async def _hot(request: Request) -> Response:
    raise AssertionError("served by Push, before routing")


def _endpoint_name(route: Route) -> str:
    return (
        route.path.strip("/")
        .removesuffix(".json")
        .replace("/", "_")
        .replace("{", "")
        .replace("}", "")
        .replace("-", "_")
    )


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `http`."""
    return [Declaration("http", HttpReceiver, HttpConfig, gives=frozenset({Signal.EVENTS}))]
