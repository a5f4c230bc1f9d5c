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
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio

from pipeline.component import ASGIApp
from pipeline.config.fields import ListenerConfig
from pipeline.errors import StartError

IDLE_SECONDS = 5
"""How long a connection may take to send the header of a request, the first or the next."""
HEADER_BYTES = 16 * 1024
"""How large that header may be; a server notices after the chunk that brought too much."""
UNREAD_SECONDS = 10
"""How long a connection may take none of what is sent to it before it is cut off; both servers would wait for ever."""
LINGER_SECONDS = 5
"""How long what a client still sends is read and thrown away after it was answered."""
TIMEOUT = 408
"""The status of a request whose body has been waited for already."""
BACKLOG = 1024

Server = tuple[Callable[[], Coroutine[Any, Any, None]], Callable[[], None]]
"""What serves until it is asked to end, and what asks it."""

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
        if tls.certificate is None or tls.key is None:
            return
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


def _hypercorn(app: ASGIApp, sock: socket.socket, listener: ListenerConfig, grace: float) -> Server:
    from pipeline.serving_hypercorn import hypercorn_server

    return hypercorn_server(app, sock, listener, grace)


def _uvicorn(app: ASGIApp, sock: socket.socket, listener: ListenerConfig, grace: float) -> Server:
    try:
        from pipeline.serving_uvicorn import uvicorn_server
    except ImportError:
        raise StartError("server uvicorn is not installed (pip install 'mcp-metrics-service[fast]')", 78) from None
    return uvicorn_server(app, sock, listener, grace)


_SERVERS: dict[str, Callable[[ASGIApp, socket.socket, ListenerConfig, float], Server]] = {
    "hypercorn": _hypercorn,
    "uvicorn": _uvicorn,
}


def _guarded(app: ASGIApp) -> ASGIApp:
    """What stands before every application, on either server: only HTTP, no framing that two parties read differently, and
    a target in the absolute form (RFC 9112, section 3.2.2) is its path."""

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if not scope["path"].startswith("/"):
                try:
                    scope["path"] = urlsplit(scope["path"]).path or "/"
                except ValueError:
                    await _refuse(400, b"the target is not a URL", send)
                    return
            names = [name for name, _ in scope["headers"]]
            if b"transfer-encoding" in names and (refusal := _framing_fault(scope["headers"])):
                await _refuse(*refusal, send)
            else:
                await _served(app, scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1003})

    return guard


async def _served(app: ASGIApp, scope: Any, receive: Any, send: Any) -> None:
    """Serve one request. What the application has not read of its body is thrown away, for a while, behind the answer.

    A client that is still sending when its connection is closed never sees the answer: the reset that its data causes comes
    first. And Hypercorn ends a request by way of the bounded queue that chunks of the body wait in, so that with nobody who
    takes them out, the connection would stay for ever.
    """
    complete = asyncio.Event()
    seconds: float = LINGER_SECONDS

    async def receiving() -> Any:
        message = await receive()
        if not message.get("more_body", False):
            complete.set()
        return message

    async def discard() -> None:
        while not complete.is_set():
            await receiving()

    async def sending(message: Any) -> None:
        nonlocal seconds
        if complete.is_set() or message.get("more_body", False):
            await send(message)
        elif message["type"] == "http.response.start":
            seconds = 0 if message["status"] == TIMEOUT else LINGER_SECONDS
            await send(message)
        else:
            await send({**message, "more_body": True})
            discarding = asyncio.ensure_future(discard())
            try:
                with anyio.move_on_after(seconds):
                    await complete.wait()
                await send({"type": "http.response.body"})
            finally:
                discarding.cancel()

    await app(scope, receiving, sending)


def _framing_fault(headers: Sequence[tuple[bytes, bytes]]) -> tuple[int, bytes] | None:
    if any(name == b"content-length" for name, _ in headers):
        return 400, b"both Content-Length and Transfer-Encoding"
    if [value.lower() for name, value in headers if name == b"transfer-encoding"] != [b"chunked"]:
        return 501, b"Transfer-Encoding must be chunked"
    return None


async def _refuse(status: int, message: bytes, send: Any) -> None:
    length = b"%d" % len(message)
    headers = [(b"content-type", b"text/plain"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": message})
