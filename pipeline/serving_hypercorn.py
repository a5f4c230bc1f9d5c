"""Hypercorn as a server of `serving`: its handling of connections, with an accept loop of ours.

Hypercorn's own loop ends in an exception when requests are still in hand after the time for them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, RawData

from pipeline.component import ASGIApp
from pipeline.config.fields import ListenerConfig
from pipeline.serving import BACKLOG, HEADER_BYTES, IDLE_SECONDS, UNREAD_SECONDS, Server

_log = logging.getLogger("hypercorn")


class _Connection(TCPServer):
    """One connection. Hypercorn would keep what the client has closed until the idle time is over, and for ever a client that
    does not read."""

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            with self._limited():
                await super().protocol_send(event)
        else:
            await super().protocol_send(event)

    async def _close(self) -> None:
        with self._limited():
            await super()._close()

    @contextmanager
    def _limited(self) -> Iterator[None]:
        late = self.loop.call_later(UNREAD_SECONDS, self.writer.transport.abort)
        try:
            yield
        finally:
            late.cancel()

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


def hypercorn_server(app: ASGIApp, sock: socket.socket, listener: ListenerConfig, grace: float) -> Server:
    """Serve `app` on a socket that listens. `grace` is how long requests in hand are given at the end, in seconds."""
    config = _config(listener)
    ending = asyncio.Event()
    context = WorkerContext(None)
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        connection = loop.create_task(_Connection(ASGIWrapper(app), loop, config, context, {}, reader, writer).run())
        connections.add(connection)
        connection.add_done_callback(ended)

    def ended(connection: asyncio.Task[None]) -> None:
        connections.discard(connection)
        if not connection.cancelled() and connection.exception() is not None:
            _log.error("a connection failed", exc_info=connection.exception())

    async def run() -> None:
        tls = config.create_ssl_context()
        server = await asyncio.start_server(
            accept,
            sock=sock.dup(),
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=IDLE_SECONDS if tls else None,
        )
        await ending.wait()
        server.close()
        await context.terminated.set()
        if connections:
            _, late = await asyncio.wait(connections, timeout=grace)
            if late:
                _log.warning("%d connections were still busy after %g s, and are cut off", len(late), grace)
            for connection in late:
                connection.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    return run, ending.set


def _config(listener: ListenerConfig) -> Config:
    config = Config()
    config.errorlog = _log
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = IDLE_SECONDS
    config.h11_max_incomplete_size = HEADER_BYTES
    config.h2_max_header_list_size = HEADER_BYTES
    config.alpn_protocols = ["http/1.1"]
    if listener.tls.certificate is not None:
        config.certfile, config.keyfile = str(listener.tls.certificate), str(listener.tls.key)
    return config
