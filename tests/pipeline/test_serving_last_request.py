"""Bytes behind a request change neither its answer nor the answer to the next one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.pipeline.test_serving_discard import listening
from tests.pipeline.test_serving_upgrade import SERVERS, Server

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("server", SERVERS)]

SECONDS = 20
BODY = b"abc"
REQUEST = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
NEXT = b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = {
    "HTTP/1.0": b"POST /1 HTTP/1.0\r\nContent-Length: 3\r\n\r\n" + BODY,
    "HTTP/1.0 with keep-alive": b"POST /1 HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\n" + BODY,
    "close": REQUEST + b"Connection: close\r\n\r\n" + BODY,
    "close, in chunks": b"POST /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
}
"""Requests after which no other is answered on their connection."""
BEHIND = {"an empty line": b"\r\n", "a request": NEXT, "noise": b"\0\xff\r\n\r\n", "much": b"x" * 200_000}


def answering(release: asyncio.Event) -> Callable[..., Awaitable[None]]:
    """An application that reads the body, waits for `release`, and answers 200 with the path and the body."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await release.wait()
        answer = b"%s %s." % (scope["path"].encode(), body)
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})

    return app


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("last", LAST.values(), ids=LAST)
@pytest.mark.parametrize("packets", ["one packet", "two packets"])
async def test_the_last_request_gets_its_own_answer(server: Server, last: bytes, behind: bytes, packets: str) -> None:
    pieces = (last + behind,) if packets == "one packet" else (last, behind)
    release = asyncio.Event()
    async with listening(server, answering(release)) as listener, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*listener.address)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, release.set)
        received = b""
        while not received.endswith(b"/1 abc."):
            more = await reader.read(65536)
            assert more, received
            received += more
        writer.transport.abort()
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200"]


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n\r\n", b"\n", b"\r\n" * 1000])
@pytest.mark.parametrize("step", [1, 3, 10_000])
async def test_empty_lines_before_a_request_are_no_request(server: Server, empty: bytes, step: int) -> None:
    whole = empty + REQUEST + b"\r\n" + BODY + empty + NEXT + empty
    if len(whole) > 10 * step and step < 10:
        whole = whole.replace(b"\r\n" * 1000, b"\r\n" * 20)
    release = asyncio.Event()
    release.set()
    async with listening(server, answering(release)) as listener, asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection(*listener.address)
        for start in range(0, len(whole), step):
            writer.write(whole[start : start + step])
            await asyncio.sleep(0.001)
        received = b""
        while not received.endswith(b"/2 ."):
            more = await reader.read(65536)
            assert more, received
            received += more
        writer.write(NEXT)
        while received.count(b"/2 .") < 2:
            more = await reader.read(65536)
            assert more, received
            received += more
        writer.transport.abort()
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200"] * 3
