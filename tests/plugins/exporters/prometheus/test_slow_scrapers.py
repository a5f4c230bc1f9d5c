"""Scrapers that ask and never read, on real sockets: they cost little, hold up nobody, and are given up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import httpx
import pytest

from pipeline import ListenerConfig
from pipeline.serving import Listener
from plugins.exporters.prometheus.exposition import Format
from plugins.exporters.prometheus.scrape import MAX_SENDING, Renderings, ScrapeApp
from tests.running import in_use, until

pytestmark = pytest.mark.anyio

PIECES = [b"a 1\n" * 64 * 1024] * 40
"""10 MB: more than the buffers of a connection take."""
SCRAPERS = 3 * MAX_SENDING


class Scraped:
    """A port that is scraped, and how many of its answers are on their way."""

    def __init__(self, server: Literal["hypercorn", "uvicorn"], send_timeout: float) -> None:
        self.on_their_way = 0
        self._app = ScrapeApp(Renderings(self._freshen, self._write, lambda seconds: None), None, send_timeout)
        self.listener = Listener(ListenerConfig(host="127.0.0.1", port=0, server=server), self._serve)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.on_their_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.on_their_way -= 1

    async def _freshen(self) -> Sequence[str]:
        return ()

    async def _write(self, format: Format) -> Sequence[bytes]:
        return list(PIECES)


@asynccontextmanager
async def scraped(server: Literal["hypercorn", "uvicorn"], send_timeout: float) -> AsyncIterator[Scraped]:
    """It, and scrapers that never read."""
    one = Scraped(server, send_timeout)
    await one.listener.start(grace=1)
    stalled: list[socket.socket] = []
    try:
        for _ in range(SCRAPERS):
            sock = socket.socket()
            stalled.append(sock)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, one.listener.address)
            await asyncio.get_running_loop().sock_sendall(sock, b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
        yield one
    finally:
        for sock in stalled:
            sock.close()
        await one.listener.stop()


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_others_are_served_while_scrapers_do_not_read(server: Literal["hypercorn", "uvicorn"]) -> None:
    async with scraped(server, send_timeout=60) as one, httpx.AsyncClient() as client:
        with anyio.fail_after(10):
            answer = await client.get(f"http://127.0.0.1:{one.listener.address[1]}/metrics")
        assert answer.content == b"".join(PIECES)
        assert one.on_their_way > 0


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_a_scraper_that_does_not_read_is_given_up_in_time(server: Literal["hypercorn", "uvicorn"]) -> None:
    async with scraped(server, send_timeout=0.3) as one:
        await until(lambda: one.on_their_way > 0)
        await until(lambda: one.on_their_way == 0)


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_scrapers_that_do_not_read_leave_nothing_behind(server: Literal["hypercorn", "uvicorn"]) -> None:
    async with scraped(server, send_timeout=0.3) as one:
        await until(lambda: one.on_their_way > 0)
        await until(lambda: one.on_their_way == 0)
    before = in_use()
    async with scraped(server, send_timeout=0.3) as one:
        await until(lambda: one.on_their_way > 0)
        await until(lambda: one.on_their_way == 0)
    await until(lambda: in_use() <= before)
