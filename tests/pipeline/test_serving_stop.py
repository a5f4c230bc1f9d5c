"""A stop in the very moment in which requests come on connections that idle: each is answered, or was never seen."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Literal

import anyio
import pytest

from pipeline.config.fields import ListenerConfig
from pipeline.serving import Listener

pytestmark = pytest.mark.anyio

CONNECTIONS = 40
REQUEST = b"POST /metrics HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}"


async def answered(sock: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    loop, came = asyncio.get_running_loop(), b""
    try:
        while data := await loop.sock_recv(sock, 4096):
            came += data
    except ConnectionResetError:
        pass
    return came


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_no_request_is_served_that_nobody_is_told_of(server: Literal["hypercorn", "uvicorn"], turns: int) -> None:
    served: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        served.append(scope["client"])
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    listener = Listener(ListenerConfig(host="127.0.0.1", port=0, server=server), app)
    await listener.start(2)
    loop = asyncio.get_running_loop()
    sockets = [socket.socket() for _ in range(CONNECTIONS)]
    try:
        for sock in sockets:
            sock.setblocking(False)
            await loop.sock_connect(sock, listener.address)
            await loop.sock_sendall(sock, REQUEST)
            assert (await loop.sock_recv(sock, 4096)).startswith(b"HTTP/1.1 200")
        served.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.stop)
            for _ in range(turns):
                await asyncio.sleep(0)
            for sock in sockets:
                sock.send(REQUEST)
            with anyio.fail_after(10):
                came = [await answered(sock) for sock in sockets]
        assert len(served) == sum(each.startswith(b"HTTP/1.1 200") for each in came)
        assert {each[:15] for each in came} <= {b"", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200 OK"}
    finally:
        for sock in sockets:
            sock.close()
        await listener.stop()
