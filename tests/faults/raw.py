"""Bytes to a port and what comes back, for clients that no library would be: blocking, with an address of their own."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from tests.running import KEY

PATIENCE = 20.0
"""Seconds; longer than any deadline of the service."""
GOOD = b'{"service":"test","metrics":[{"type":"custom","value":1}]}'


def request(line: str, *headers: str, body: bytes = b"", key: str | None = KEY) -> bytes:
    """A request with a host, a key, and these headers; no Content-Length that is not among them."""
    own = [f"X-API-Key: {key}"] if key else []
    return "\r\n".join([line, "Host: test", *own, *headers, "", ""]).encode("latin-1") + body


def push(body: bytes = GOOD, *headers: str, key: str | None = KEY, path: str = "/metrics") -> bytes:
    """A push of this body."""
    return request(f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", *headers, body=body, key=key)


def chunked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A push in chunks, as long as they come."""
    yield request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked")
    for chunk in chunks:
        yield b"%x\r\n%s\r\n" % (len(chunk), chunk)
    yield b"0\r\n\r\n"


@contextmanager
def connected(port: int, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection from that address of this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(source, 0)) as sock:
        yield sock


def answered(received: bytes) -> bool:
    """Whether these bytes hold a whole answer, other than 100."""
    head, ended, body = received.partition(b"\r\n\r\n")
    if not ended:
        return False
    if b" 100 " in head[:14]:
        return answered(body)
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return b"chunked" not in head.lower() or body.endswith(b"0\r\n\r\n")


def exchange(port: int, data: bytes | Iterable[bytes], source: str = "127.0.0.1") -> bytes:
    """Send until there is an answer; the answer, or what came before the connection was closed. Fails if neither happens."""
    with connected(port, source) as sock:
        received = b""
        sock.setblocking(False)
        poll = select.poll()
        poll.register(sock)
        pieces = iter([data] if isinstance(data, bytes) else data)
        waiting = memoryview(next(pieces))
        deadline = time.monotonic() + PATIENCE
        while not answered(received):
            assert time.monotonic() < deadline, f"neither answered nor closed: {received[:100]!r}"
            poll.modify(sock, select.POLLIN | (select.POLLOUT if waiting else 0))
            events = dict(poll.poll(1000)).get(sock.fileno(), 0)
            try:
                if events & ~select.POLLOUT:
                    piece = sock.recv(65536)
                    received += piece
                    if not piece:
                        break
                elif events:
                    waiting = waiting[sock.send(waiting) :] or memoryview(next(pieces, b""))
            except ConnectionError:
                with suppress(BlockingIOError, ConnectionError):
                    received += sock.recv(65536)
                break
        return received


def status(answer: bytes) -> int:
    """The status of an answer; 0 of a connection that was closed without one."""
    if answer.startswith(b"HTTP/1.1 100"):
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer.split(maxsplit=2)[1]) if answer else 0


def seconds_to_close(sock: socket.socket, limit: float) -> float | None:
    """How long until the other side closes, however much it sends before; None if it does not within `limit`."""
    began = time.monotonic()
    while (left := began + limit - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            if not sock.recv(65536):
                return time.monotonic() - began
        except ConnectionError:
            return time.monotonic() - began
        except TimeoutError:
            break
    return None
