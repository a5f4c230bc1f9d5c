"""uvicorn with httptools as a server of `serving`, with a deadline and a limit for headers, which it has not of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from pipeline.guard import BUSY, HEADER_BYTES, IDLE_SECONDS, UNREAD_SECONDS, Guard
from pipeline.serving import Server

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
        timeout_keep_alive=IDLE_SECONDS,
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


class _Protocol(HttpToolsProtocol):
    """One connection. A header that does not end, in time or in size, closes it, and so does a client that does not read."""

    _unread: asyncio.TimerHandle | None = None
    _address: str | None = None
    _in_header = True
    _header_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, config: uvicorn.Config, server_state: ServerState, guard: Guard) -> None:
        super().__init__(config, server_state, {})
        self.logger = _connection_log
        self._guard = guard

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if self._guard.opened(address):
            self._address = address
            self._set_deadline()
        else:
            transport.write(BUSY)
            transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_header, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_header = False
        super().on_headers_complete()
        self.headers = []  # where the trailers go, which would pass for headers otherwise

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_header:
            self._clear_deadline()
            return
        self._header_bytes += len(data)
        if self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._guard.count("header")
            self.transport.write(STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
        elif self._deadline is None:
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

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._close_in_time()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
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
        self._deadline = None
        if getattr(self.cycle, "response_complete", True):  # None before the first request
            if self._header_bytes:
                self._guard.count("late")
            self.transport.close()
            self._close_in_time()
        else:  # this one is pipelined behind another, which is not answered yet
            self._set_deadline()

    def send_400_response(self, msg: str) -> None:
        self._guard.count("protocol")
        super().send_400_response(msg)
        self._close_in_time()

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for another protocol is answered in HTTP; not worth two lines of log."""
