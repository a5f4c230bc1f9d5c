"""Hypercorn as a server of `serving`: its handling of connections, with an accept loop of ours, and HTTP/1.1 only.

Hypercorn's own loop ends in an exception when requests are still in hand after the time for them, and its own connections change to
HTTP/2 for whoever asks, which no setting of it turns off.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from pipeline.guard import BUSY, CHUNKS, HEADER_BYTES, IDLE_SECONDS, UNREAD_SECONDS, Guard, assert_members
from pipeline.serving import BACKLOG, Server

_log = logging.getLogger("hypercorn")
assert_members(
    (H11Protocol, "handle _check_protocol _create_stream _send_error_response"),
    (TCPServer, "run protocol_send _close _read_data _initiate_server_close _idle_timeout"),
    (h11.Connection, "next_event receive_data trailing_data"),
    (ReceiveBuffer, "maybe_extract_lines maybe_extract_next_line maybe_extract_at_most _extract"),
)
_EMPTY_LINES = re.compile(rb"(?:\r?\n)*")


class _Lines(ReceiveBuffer):
    """What was received and not parsed yet. h11 joins folded lines, which RFC 9112, section 5.2, tells a server to refuse."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a complete header or trailer. Raises `RemoteProtocolError` if one is folded."""
        lines = super().maybe_extract_lines()
        if lines is not None and any(line.startswith((b" ", b"\t")) for line in lines):
            raise h11.RemoteProtocolError("a header line is folded")
        return lines

    def skip_empty_lines(self) -> bool:
        """Drop the empty lines in front of a request line (RFC 9112, section 2.2). Returns whether more must come to tell if there is
        one more."""
        match = _EMPTY_LINES.match(self._data)
        if match is not None and match.end():
            self._extract(match.end())
        return self._data == b"\r"


class _Parser(h11.Connection):
    """The parser of one connection."""

    _chunks = 0
    _receive_buffer: _Lines

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=HEADER_BYTES)
        self._receive_buffer = _Lines()

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next part of a request. Raises `RemoteProtocolError` also for a body of too many chunks."""
        if self.their_state is h11.MUST_CLOSE:
            # No request follows, and h11 would answer 400 in place of the last one (RFC 9112, section 9.6).
            self.discard()
        elif self.their_state is h11.IDLE and self._receive_buffer.skip_empty_lines():
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            if self._chunks > CHUNKS:
                raise h11.RemoteProtocolError("too many chunks", error_status_hint=413)
        elif isinstance(event, h11.Request):
            self._chunks = 0
        return event

    def discard(self) -> None:
        """Forget what was received and not parsed yet."""
        self._receive_buffer = _Lines()


class _Http11(H11Protocol):
    """What is said on one connection."""

    guard: Guard
    connection: _Parser
    closing = False
    """Whether nobody could be answered any more."""
    discarding = False
    """Whether further bytes are discarded."""
    wanted: asyncio.Event
    """Set when the application asks for the body of the last request, or answers without it."""

    async def handle(self, event: Event) -> None:
        """Handle received bytes, or the end of the connection."""
        if not (self.discarding and isinstance(event, RawData)):
            await super().handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1, whatever the client would rather have."""

    async def _create_stream(self, request: h11.Request) -> None:
        if self.closing:
            return
        if request.method.isupper():
            self.wanted = asyncio.Event()
            await super()._create_stream(_without_upgrade(request))
            if any(name == b"transfer-encoding" for name, _ in request.headers):
                # Chunks are expensive to parse, and those of a refused request are not needed.
                await self.wanted.wait()
        else:  # Hypercorn would make "post" a POST
            await self._send_error_response(400)
            await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        self.guard.count("header" if status_code == 431 else "protocol")
        await super()._send_error_response(status_code)


def _without_upgrade(request: h11.Request) -> h11.Request:
    """The same without `Upgrade`, which Hypercorn obeys (RFC 9110, section 7.8, lets a server ignore it)."""
    headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
    if len(headers) == len(request.headers):
        return request
    return h11.Request(method=request.method, target=request.target, headers=headers, http_version=request.http_version)


class _Connection(TCPServer):
    """One connection. Hypercorn would keep what the client has closed until the idle time is over, and for ever a client that
    does not read."""

    guard: Guard
    _http: _Http11
    _has_left = False

    async def run(self) -> None:
        """Serve it until it is closed."""
        try:
            sock = self.writer.get_extra_info("socket")
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup(self.loop) as tasks:
                self._task_group = tasks
                self._http = _Http11(
                    self.app,
                    self.config,
                    self.context,
                    tasks,
                    ConnectionState(self.state),
                    self.writer.get_extra_info("ssl_object") is not None,
                    client,
                    server,
                    self.protocol_send,
                )
                self._http.guard = self.guard
                self._http.connection = _Parser()
                self.protocol = self._http  # type: ignore[assignment]  # without the wrapper that changes protocols
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            with self._limited():
                await super().protocol_send(event)
        elif not (self._has_left and isinstance(event, Updated)):  # after its last answer, nobody need be waited for
            await super().protocol_send(event)

    async def _close(self) -> None:
        with self._limited():
            await super()._close()

    @contextmanager
    def _limited(self) -> Iterator[None]:
        late = self.loop.call_later(UNREAD_SECONDS, self._cut_off)
        try:
            yield
        finally:
            late.cancel()

    def _cut_off(self) -> None:
        self.guard.count("unread")
        self.writer.transport.abort()

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """The application of this connection."""
        scope["discard"] = self.discard
        wanted = self._http.wanted

        def receiving() -> Awaitable[Any]:
            wanted.set()
            return receive()  # type: ignore[no-any-return]

        try:
            await self.guard(scope, receiving, send)
        finally:
            wanted.set()

    def discard(self) -> None:
        """Discard all further bytes."""
        self._http.discarding = True
        self._http.wanted.set()
        self._http.connection.discard()
        self.guard.discarding.add(self.writer.transport, self.reader.feed_eof)  # type: ignore[arg-type]
        # A stream that paused the transport by itself would resume it as soon as its buffer is read.
        self.reader._paused = False  # type: ignore[attr-defined]

    async def _read_data(self) -> None:
        await super()._read_data()
        self._has_left = True
        await self.idle_task.stop()

    async def _initiate_server_close(self) -> None:
        if self._http.stream is not None:
            return  # a request has come meanwhile; its answer is the last
        self._http.closing = True
        if self._http.connection.trailing_data[0]:  # a part of a header
            self.guard.count("late")
        await super()._initiate_server_close()


def hypercorn_server(guard: Guard, sock: socket.socket, tls: ssl.SSLContext | None) -> Server:
    """Serve what `guard` guards on a socket that listens."""
    config = _config()
    ending: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    context = WorkerContext(None)
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("",))[0])
        if not guard.opened(address):
            writer.write(BUSY)
            writer.close()
            return
        loop = asyncio.get_running_loop()
        serving = _Connection(ASGIWrapper(guard), loop, config, context, {}, reader, writer)
        serving.app = ASGIWrapper(serving.serve)
        serving.guard = guard
        connection = loop.create_task(serving.run())
        connections.add(connection)

        def ended(connection: asyncio.Task[None]) -> None:
            guard.closed(address)
            guard.discarding.remove(writer.transport)  # type: ignore[arg-type]
            connections.discard(connection)
            if not connection.cancelled() and connection.exception() is not None:
                _log.error("a connection failed", exc_info=connection.exception())

        connection.add_done_callback(ended)

    async def run() -> None:
        server = await asyncio.start_server(
            accept,
            sock=sock.dup(),
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=IDLE_SECONDS if tls else None,
        )
        grace = await ending
        server.close()
        await context.terminated.set()
        if connections:
            _, late = await asyncio.wait(connections, timeout=grace)
            if late:
                _log.warning("%d connections were still busy after %g s, and are cut off", len(late), grace)
            for connection in late:
                connection.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    return run, ending.set_result


def _config() -> Config:
    config = Config()
    config.errorlog = _log
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = IDLE_SECONDS
    config.h11_max_incomplete_size = HEADER_BYTES
    return config
