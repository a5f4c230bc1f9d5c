"""HTTP/1.1 byte by byte, for tests of what no well-behaved client would send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio.abc import ByteStream

from tests.running import KEY

PUSH_BODY = b'{"service":"test","metrics":[{"type":"custom","value":1}]}'
PATIENCE = 20.0
"""Seconds; a server that does not do what a test waits for."""


def request(line: str, *headers: str, body: bytes = b"", key: str | None = KEY) -> bytes:
    """A request with a host, a key, and these headers; no Content-Length that is not among them."""
    own = [f"X-API-Key: {key}"] if key else []
    return "\r\n".join([line, "Host: test", *own, *headers, "", ""]).encode() + body


def push(*headers: str, line: str = "POST /metrics HTTP/1.1", key: str | None = KEY) -> bytes:
    """A good push of one metric."""
    return request(line, f"Content-Length: {len(PUSH_BODY)}", *headers, body=PUSH_BODY, key=key)


@dataclass(frozen=True)
class Answer:
    """One response. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection to a server."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._stream.send(data)

    async def end(self) -> None:
        """Send no more."""
        await self._stream.send_eof()

    async def answer(self, *, head: bool = False) -> Answer:
        """The next response; that to a HEAD request has no body."""
        with anyio.fail_after(PATIENCE):
            while b"\r\n\r\n" not in self._buffer:
                self._buffer += await self._stream.receive()
            header, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            first, *lines = header.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = 0 if head else int(headers.get("content-length", 0))
            while len(self._buffer) < length:
                self._buffer += await self._stream.receive()
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            return Answer(int(first.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        with anyio.fail_after(PATIENCE):
            try:
                while True:
                    self._buffer += await self._stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return self._buffer


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    """A connection to a port of this machine."""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        yield Wire(stream)


async def exchange(port: int, data: bytes) -> Answer:
    """The answer to these bytes."""
    async with connected(port) as wire:
        await wire.send(data)
        return await wire.answer()
