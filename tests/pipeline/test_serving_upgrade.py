"""`Upgrade` is ignored by both servers: the body is read by its framing, and the next request is the next request."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Literal

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline import serving_uvicorn
from pipeline.config.fields import ListenerConfig
from pipeline.serving import Listener

pytestmark = pytest.mark.anyio

Server = Literal["hypercorn", "uvicorn"]
SERVERS: tuple[Server, ...] = ("hypercorn", "uvicorn")
SECONDS = 10
FRAMINGS = ("length", "chunked", "none")
BODY = b"POST /smuggled HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"
"""A body that is a request, for a server that takes it for one."""
JAVA = (
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    "Upgrade: h2c",
)
UPGRADES = {
    "h2c": JAVA,
    "websocket": ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw=="),
    "unknown": ("UPGRADE: x/1, y/2", "connection: keep-alive, UPGRADE"),
    "without connection": ("Upgrade: h2c",),
    "connection only": ("Connection: Upgrade",),
}


class Echo:
    """An application that answers with the method, the path and the body, and remembers the paths."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer = f"<{scope['method']} {scope['path']} {body.decode()}>".encode()
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[tuple[Listener, Echo]]:
    """Such an application on a port."""
    app = Echo()
    listener = Listener(ListenerConfig(host="127.0.0.1", port=0, server=server), app)
    await listener.start(1)
    try:
        yield listener, app
    finally:
        await listener.stop()


def framed(framing: str, body: bytes) -> tuple[Sequence[str], bytes]:
    """The headers and the bytes of a body."""
    match framing:
        case "length":
            return [f"Content-Length: {len(body)}"], body
        case "chunked":
            half = len(body) // 2
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (body[:half], body[half:]) if each)
            return ["Transfer-Encoding: chunked"], chunks + b"0\r\nX-Trailer: 1\r\n\r\n"
        case _:
            return [], b""


def made(method: str, version: str, upgrade: Sequence[str], framing: str, path: str = "/first") -> bytes:
    """A request."""
    headers, body = framed(framing, BODY)
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: test", *upgrade, *headers, "", ""]).encode() + body


LAST = b"GET /last HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


async def answered(listener: Listener, pieces: Iterable[bytes]) -> bytes:
    """What comes back until the connection is closed. Each piece is read alone."""
    loop, received = asyncio.get_running_loop(), b""
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, listener.address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                await loop.sock_sendall(sock, piece)
                for _ in range(3):
                    await asyncio.sleep(0)
            async with asyncio.timeout(SECONDS):
                while data := await loop.sock_recv(sock, 65536):
                    received += data
        except ConnectionError:
            pass
    return received


def said(received: bytes) -> list[tuple[int, str]]:
    """Status and body of each answer."""
    answers = re.findall(rb"HTTP/1\.1 (\d+)[^\r]*\r\n(?:[^\r]+\r\n)*\r\n(<[^>]*>)?", received)
    assert len(answers) == received.replace(BODY, b"").count(b"HTTP/1.1 ")
    return [(int(status), body.decode()) for status, body in answers]


def expected(method: str, framing: str) -> str:
    return f"<{method} /first {BODY.decode() if framing != 'none' else ''}>"


def cut(data: bytes, *places: int) -> list[bytes]:
    """The data in pieces."""
    return [data[start:end] for start, end in itertools.pairwise([0, *places, len(data)])]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("server", SERVERS)
async def test_a_request_with_upgrade_has_one_answer_and_the_next_one_its_own(server: Server, upgrade: str) -> None:
    async with listening(server) as (listener, app):
        for method, framing in itertools.product(("GET", "POST", "PUT"), FRAMINGS):
            one = made(method, "1.1", UPGRADES[upgrade], framing)
            right = [(200, expected(method, framing))]
            header = one.index(b"\r\n\r\n") + 4
            for pieces in ([one + LAST], [one[:header], one[header:] + LAST], [one, LAST]):
                assert said(await answered(listener, pieces)) == [*right, (200, "<GET /last >")], (method, framing)
            assert said(await answered(listener, [one * 3 + LAST])) == [*right * 3, (200, "<GET /last >")]
            three = cut(one + LAST, header // 2, header + 3 if framing != "none" else header)
            assert said(await answered(listener, three)) == [*right, (200, "<GET /last >")]
        assert "/smuggled" not in app.paths


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("server", SERVERS)
async def test_it_does_not_matter_where_a_packet_ends(server: Server, framing: str) -> None:
    async with listening(server) as (listener, app):
        both = made("POST", "1.1", JAVA, framing) + LAST
        right = [(200, expected("POST", framing)), (200, "<GET /last >")]
        for place in range(1, len(both)):
            assert said(await answered(listener, cut(both, place))) == right, place
        assert said(await answered(listener, [bytes([byte]) for byte in both])) == right
        assert "/smuggled" not in app.paths


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("server", SERVERS)
async def test_a_request_of_http_1_0_with_upgrade_is_answered(server: Server, framing: str) -> None:
    async with listening(server) as (listener, app):
        one = made("POST", "1.0", JAVA, framing)
        header = one.index(b"\r\n\r\n") + 4
        for pieces in ([one], [one[:header], one[header:]], cut(one, 9, header)):
            answers = said(await answered(listener, pieces))
            assert answers == [(200, expected("POST", framing))]
        assert "/smuggled" not in app.paths


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("target", ["test:443", "http://test/first"])
@pytest.mark.parametrize("server", SERVERS)
async def test_the_body_of_connect_is_not_a_request(server: Server, target: str, framing: str) -> None:
    async with listening(server) as (listener, app):
        one = made("CONNECT", "1.1", (), framing, target) + LAST
        header = one.index(b"\r\n\r\n") + 4
        for pieces in ([one], [one[:header], one[header:]], cut(one, header + 2)):
            answers = said(await answered(listener, pieces))
            assert [status for status, _ in answers] in ([400], [501])
        assert app.paths == []


@pytest.mark.parametrize("server", SERVERS)
async def test_any_requests_in_any_packets_are_answered_one_by_one(server: Server) -> None:
    random = Random(12)
    async with listening(server) as (listener, app):
        for _ in range(40):
            drawn = [
                (
                    random.choice(["GET", "POST", "PUT"]),
                    random.choice([(), *UPGRADES.values()]),
                    random.choice(FRAMINGS),
                )
                for _ in range(random.randrange(1, 5))
            ]
            data = b"".join(made(method, "1.1", upgrade, framing) for method, upgrade, framing in drawn) + LAST
            places = sorted(random.sample(range(1, len(data)), random.randrange(6)))
            right = [(200, expected(method, framing)) for method, _, framing in drawn]
            assert said(await answered(listener, cut(data, *places))) == [*right, (200, "<GET /last >")], (data, places)
        assert "/smuggled" not in app.paths


async def test_a_server_that_stops_reading_at_upgrade_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the second parser, llhttp takes a body in a later packet for a request."""
    monkeypatch.setattr(serving_uvicorn._Protocol, "_ignore_upgrade", lambda self: None)
    monkeypatch.setattr(serving_uvicorn._Protocol, "on_message_complete", HttpToolsProtocol.on_message_complete)
    async with listening("uvicorn") as (listener, app):
        one = made("POST", "1.1", JAVA, "length")
        header = one.index(b"\r\n\r\n") + 4
        await answered(listener, [one[:header], one[header:] + LAST])
        assert "/smuggled" in app.paths
