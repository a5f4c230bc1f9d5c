"""Hypercorn as a server of `serving`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

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
        await serve(app, config, shutdown_trigger=ending.wait)

    return run, ending.set
