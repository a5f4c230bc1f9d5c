"""Listening sockets, and the HTTP servers behind them.

A socket is bound here and handed to the server, so that a port that is taken is one clear line before anything runs. Both
servers are ended by asking them, never by cancelling: Hypercorn crashes then, and uvicorn would drop what it has in hand.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.component import ASGIApp
from pipeline.config.fields import ListenerConfig
from pipeline.errors import StartError

IDLE_SECONDS = 5
HEADER_BYTES = 16 * 1024
BACKLOG = 1024

_log = logging.getLogger("serving")


class Listener:
    """One address that is served until `stop`."""

    def __init__(self, config: ListenerConfig, app: ASGIApp) -> None:
        self.config = config
        self._app = _guarded(app)
        self._socket: socket.socket | None = None
        self._server: asyncio.Task[None] | None = None
        self._end: Callable[[], None] = lambda: None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the host and the port that it really has."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def start(self, grace: float) -> None:
        """Bind and serve. `grace` is how long requests in hand are given at the end, in seconds. Raises `StartError`."""
        self._check_certificate()
        self._socket = _bind(self.config.host, self.config.port)
        run, self._end = _SERVERS[self.config.server](self._app, self._socket, self.config, grace)
        self._server = asyncio.create_task(run(), name=f"{self.config.server} on {self.address[1]}")
        self._server.add_done_callback(self._ended)

    def _check_certificate(self) -> None:
        tls = self.config.tls
        if tls.certificate is None and tls.key is None:
            return
        if tls.certificate is None or tls.key is None:
            raise StartError("TLS needs both a certificate and its key", 78)
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise StartError(
                f"cannot use the certificate {tls.certificate} with the key {tls.key}: {error}", 78
            ) from None

    def _ended(self, server: asyncio.Task[None]) -> None:
        if not server.cancelled() and server.exception() is not None:
            _log.critical("the server on port %d ended", self.config.port, exc_info=server.exception())

    @property
    def failure(self) -> str | None:
        """Why the server does not serve, or None."""
        if self._server is not None and self._server.done():
            return "the server has ended"
        return None

    async def stop(self) -> None:
        """Take no new requests, answer those in hand, and close the socket. Safe twice and without `start`."""
        if self._server is not None:
            self._end()
            await asyncio.wait([self._server])
            self._server = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StartError(f"cannot listen on {host}: {error.strerror}") from None
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} on {host} is in use by another program") from None
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return sock


Run = Callable[[], Awaitable[None]]


def _hypercorn(
    app: ASGIApp, sock: socket.socket, listener: ListenerConfig, grace: float
) -> tuple[Run, Callable[[], None]]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{os.dup(sock.fileno())}"]
    config.errorlog = logging.getLogger("hypercorn")
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = IDLE_SECONDS
    config.graceful_timeout = grace
    config.shutdown_timeout = grace
    config.h11_max_incomplete_size = HEADER_BYTES
    config.alpn_protocols = ["http/1.1"]
    if listener.tls.certificate is not None:
        config.certfile, config.keyfile = str(listener.tls.certificate), str(listener.tls.key)
    ending = asyncio.Event()

    async def run() -> None:
        await serve(app, config, shutdown_trigger=ending.wait)  # type: ignore[arg-type]

    return run, ending.set


def _uvicorn(
    app: ASGIApp, sock: socket.socket, listener: ListenerConfig, grace: float
) -> tuple[Run, Callable[[], None]]:
    try:
        import uvicorn
    except ImportError:
        raise StartError("server uvicorn is not installed (pip install 'mcp-metrics-service[fast]')", 78) from None
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace)),
        ssl_certfile=listener.tls.certificate,
        ssl_keyfile=str(listener.tls.key) if listener.tls.key else None,
    )

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Leave signals alone: the service has its own handling."""
            yield

    server = Server(config)

    async def run() -> None:
        await server.serve(sockets=[sock.dup()])

    def end() -> None:
        server.should_exit = True

    return run, end


_SERVERS: dict[str, Any] = {"hypercorn": _hypercorn, "uvicorn": _uvicorn}


def _guarded(app: ASGIApp) -> ASGIApp:
    """What stands before every application, on either server: only HTTP, and no framing that two parties read differently."""

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            names = [name for name, _ in scope["headers"]]
            if b"transfer-encoding" in names and b"content-length" in names:
                await _refuse_framing(send)
            else:
                await app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    return guard


async def _refuse_framing(send: Any) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": b"both Content-Length and Transfer-Encoding\n"})
