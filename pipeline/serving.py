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
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from pipeline.component import ASGIApp
from pipeline.config.fields import ListenerConfig
from pipeline.errors import StartError
from pipeline.guard import Guard, files_for_connections
from pipeline.permissions import warn_if_others_read

BACKLOG = 1024

Server = tuple[Callable[[], Coroutine[Any, Any, None]], Callable[[float], None]]
"""What serves until it is asked to end, and what asks it, with how long requests in hand are given then, in seconds."""
CONFIGURATION = 78
"""EX_CONFIG of sysexits.h."""

_log = logging.getLogger("serving")


class Listener:
    """One address that is served until `stop`."""

    def __init__(self, config: ListenerConfig, app: ASGIApp) -> None:
        self.config = config
        self.guard = Guard(config, app)
        self.grace = 0.0
        """How long requests in hand are given at the end, in seconds."""
        self._tls: _LiveTLS | None = None
        self._socket: socket.socket | None = None
        self._server: asyncio.Task[None] | None = None
        self._end: Callable[[float], None] = lambda grace: None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the host and the port that it really has."""
        assert self._socket is not None
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def start(self, grace: float) -> None:
        """Bind and serve. `grace` is how long requests in hand are given at the end, in seconds. Raises `StartError`."""
        self.grace = grace
        context = server_context(self.config)
        self._tls = _LiveTLS(context) if context else None
        self._socket = _bind(self.config.host, self.config.port)
        run, self._end = _SERVERS[self.config.server](self.guard, self._socket, context)
        self._server = asyncio.create_task(run(), name=f"{self.config.server} on {self.address[1]}")
        self._server.add_done_callback(self._ended)

    def change(self, config: ListenerConfig) -> Callable[[], None]:
        """Read the certificate again. Gives what puts it in force, and the other settings, for connections and requests to come.

        What needs another socket or server must be as it was. Raises `StartError` for a certificate that cannot be used.
        """
        context = server_context(config)

        def apply() -> None:
            self.config = config
            self.guard.configure(config)
            if self._tls is not None and context is not None:
                self._tls.newest = context

        return apply

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
        self.guard.closing = True
        if self._socket is not None:  # first, else who connects now would wait for an answer until the server has ended
            self._socket.close()
            self._socket = None
        if self._server is not None:
            self._end(self.grace)
            await asyncio.wait([self._server])
            self._server = None


def share_files(listeners: Collection[Listener]) -> None:
    """Hold all listeners of the process together to the connections that the operating system lets it have open, each to its part.

    To be called when one has started or changed.
    """
    wanted = sum(each.config.max_connections for each in listeners)
    possible = files_for_connections()
    if possible < wanted:
        _log.warning("only %d connections may be open at once: raise the limit of open files (ulimit -n)", possible)
    for each in listeners:
        own = each.config.max_connections
        each.guard.limit = own if possible >= wanted else max(1, own * possible // wanted)


class _LiveTLS:
    """The certificate of a listener: a handshake that begins gets the newest, connections that are open keep theirs."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.newest = context
        context.sni_callback = self._choose  # called in every handshake, whether or not the client names a host

    def _choose(self, connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        connection.context = self.newest


def server_context(config: ListenerConfig) -> ssl.SSLContext | None:
    """TLS as a listener speaks it, with its certificate; None without one. Raises `StartError` for files that cannot be used."""
    certificate, key = config.tls.certificate, config.tls.key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With a password, be it a wrong one, a key that asks for one is an error: without, OpenSSL asks the terminal and waits.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        raise StartError(
            f"cannot use the certificate {certificate} with the key {key}: {error}", CONFIGURATION
        ) from None
    warn_if_others_read(key, _log)
    return context


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


def _hypercorn(guard: Guard, sock: socket.socket, tls: ssl.SSLContext | None) -> Server:
    from pipeline.serving_hypercorn import hypercorn_server

    return hypercorn_server(guard, sock, tls)


def _uvicorn(guard: Guard, sock: socket.socket, tls: ssl.SSLContext | None) -> Server:
    try:
        from pipeline.serving_uvicorn import uvicorn_server
    except ImportError:
        raise StartError("server uvicorn is not installed (pip install 'mcp-metrics-service[fast]')", 78) from None
    return uvicorn_server(guard, sock, tls)


_SERVERS: dict[str, Callable[[Guard, socket.socket, ssl.SSLContext | None], Server]] = {
    "hypercorn": _hypercorn,
    "uvicorn": _uvicorn,
}
