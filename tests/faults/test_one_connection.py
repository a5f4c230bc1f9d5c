"""What one connection can be made to cost: it is not kept by bytes that are no request, and a burst of requests is bounded."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.raw import connected, exchange, push, request, seconds_to_close, status
from tests.faults.test_bombs import MEGABYTE, memory_of
from tests.faults.test_hostile_inputs import SERVERS, Served, serving
from tests.faults.test_slow_clients import HEADER, SLACK

pytestmark = [pytest.mark.faults, pytest.mark.timeout(60), pytest.mark.parametrize("server", SERVERS)]

LINGER = 5
"""How long the rest of a body is waited for behind an answer, in seconds."""
HEALTH = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
UNSENT = request("POST /metrics HTTP/1.1", "Content-Length: 60000", key=None)
HOLDERS = {
    "line ends": (HEALTH, b"\r\n", HEADER),
    "the body of what was refused": (UNSENT, b"x", LINGER),
}
"""What is answered, what is sent now and then afterwards, and when the connection is closed at the latest."""
BURST = 10_000
CONNECTIONS = 2
GROWTH = 8 * MEGABYTE


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_answered_connection_is_not_kept_by_bytes_that_are_no_request(
    tmp_path: Path, server: str, holder: str
) -> None:
    first, then, seconds = HOLDERS[holder]
    with serving(tmp_path, server) as served, connected(served.port) as sock:
        began = time.monotonic()
        sock.sendall(first)
        assert sock.recv(65536).startswith(b"HTTP/1.1 ")
        while seconds_to_close(sock, 0.5) is None:
            assert time.monotonic() - began < seconds + SLACK
            with suppress(ConnectionError):
                sock.sendall(then)


def burst(served: Served) -> bytes:
    """Ten thousand requests at once; what is answered until the connection is closed."""
    received = b""
    with connected(served.port) as sock, suppress(ConnectionError):
        sock.sendall(HEALTH * BURST)
        while piece := sock.recv(65536):
            received += piece
    return received


def test_a_burst_of_requests_costs_little_memory(tmp_path: Path, server: str) -> None:
    with serving(tmp_path, server) as served:
        served.push()
        before = memory_of(served.pid)
        with ThreadPoolExecutor(CONNECTIONS) as clients:
            bursts = [clients.submit(burst, served) for _ in range(CONNECTIONS)]
            answers = [each.result() for each in bursts]
        assert all(each.startswith(b"HTTP/1.1 200") for each in answers)
        assert memory_of(served.pid, "VmHWM") - before < GROWTH
        served.push()


def test_requests_that_do_not_wait_for_answers_are_all_answered(tmp_path: Path, server: str) -> None:
    """Twenty with 20 KB of header together, cut within the last: each header is far below its limit."""
    one = request("GET /health HTTP/1.1", "X: " + "y" * 1000)
    with serving(tmp_path, server) as served, connected(served.port) as sock:
        sock.sendall(one * 20 + one[:-4])
        received = b""
        while received.count(b'"healthy"') < 20:
            piece = sock.recv(65536)
            assert piece, received[-300:]
            received += piece
        sock.sendall(one[-4:])
        while received.count(b'"healthy"') < 21:
            piece = sock.recv(65536)
            assert piece, received[-300:]
            received += piece
        assert received.count(b"HTTP/1.1 200") == 21


def test_what_was_sent_before_garbage_is_answered_as_it_was(tmp_path: Path, server: str) -> None:
    """A push that is stored is never answered 400, whatever came behind it in the same read."""
    with serving(tmp_path, server) as served:
        assert status(exchange(served.port, push() + b"\x00" * 100)) == 200
        assert served.counted()[1] == 1
