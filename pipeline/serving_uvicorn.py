"""uvicorn with httptools as a server of `serving`, with a deadline and a limit for headers, which it has not of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipeline.component import ASGIApp
from pipeline.config.fields import ListenerConfig
from pipeline.serving import HEADER_BYTES, IDLE_SECONDS, UNREAD_SECONDS, Server


def uvicorn_server(app: ASGIApp, sock: socket.socket, listener: ListenerConfig, grace: float) -> Server:
    """Serve `app` on a socket that listens. `grace` is how long requests in hand are given at the end, in seconds."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
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
    server = _Server(config)

    async def run() -> None:
        await server.serve(sockets=[sock.dup()])

    def end() -> None:
        server.should_exit = True

    return run, end


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the service has its own handling."""
        yield


class _Protocol(HttpToolsProtocol):
    """One connection. A header that does not end, in time or in size, closes it, and so does a client that does not read."""

    _unread: asyncio.TimerHandle | None = None
    _in_header = True
    _header_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._set_deadline()

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
            self.transport.write(STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
        elif self._deadline is None:
            self._set_deadline()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._clear_unread()
        super().resume_writing()

    def _clear_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_unread()
        self._clear_deadline()
        super().connection_lost(exc)

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(IDLE_SECONDS, self._too_slow)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if getattr(self.cycle, "response_complete", True):  # None before the first request
            self.transport.close()
        else:  # this one is pipelined behind another, which is not answered yet
            self._set_deadline()

    def _unsupported_upgrade_warning(self) -> None:
        """Whoever asks for another protocol is answered in HTTP; not worth two lines of log."""
