"""Hypercorn as a server of `serving`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config

from pipeline.component import ASGIApp
from pipeline.config.fields import ListenerConfig
from pipeline.serving import HEADER_BYTES, IDLE_SECONDS, Server


def hypercorn_server(app: ASGIApp, sock: socket.socket, listener: ListenerConfig, grace: float) -> Server:
    """Serve `app` on a socket that listens. `grace` is how long requests in hand are given at the end, in seconds."""
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
        await serve(_draining(app), config, shutdown_trigger=ending.wait)

    return run, ending.set


def _draining(app: ASGIApp) -> ASGIApp:
    """An application that takes the rest of a body while the end of its answer is sent.

    Hypercorn closes a connection by putting a message into the same bounded queue that body chunks wait in. Whoever
    answered without reading a large body would leave that connection open for ever.
    """

    async def draining(scope: Any, receive: Any, send: Any) -> None:
        complete = scope["type"] != "http"

        async def receiving() -> Any:
            nonlocal complete
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        async def drain() -> None:
            while not complete:
                await receiving()

        async def sending(message: Any) -> None:
            if complete or message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
                return
            rest = asyncio.ensure_future(drain())
            try:
                await send(message)
            finally:
                rest.cancel()

        await app(scope, receiving, sending)

    return draining
