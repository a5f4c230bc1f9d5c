"""Bytes that a client sends after the answer to a refused request are discarded unparsed, and the client sees the answer."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline import guard, serving_uvicorn
from pipeline.config.fields import ListenerConfig
from pipeline.serving import Listener
from tests.pipeline.test_serving_upgrade import SERVERS, Server
from tests.plugins.exporters.otlp.certificates import Authority

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("server", SERVERS)]

CHUNKS = b"1\r\nx\r\n" * 500_000
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
BODIES = {
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNKS),
    "length": (HEAD + b"Content-Length: 9000000\r\n\r\n", CHUNKS),
}
SECONDS = 20


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answer 401 without a look at the body."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def take(scope: Any, receive: Any, send: Any) -> None:
    """Answer 200 with the size of the body."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening(server: Server, app: Any, **config: Any) -> AsyncIterator[Listener]:
    listener = Listener(ListenerConfig(host="127.0.0.1", port=0, server=server, **config), app)
    await listener.start(1)
    try:
        yield listener
    finally:
        await listener.stop()


async def sent(listener: Listener, *pieces: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """Send all of it, whatever comes back meanwhile; then what came back until the connection was closed or is silent."""
    reader, writer = await asyncio.open_connection(*listener.address, ssl=tls)
    async with asyncio.timeout(SECONDS):
        with suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        received = await reader.read(65536)
    writer.transport.abort()
    return received


async def nobody_is_connected(listener: Listener) -> None:
    began = time.monotonic()
    while listener.guard.connections:
        assert time.monotonic() - began < SECONDS
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("secure", [False, True])
async def test_a_client_that_still_sends_sees_the_answer(
    tmp_path: Path, server: Server, body: str, *, secure: bool
) -> None:
    config, tls = {}, None
    if secure:
        certificate, key = Authority(tmp_path).sign("a", "IP:127.0.0.1")
        config = {"tls": {"certificate": str(certificate), "key": str(key)}}
        tls = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    async with listening(server, refuse, **config) as listener:
        received = await sent(listener, *BODIES[body], tls=tls)
        assert received.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in received.lower()
        assert received.endswith(b"\r\n\r\nno")
        await nobody_is_connected(listener)


async def test_a_body_in_many_chunks_is_read_whole(server: Server) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (b"x" * (n % 50 + 1) for n in range(20_000)))
    async with listening(server, take) as listener:
        size = sum(n % 50 + 1 for n in range(20_000))
        for ending in (b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n"):
            received = await sent(listener, BODIES["chunks"][0] + body + ending)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert received.endswith(b"\r\n%d" % size)


async def test_a_body_in_too_many_chunks_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_uvicorn, "CHUNKS", 1000)
    monkeypatch.setattr("pipeline.serving_hypercorn.CHUNKS", 1000)
    assert guard.CHUNKS > 10_000
    async with listening(server, take) as listener:
        head = BODIES["chunks"][0]
        assert (await sent(listener, head + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert (await sent(listener, head + b"1\r\nx\r\n" * 1001 + b"0\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
        await nobody_is_connected(listener)


async def test_requests_behind_a_body_in_chunks_have_their_turn(server: Server) -> None:
    one = BODIES["chunks"][0] + b"1\r\nx\r\n" * 3000 + b"0\r\n\r\n"
    async with listening(server, take) as listener:
        reader, writer = await asyncio.open_connection(*listener.address)
        writer.write(one * 5)
        async with asyncio.timeout(SECONDS):
            received = b""
            while received.count(b"\r\n\r\n3000") < 5:
                received += await reader.read(65536)
        writer.close()
        assert received.count(b"HTTP/1.1 200 ") == 5
