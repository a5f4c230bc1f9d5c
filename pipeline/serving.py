"""Listening sockets, and the HTTP servers behind them.

A socket is bound here and handed to the server, so that a port that is taken is one clear line before anything runs. Both
servers are ended by asking them, never by cancelling: Hypercorn crashes then, and uvicorn would drop what it has in hand.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from pipeline.component import ASGIApp
from pipeline.config.fields import ListenerConfig
from pipeline.errors import StartError
from pipeline.guard import Guard, files_for_connections
from pipeline.permissions import warn_if_others_read

BACKLOG = 1024

Server = tuple[Callable[[], Coroutine[Any, Any, None]], Callable[[], None]]
"""What serves until it is asked to end, and what asks it."""

_log = logging.getLogger("serving")


class Listener:
    """One address that is served until `stop`."""

    def __init__(self, config: ListenerConfig, app: ASGIApp) -> None:
        self.config = config
        self.guard = Guard(config, app)
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
        if (possible := files_for_connections()) < self.guard.limit:
            _log.warning("only %d connections may be open at once: raise the limit of open files (ulimit -n)", possible)
            self.guard.limit = possible
        self._socket = _bind(self.config.host, self.config.port)
        run, self._end = _SERVERS[self.config.server](self.guard, self._socket, self.config, grace)
        self._server = asyncio.create_task(run(), name=f"{self.config.server} on {self.address[1]}")
        self._server.add_done_callback(self._ended)

    def _check_certificate(self) -> None:
        tls = self.config.tls
        if tls.certificate is None or tls.key is None:
            return
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.certificate, tls.key)
        except (OSError, ssl.SSLError) as error:
            raise StartError(
                f"cannot use the certificate {tls.certificate} with the key {tls.key}: {error}", 78
            ) from None
        warn_if_others_read(tls.key, _log)

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


def _hypercorn(guard: Guard, sock: socket.socket, listener: ListenerConfig, grace: float) -> Server:
    from pipeline.serving_hypercorn import hypercorn_server

    return hypercorn_server(guard, sock, listener, grace)


def _uvicorn(guard: Guard, sock: socket.socket, listener: ListenerConfig, grace: float) -> Server:
    try:
        from pipeline.serving_uvicorn import uvicorn_server
    except ImportError:
        raise StartError("server uvicorn is not installed (pip install 'mcp-metrics-service[fast]')", 78) from None
    return uvicorn_server(guard, sock, listener, grace)


_SERVERS: dict[str, Callable[[Guard, socket.socket, ListenerConfig, float], Server]] = {
    "hypercorn": _hypercorn,
    "uvicorn": _uvicorn,
}
