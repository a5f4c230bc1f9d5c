"""Clients that are slow on purpose: every connection ends at its deadline, and nobody else has to wait.

They come from other addresses of this machine than the good client, as attackers would. Every kind is also sent while there are many of
the others: a deadline that only holds when there is nothing to do is none.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from tests.faults.raw import GOOD, exchange, push, request, status
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_hostile_inputs import Served, is_ours, serving
from tests.running import until
from tests.scrapes import total

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(180, 600)), pytest.mark.anyio]

CLIENTS = sized(300, 2000)
SECONDS = sized(11, 60)
"""How long clients that were closed come back."""
HEADER, BODY, UNREAD = 5, 10, 10
"""Deadlines of the service, in seconds."""
SLACK = 1.5
ATTACKERS = [f"127.0.1.{n}" for n in range(1, 17)]
MANY = ("--set", "receivers.http.max_connections=4096", "--set", "receivers.http.max_connections_per_address=4096")

Kind = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A1: says nothing."""


async def slow_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A2: a byte of the header a second."""
    for byte in request("POST /metrics HTTP/1.1"):
        writer.write(bytes([byte]))
        await asyncio.sleep(1)


async def slow_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A3: a byte of the body a second."""
    writer.write(push()[: -len(GOOD)])
    for byte in GOOD:
        writer.write(bytes([byte]))
        await asyncio.sleep(1)


async def stalled_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A4: half of the body."""
    writer.write(push()[:-20])


async def huge_chunk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """B6: a chunk of more than any number of bits holds, on Hypercorn; uvicorn refuses it at once."""
    writer.write(request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", body=b"f" * 17 + b"\r\n" + push()))


KINDS: dict[Kind, tuple[float, set[int]]] = {
    silent: (HEADER, {0}),
    slow_header: (HEADER, {0, 408}),
    slow_body: (BODY, {408}),
    stalled_body: (BODY, {408}),
    huge_chunk: (BODY, {400, 408}),
}
"""By kind, when it is closed at the latest, and what it is answered; 0 for nothing."""


@dataclass
class Seen:
    """What became of slow clients."""

    late: list[str] = field(default_factory=list)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    good: list[float] = field(default_factory=list)


async def one(served: Served, kind: Kind, seen: Seen, source: str) -> None:
    """One slow client, until its connection is closed."""
    deadline, right = KINDS[kind]
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, local_addr=(source, 0))
    began = time.monotonic()
    acting = asyncio.ensure_future(kind(reader, writer))
    answer = b""
    try:
        async with asyncio.timeout(deadline + 3):
            # who goes on sending may be reset in the end: what came before that counts
            while piece := await reader.read(65536):
                answer += piece
    except (ConnectionError, TimeoutError):
        pass
    finally:
        acting.cancel()
        writer.close()
    seconds = time.monotonic() - began
    seen.answers[kind.__name__, status(answer)] += 1
    if seconds > deadline + SLACK or status(answer) not in right:
        seen.late.append(f"{kind.__name__}: {status(answer)} after {seconds:.1f} s")


async def coming_back(served: Served, kind: Kind, seen: Seen, source: str, until: float) -> None:
    """One after the other, but no more than one a second: who is refused at once would be a flood, and not slow."""
    while (began := time.monotonic()) < until:
        await one(served, kind, seen, source)
        await asyncio.sleep(began + 1 - time.monotonic())


async def good_ones(served: Served, seen: Seen) -> None:
    """A push every 50 ms, each on a connection of its own."""
    while True:
        began = time.monotonic()
        assert status(await asyncio.to_thread(exchange, served.port, push())) == 200
        seen.good.append(time.monotonic() - began)
        await asyncio.sleep(0.05)


async def slow_load(served: Served, clients: int, seconds: float) -> Seen:
    """So many slow clients of all kinds for so long, and a good one."""
    seen = Seen()
    until = time.monotonic() + seconds
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(good_ones, served, seen)
        async with anyio.create_task_group() as slow:
            for number in range(clients):
                kind = list(KINDS)[number % len(KINDS)]
                slow.start_soon(coming_back, served, kind, seen, ATTACKERS[number % len(ATTACKERS)], until)
                if number % 100 == 99:
                    await asyncio.sleep(0.05)  # what the backlog of a socket holds
        tasks.cancel_scope.cancel()
    return seen


@pytest.mark.alone
async def test_slow_clients_are_closed_at_their_deadline_and_hurt_nobody(tmp_path: Path, report: Report) -> None:
    at_once = anyio.CapacityLimiter(sized(2, 1))  # thousands of clients need a core for themselves
    async with anyio.create_task_group() as both:
        for server in ("hypercorn", "uvicorn"):
            folder = tmp_path / server
            folder.mkdir()
            both.start_soon(slow_clients_are_closed, folder, server, at_once, report)


async def slow_clients_are_closed(folder: Path, server: str, at_once: anyio.CapacityLimiter, report: Report) -> None:
    async with at_once:
        with serving(folder, server, *MANY) as served:
            await check_slow_load(served, folder, report)


async def check_slow_load(served: Served, folder: Path, report: Report) -> None:
    seen = await slow_load(served, CLIENTS, SECONDS)
    report(slow_clients=CLIENTS, closed=sum(seen.answers.values()), late=len(seen.late), good_pushes=len(seen.good))
    assert seen.late == []
    assert {kind for kind, _ in seen.answers} == {kind.__name__ for kind in KINDS}
    assert len(seen.good) > SECONDS * 5
    assert statistics.quantiles(seen.good, n=100)[98] < 0.25
    assert total(served.scrape(), "listener_refused_total", reason="late") >= CLIENTS // len(KINDS)
    await until(lambda: total(served.scrape(), "listener_connections", component="receiver/http") == 0)
    assert [line for line in (folder / "service.log").read_text().splitlines() if is_ours(line)] == []


@pytest.mark.alone
async def test_a16_who_never_reads_is_cut_off_however_little_waits_for_him(tmp_path: Path) -> None:
    async with anyio.create_task_group() as both:  # they do nothing but wait
        for server in ("hypercorn", "uvicorn"):
            folder = tmp_path / server
            folder.mkdir()
            both.start_soon(who_never_reads_is_cut_off, folder, server)


async def who_never_reads_is_cut_off(folder: Path, server: str) -> None:
    with serving(folder, server) as served:
        clients = []
        for number in (1, 3, 100):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            client.sendall(request("GET /openapi.json HTTP/1.1") * number)
            clients.append(client)
        began = time.monotonic()
        while total(served.scrape(), "listener_connections", component="receiver/http") > 0:
            assert time.monotonic() - began < HEADER + UNREAD + SLACK
            await asyncio.sleep(0.1)
        for client in clients:
            client.close()


@pytest.mark.alone
@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_a5_one_address_cannot_have_all_connections(tmp_path: Path, server: str) -> None:
    """Nor can all together have more than the limit; who comes too late hears so at once."""
    few = ("--set", "receivers.http.max_connections_per_address=20", "--set", "receivers.http.max_connections=50")
    with serving(tmp_path, server, *few) as served:
        idle = [await idle_from(served, "127.0.1.1") for _ in range(20)]
        assert status(exchange(served.port, push(), "127.0.1.1")) == 503
        assert status(exchange(served.port, push())) == 200
        idle += [await idle_from(served, source) for source in ("127.0.1.2", "127.0.1.3") for _ in range(15)]
        answer = exchange(served.port, push())
        assert status(answer) == 503
        assert b"retry-after: " in answer
        refused = served.scrape()
        assert total(refused, "listener_refused_total", reason="connections_of_address") == 1
        assert total(refused, "listener_refused_total", reason="connections") == 1
        for writer in idle:
            writer.close()
        began = time.monotonic()
        while total(served.scrape(), "listener_connections", component="receiver/http") > 0:
            assert time.monotonic() - began < 2
            await asyncio.sleep(0.02)
        assert status(exchange(served.port, push(), "127.0.1.1")) == 200


async def idle_from(served: Served, source: str) -> asyncio.StreamWriter:
    """A connection that says nothing."""
    _, writer = await asyncio.open_connection("127.0.0.1", served.port, local_addr=(source, 0))
    return writer


WRONG = '''
"""A service that is wrong on purpose: it waits for headers as long as it takes."""

from pipeline import hookimpl, serving_hypercorn

serving_hypercorn.IDLE_SECONDS = 60


@hookimpl
def declare_components():
    return []
'''


async def test_the_same_clients_find_a_service_that_waits(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    with serving(tmp_path, "hypercorn", "--plugins-dir", str(tmp_path / "plugins")) as served:
        seen = Seen()
        await one(served, silent, seen, ATTACKERS[0])
        assert seen.late != []
