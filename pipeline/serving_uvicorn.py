"""uvicorn with httptools as a server of `serving`, with the deadlines and limits that it has not of its own: for headers and whatever
else is no body, for requests that wait, for clients that do not read."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from pipeline.guard import BUSY, CHUNKS, HEADER_BYTES, IDLE_SECONDS, UNREAD_SECONDS, Guard, assert_members
from pipeline.serving import Server

PIPELINED = 100
"""How many requests of a connection may wait for the one before them to be answered."""
SMALL_BYTES = 1024
"""The largest read that is parsed as a whole, in bytes."""
SLICE_BYTES = 4096
"""Bytes of chunks that are parsed each time that the application asks for more."""
_HEADER_END = b"\r\n\r\n"

_connection_log = logging.getLogger("uvicorn.connection")
_connection_log.setLevel(logging.ERROR)  # not a line for every client that sends what is no HTTP; those are counted


def uvicorn_server(guard: Guard, sock: socket.socket, tls: ssl.SSLContext | None) -> Server:
    """Serve what `guard` guards on a socket that listens."""
    config = uvicorn.Config(
        guard,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Any byte puts this off: `_Protocol` has a deadline of its own, which is over before.
        timeout_keep_alive=2 * IDLE_SECONDS,
        ssl_context_factory=(lambda config, default: tls) if tls else None,
    )
    server = _Server(config, guard)

    async def run() -> None:
        await server.serve(sockets=[sock.dup()])

    def end(grace: float) -> None:
        config.timeout_graceful_shutdown = max(1, round(grace))
        server.should_exit = True

    return run, end


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, guard: Guard) -> None:
        super().__init__(config)
        self._guard = guard

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. uvicorn's own gives a client a minute for the handshake of TLS."""
        assert sockets is not None
        config = self.config
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                lambda: _Protocol(config, self.server_state, self._guard),
                sock=sock,
                ssl=config.ssl,
                ssl_handshake_timeout=IDLE_SECONDS if config.ssl else None,
            )
            for sock in sockets
        ]
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the service has its own handling."""
        yield


class _Flow(FlowControl):
    """Whether a connection is read and written. uvicorn would read more requests after every answer, however many wait."""

    def __init__(self, transport: asyncio.Transport, protocol: _Protocol) -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Called by an application that waits for a body, and after each answer."""
        if self._protocol.pipeline:
            return
        if self._protocol.has_held:
            self._protocol.feed_soon()
        else:
            super().resume_reading()


class _Enough(Exception):
    """Ends the parsing of what was read."""


_FRAMING = frozenset({b"connection", b"content-length", b"transfer-encoding"})
"""Headers that say how long a request is, and whether another may follow."""
_CLIENT_ERRORS = (_Enough, ValueError, httptools.HttpParserError)
"""Exceptions in callbacks of the parser that the bytes of the request cause; any other is an internal error."""


assert_members(
    (uvicorn.Server, "startup capture_signals"),
    (FlowControl, "pause_reading resume_reading"),
    (
        HttpToolsProtocol,
        "connection_made connection_lost data_received on_message_begin on_header on_headers_complete on_body"
        " on_message_complete on_response_complete pause_writing resume_writing _unset_keepalive_if_required",
    ),
    (httptools.HttpRequestParser, "feed_data get_http_version set_dangerous_leniencies should_upgrade"),
)


def _parser(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """A parser as uvicorn makes them."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class _Protocol(HttpToolsProtocol):
    """One connection. It is closed by the deadline if nothing is in hand, by a header that does not end or what is no better, and by
    a client that does not read."""

    _unread: asyncio.TimerHandle | None = None
    _address: str | None = None
    _in_header = False
    _loose = 0
    """Bytes that were read since a header was complete or a part of a body came: of headers, sizes of chunks, trailers."""
    _read_enough = False
    """Whether nothing that still comes is looked at."""
    _in_body = False
    """Whether the body of the last request is not complete."""
    _is_chunked = False
    """Whether that body, when it was not complete after the first read, comes in chunks."""
    _pieces = 0
    """How many pieces of that body came; each chunk is one."""
    _held: memoryview | None = None
    """What was read and is not parsed yet; the transport is paused meanwhile."""
    _feeding: asyncio.Handle | None = None
    _reading_on = False
    """Whether the parser reads a header that the application already has."""
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, config: uvicorn.Config, server_state: ServerState, guard: Guard) -> None:
        super().__init__(config, server_state, {})
        self.logger = _connection_log
        self._guard = guard

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport, self)
        address = self.client[0] if self.client else ""
        if self._guard.opened(address):
            self._address = address
            self._set_deadline()
        else:
            transport.write(BUSY)
            transport.close()

    @property
    def _in_hand(self) -> bool:
        """Whether a request is not answered yet."""
        return not getattr(self.cycle, "response_complete", True)  # None before the first request

    def data_received(self, data: bytes) -> None:
        """Parse it, but for what comes after enough was read. What is no part of a body must not go on for ever."""
        if self._read_enough:
            return
        self._unset_keepalive_if_required()
        if self._held is not None:
            self._held = memoryview(b"".join((self._held, data)))
        elif len(data) <= SMALL_BYTES or (self._in_body and not self._is_chunked):
            self._parse(data)
            if self._in_body:
                self._go_on()
        else:
            self._parse_some(data)

    def _parse_some(self, data: bytes) -> None:
        """Parse up to the body: an application that refuses the request does not ask for it.

        A body of a known length costs nothing to parse; ten thousand chunks of a byte each take longer than a push may wait.
        """
        size = SLICE_BYTES
        if not self._in_body:
            size = data.find(_HEADER_END, 0, HEADER_BYTES) + len(_HEADER_END)
            size = size if size >= len(_HEADER_END) else SLICE_BYTES
        self._parse(data[:size])
        rest = memoryview(data)[size:]
        if self._in_body and not self._is_chunked and rest:
            self._parse(rest)
        elif rest:
            self._held = rest
            self.flow.pause_reading()
        self._go_on()

    @property
    def has_held(self) -> bool:
        """Whether bytes that were read wait to be parsed."""
        return self._held is not None

    def feed_soon(self) -> None:
        """Parse more of them when others have had their turn."""
        if self._feeding is None:
            self._feeding = self.loop.call_soon(self._feed_held)

    def _feed_held(self) -> None:
        self._feeding = None
        held = self._held
        if held is None or self._read_enough:
            return
        size = len(held) if self._in_body and not self._is_chunked else SLICE_BYTES
        self._held = held[size:] if len(held) > size else None
        self._parse(held[:size])
        self._go_on()

    def _go_on(self) -> None:
        """Parse or read more if the application waits for it, or if no request is in progress."""
        if self._read_enough or self.transport.is_closing():
            self._held = None
            return
        is_taken = not self._in_body or not self.cycle.message_event.is_set()
        if self._held is not None:
            if is_taken and (self._in_body or not self._in_hand):
                self.feed_soon()
        elif self._in_body and self._is_chunked and not is_taken:
            self.flow.pause_reading()
        elif is_taken:
            self.flow.resume_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        self._loose += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._cannot_parse(error)
        if self._in_body and not self._is_chunked:
            self._is_chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        if self._loose > HEADER_BYTES:
            self._read_no_more("header", 431)

    def discard(self) -> None:
        """Discard all further bytes."""
        self._read_enough = True
        self._held = None
        self._guard.discarding.add(self.transport, self.transport.close)

    def _feed(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                self._ignore_upgrade()

    def _ignore_upgrade(self) -> None:
        """Continue behind a header after which llhttp expects another protocol: `Upgrade`, or CONNECT.

        RFC 9110, section 7.8, lets a server ignore `Upgrade`, but llhttp cannot: it takes the body for that protocol, or for the next
        request. So another parser gets the same header without what made llhttp stop, silently, and then all that follows.
        """
        version = self.parser.get_http_version().encode()
        lines = [name + b": " + value for name, value in self.headers if name in _FRAMING]
        self.parser = _parser(self)
        self._reading_on = True
        try:
            self.parser.feed_data(b"\r\n".join([b"POST / HTTP/" + version, *lines, b"", b""]))
        finally:
            self._reading_on = False

    def on_message_begin(self) -> None:
        if not self._reading_on:
            super().on_message_begin()
            self.scope["discard"] = self.discard  # type: ignore[typeddict-unknown-key]
            self._in_header = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep it, unless it is a trailer: that would pass for a header, and there may be any number of them."""
        if self._in_header:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin with the request, or let it wait for its turn. One read may hold thousands of them."""
        if self._reading_on:
            return
        self._in_header, self._loose = False, 0
        self._in_body, self._is_chunked, self._pieces = True, False, 0
        if len(self.pipeline) == PIPELINED:
            self._read_no_more("pipelined")
            raise _Enough
        self._clear_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        self._pieces += 1
        if self._pieces > CHUNKS and self._is_chunked:
            self._read_no_more("chunks", 413)
            raise _Enough
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser knows no body here; `_ignore_upgrade` has it read
        self._loose, self._in_body = 0, False
        super().on_message_complete()

    def _cannot_parse(self, error: httptools.HttpParserError) -> None:
        """Answer what the parser refuses, or what a callback raised."""
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        if cause is None or isinstance(cause, _CLIENT_ERRORS):
            self._read_no_more("protocol")
        else:
            self.logger.error("cannot read a request: %r", cause)
            self._read_no_more("error", 503)

    def _read_no_more(self, reason: str, status: int = 400) -> None:
        """What was read last is wrong. What was asked before it is answered, and the last answer says that the connection is closed."""
        if self._read_enough or self.transport.is_closing():
            return
        self._read_enough = True
        self._guard.count(reason)
        if self._in_hand and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        # Else it is wrong itself, and answered, unless that would be taken for the answer to another.
        if not self._in_hand or not (self.pipeline or self.cycle.response_started):
            self.transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()
        self._close_in_time()

    def on_response_complete(self) -> None:
        """Go on with the next request. If there is none, it has until the deadline to come, whatever bytes come instead."""
        super().on_response_complete()
        if not self._in_hand and self.cycle.more_body:  # it was waited for long enough
            self.transport.close()
        if self.transport.is_closing():
            self._close_in_time()
        elif not self._in_hand:
            self._set_deadline()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._cut_off)

    def _cut_off(self) -> None:
        self._guard.count("unread")
        self.transport.abort()

    def resume_writing(self) -> None:
        self._clear_unread()
        super().resume_writing()
        self._close_in_time()

    def _close_in_time(self) -> None:
        """A connection that is being closed waits until the client has taken what was written: not for ever."""
        if self.transport.is_closing() and self._unread is None:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self._cut_off)

    def _clear_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._held = None
        self._guard.discarding.remove(self.transport)
        self._clear_unread()
        self._clear_deadline()
        if self._address is not None:
            self._guard.closed(self._address)

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(IDLE_SECONDS, self._too_slow)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if self._in_header:
            self._guard.count("late")
        self.transport.close()
        self._close_in_time()
