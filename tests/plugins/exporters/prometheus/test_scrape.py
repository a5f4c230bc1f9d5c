"""Scrapes over real sockets, on both servers: who is answered, in which form, and what one who does not read costs the others."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from pipeline.serving import Listener
from plugins.exporters.prometheus.exposition import Format
from tests.plugins.exporters.prometheus.otlp import Exposed, gauge, number
from tests.plugins.exporters.prometheus.reading import read
from tests.plugins.receivers.wire import Answer, connected, exchange
from tests.running import in_use, until

pytestmark = pytest.mark.anyio

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(params=["hypercorn", "uvicorn"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _nothing_to_look_into(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever scrapers do, the log shows no traceback; uvicorn says in a line whom it cuts off."""
    yield
    found = [record for record in caplog.get_records("call") if record.exc_info]
    assert [record.getMessage() for record in found] == []


@asynccontextmanager
async def served(server: str, **options: Any) -> AsyncIterator[tuple[Exposed, int]]:
    """An exporter that listens, and its port. At the end nothing of it is left."""
    tasks, used = len(asyncio.all_tasks()), in_use()
    exposed = Exposed(host="127.0.0.1", port=0, server=server, **options)
    await exposed.exporter.start()
    ((config, app),) = exposed.host.listening
    listener = Listener(config, app)
    await listener.start(1)
    try:
        yield exposed, listener.address[1]
    finally:
        await listener.stop()
        await until(lambda: len(asyncio.all_tasks()) == tasks and in_use() <= used + THREADS)


THREADS = 2
"""Of the pool in which a rendering is packed, and the end of its queue: they stay."""


def ask(*headers: str, line: str = "GET /metrics HTTP/1.1") -> bytes:
    return "\r\n".join([line, "Host: test", *headers, "", ""]).encode()


async def scrape(port: int, *headers: str, line: str = "GET /metrics HTTP/1.1") -> Answer:
    """The answer to a scrape with these headers."""
    async with connected(port) as wire:
        await wire.send(ask(*headers, line=line))
        return await wire.answer(head=line.startswith("HEAD"))


async def test_the_format_is_negotiated(server: str) -> None:
    async with served(server) as (exposed, port):
        await exposed.take(gauge("a", 1.0))
        text = await scrape(port)
        openmetrics = await scrape(port, f"Accept: {OPENMETRICS};q=0.5,*/*;q=0.1")
    assert text.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert openmetrics.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert read([text.body], Format.TEXT) == read([openmetrics.body], Format.OPENMETRICS) == {("a", frozenset()): 1}
    assert {"Accept", "Accept-Encoding"} == set(text.headers["vary"].split(", "))


async def test_gzip_is_used_for_those_who_ask_for_it(server: str) -> None:
    async with served(server) as (exposed, port):
        await exposed.take(gauge("a", *[number(index, {"k": str(index)}) for index in range(20_000)]))
        plain, packed, again = await scrape(port), await scrape(port, "Accept-Encoding: gzip"), await scrape(port)
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(packed.body) == plain.body == again.body
    assert len(packed.body) < len(plain.body) / 3


@pytest.mark.parametrize("header", [[], ["Accept-Encoding: gzip"], [f"Accept: {OPENMETRICS}"]])
async def test_head_is_answered_as_get_without_the_body(server: str, header: list[str]) -> None:
    async with served(server) as (exposed, port), connected(port) as wire:
        await exposed.take(gauge("a", *[number(index, {"k": str(index)}) for index in range(5000)]))
        await wire.send(ask(*header, line="HEAD /metrics HTTP/1.1"))
        head = await wire.answer(head=True)
        await wire.send(ask(*header))
        got = await wire.answer()
    assert head.status == got.status == 200
    same = ("content-type", "content-length", "content-encoding", "vary")
    assert [head.headers.get(name) for name in same] == [got.headers.get(name) for name in same]
    assert int(head.headers["content-length"]) == len(got.body)


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        ("GET / HTTP/1.1", 404, b"not found (must be /metrics)\n"),
        ("GET /metrics/ HTTP/1.1", 404, b"not found (must be /metrics)\n"),
        ("POST / HTTP/1.1", 404, b"not found (must be /metrics)\n"),
        ("DELETE /metrics HTTP/1.1", 405, b"method not allowed (must be GET or HEAD)\n"),
        ("GET /metrics?x=y HTTP/1.1", 200, b""),
    ],
)
async def test_there_is_nothing_but_get_metrics(server: str, line: str, status: int, body: bytes) -> None:
    async with served(server) as (_, port):
        answer = await exchange(port, ask(line=line))
        assert (answer.status, answer.body) == (status, body)
        assert answer.headers.get("allow") == ("GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Authorization: Bearer schlüssel", 200),
        ("Authorization: bearer  schlüssel ", 200),
        ("X-API-Key: schlüssel", 200),
        ("X-API-Key: schlüsse", 401),
        ("X-API-Key: ", 401),
        ("Authorization: Basic schlüssel", 401),
        ("Authorization: Bearer", 401),
        ("Authorization: Bearer schlüssel2", 401),
        ("Cookie: schlüssel", 401),
    ],
)
async def test_with_a_key_only_who_presents_it_may_scrape(server: str, header: str, status: int) -> None:
    async with served(server, key="schlüssel") as (exposed, port):
        await exposed.take(gauge("a", 1.0))
        answer = await exchange(port, ask(header))
        assert answer.status == status
        if status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert b"a 1" not in answer.body


async def test_a_scrape_is_503_until_nobody_was_behind_once(server: str) -> None:
    async with served(server) as (exposed, port):
        await exposed.take(gauge("a", 1.0))
        exposed.host.behind = ["series"]
        for _ in range(2):
            answer = await scrape(port)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert b"a 1" not in answer.body
        exposed.host.behind = []
        assert (await scrape(port)).status == 200
        exposed.host.behind = ["series"]
        assert (await scrape(port)).body == b"# TYPE a gauge\na 1.0\n"
        assert exposed.reading("prometheus_scrapes_total") == 2


async def test_a_hundred_scrapers_at_once_share_a_few_renderings(server: str) -> None:
    async with served(server) as (exposed, port):
        await exposed.take(gauge("a", *[number(index, {"k": str(index)}) for index in range(20_000)]))
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30) as client:
            answers = await asyncio.gather(*[client.get("/metrics") for _ in range(100)])
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert exposed.reading("prometheus_scrapes_total") == 100
        assert exposed.renderings() <= 10


async def test_what_was_taken_before_a_scrape_is_in_it_however_many_scrape(server: str) -> None:
    async with served(server) as (exposed, port), anyio.create_task_group() as tasks:
        for value in range(50):
            await exposed.take(gauge("a", float(value)))
            tasks.start_soon(scrape, port)
            assert (await scrape(port)).body == b"# TYPE a gauge\na %.1f\n" % value


def slow(port: int) -> socket.socket:
    """A connection that asks and takes next to nothing in, since it never reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(ask())
    return client


@asynccontextmanager
async def with_slow_scrapers(server: str) -> AsyncIterator[tuple[Exposed, int]]:
    """An exporter with more to show than the buffers of a connection take, and three who ask for it and never read."""
    async with served(server, send_timeout=0.5) as (exposed, port):
        points = [number(index, {"k": str(index), "long": "x" * 500}) for index in range(20_000)]
        await exposed.take(gauge("a", *points))
        clients = [slow(port) for _ in range(3)]
        try:
            await until(lambda: exposed.reading("prometheus_scrapes_total") == 3)
            yield exposed, port
        finally:
            for client in clients:
                client.close()


async def test_scrapers_that_never_read_are_given_up_while_others_are_served(server: str) -> None:
    async with with_slow_scrapers(server) as (exposed, port):
        answer = await scrape(port)
        assert len(answer.body) == int(answer.headers["content-length"]) > 10_000_000
        await until(lambda: not exposed.exporter._app._sending)
        assert (await scrape(port)).body == answer.body


async def test_scrapers_that_never_read_keep_neither_connections_nor_tasks(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"pipeline.serving_{server}.UNREAD_SECONDS", 0.2)
    tasks, used = len(asyncio.all_tasks()), in_use()
    async with with_slow_scrapers(server):
        await until(lambda: in_use() <= used + 2 + 3)  # the listening sockets, and the scrapers' own ends
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 1)  # the server


async def test_scrapers_that_go_away_meanwhile_leave_nothing_behind(server: str) -> None:
    async with served(server) as (exposed, port):
        await exposed.take(
            gauge("a", *[number(index, {"k": str(index), "long": "x" * 500}) for index in range(20_000)])
        )
        for _ in range(5):
            slow(port).close()
        await until(lambda: exposed.reading("prometheus_scrapes_total") == 5)
        assert (await scrape(port)).status == 200
