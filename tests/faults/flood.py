"""Clients that send without end, as a program of its own: `python -m tests.faults.flood PORT CLIENTS SECONDS KIND`.

Each connects again when it is closed. The program takes what the processor has left, since attackers are on other machines. It prints how
many connections there were, and how many bytes it sent, as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import sys
import time
from contextlib import suppress

from tests.faults.raw import request
from tests.running import KEY

CHUNKED = request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", key=None)
TINY = b"1\r\nx\r\n" * 10_000
KINDS: dict[str, tuple[bytes, bytes]] = {
    "chunks": (CHUNKED, TINY),
    "chunks for a page": (request("POST /flush HTTP/1.1", "Transfer-Encoding: chunked", key=None), TINY),
    "extensions": (CHUNKED, (b"1;" + b"a=b;" * 100 + b"\r\nx\r\n") * 100),
    "trailers": (CHUNKED + b"0\r\n", b"A: b\r\n" * 10_000),
    "length": (request("POST /metrics HTTP/1.1", "Content-Length: 9000000000", key=None), b"x" * 60_000),
    "short length": (request("POST /metrics HTTP/1.1", "Content-Length: 60000", key=None), b"x"),
    "header": (b"POST /metrics HTTP/1.1\r\n", b"A"),
    "chunks with a key": (request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", key=KEY), TINY),
}
"""The first bytes of each client, and the bytes that it repeats."""

CONNECTS = 250
"""How many clients begin in each second: more at once would be a flood of connections, which is another matter."""


class Client:
    """One client."""

    def __init__(self, port: int, source: str, begin: bytes, then: bytes) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((source, 0))
        self.socket.connect_ex(("127.0.0.1", port))
        self._waiting, self._then = memoryview(begin), then

    def send(self) -> int:
        """Send what fits. Raises `OSError` when the connection is over."""
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        try:
            sent = self.socket.send(self._waiting)
        except BlockingIOError:
            return 0
        self._waiting = self._waiting[sent:] or memoryview(self._then)
        return sent


def flood(port: int, clients: int, seconds: float, kind: str) -> dict[str, int]:
    """So many clients for so long."""
    begin, then = KINDS[kind]
    poll, open_ones, sent, connections = select.epoll(), {}, 0, 0

    def connect(number: int) -> None:
        nonlocal connections
        client = Client(port, f"127.0.1.{1 + number % 16}", begin, then)
        open_ones[client.socket.fileno()] = (client, number)
        poll.register(client.socket, select.EPOLLOUT)
        connections += 1

    began = time.monotonic()
    until = began + seconds
    while (now := time.monotonic()) < until:
        while connections < min(clients, (now - began) * CONNECTS):
            connect(connections)
        for descriptor, _ in poll.poll(0.05):
            client, number = open_ones[descriptor]
            try:
                sent += client.send()
            except OSError as failed:
                if failed.errno == errno.ENOTCONN:
                    continue
                with suppress(OSError):
                    poll.unregister(descriptor)
                client.socket.close()
                del open_ones[descriptor]
                connect(number)
    for client, _ in open_ones.values():
        client.socket.close()
    return {"connections": connections, "bytes": sent}


if __name__ == "__main__":
    os.nice(19)
    sys.stdout.write(json.dumps(flood(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])))
