"""What only bytes on a socket show: framing, pipelining, connections that are kept and that are closed. On both servers."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pipeline import Database
from pipeline.guard import IDLE_SECONDS
from plugins.extensions.api_keys.keys import new_key
from tests.plugins.receivers.wire import PUSH_BODY, connected, exchange, push, request
from tests.running import ADMIN_KEY, Running, in_use, running, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _nothing_to_look_into(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever clients do, the log shows no error of ours."""
    yield
    found = [record for record in caplog.get_records("call") if record.exc_info or record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in found] == []


async def stored(service: Running) -> int:
    """How many metrics have been stored; asking is a good request, too."""
    await service.flush()
    ((count,),) = service.rows()
    return int(count)


@asynccontextmanager
async def no_key_looked_up(service: Running) -> AsyncIterator[anyio.Semaphore]:
    """Requests with a key that is not known yet wait for as long."""
    looking_up: anyio.Semaphore = service.service.extension(Database)._reading  # type: ignore[attr-defined]
    readers = looking_up.value
    for _ in range(readers):
        await looking_up.acquire()
    try:
        yield looking_up
    finally:
        for _ in range(readers):
            looking_up.release()


async def test_a_connection_serves_many_pushes(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        async with connected(service.port) as wire:
            for _ in range(50):
                await wire.send(push())
                assert (await wire.answer()).status == 200
        assert await stored(service) == 50


async def test_what_could_not_be_kept_is_refused_before_its_body_comes(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        (journal,) = (each.journal for each in service.service.graph.pipelines if each.id == "events")
        journal.room.refusal = lambda *held: "the journal is full"  # type: ignore[method-assign]
        async with connected(service.port) as wire:
            await wire.send(request("POST /metrics HTTP/1.1", "Content-Length: 100"))
            assert (await wire.answer()).status == 503
        assert (await service.client.post("/flush")).status_code == 200, "what stores nothing is served"


async def test_pipelined_requests_are_answered_in_their_order(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        async with connected(service.port) as wire:
            ids = [f"request-{number}" for number in range(20)]
            bad = request("POST /metrics HTTP/1.1", "Content-Length: 1", "X-Request-ID: bad", body=b"{")
            await wire.send(b"".join(push(f"X-Request-ID: {id}") for id in ids) + bad + push("X-Request-ID: last"))
            answers = [await wire.answer() for _ in range(22)]
        assert [answer.status for answer in answers] == [*[200] * 20, 400, 200]
        assert [json.loads(answer.body)["request_id"] for answer in answers] == [*ids, "bad", "last"]
        assert await stored(service) == 21


async def test_a_body_may_come_in_chunks(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in PUSH_BODY) + b"0\r\n\r\n"
        async with connected(service.port) as wire:
            for data in (chunks, chunks):
                await wire.send(request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", body=data))
                assert (await wire.answer()).status == 200
        assert await stored(service) == 2


@pytest.mark.parametrize(
    "framing",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding : chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 6"],
        ["Content-Length: +5"],
        ["Content-Length: -1"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5 5"],
        ["Content-Length: " + "9" * 30],
        ["Content-Length: " + "9" * 5000],
    ],
    ids=lambda framing: "; ".join(framing)[:60],
)
async def test_framing_that_can_be_read_in_two_ways_is_refused(tmp_path: Path, server: str, framing: list[str]) -> None:
    """The bytes behind it are nobody's request: nothing of them is executed."""
    async with running(tmp_path, server) as service:
        smuggled = request("DELETE /smuggled HTTP/1.1") + push()
        data = request("POST /metrics HTTP/1.1", *framing, body=b"0\r\n\r\n" + smuggled)
        async with connected(service.port) as wire:
            await wire.send(data)
            answer = await wire.answer()
            assert answer.status in (400, 413, 501)
            assert answer.headers["connection"] == "close"
            assert await wire.rest() == b""
        assert await stored(service) == 0


@pytest.mark.parametrize("chunk", [b"-1\r\n", b"zz\r\n", b"f" * 30 + b"\r\n", b"1\r\nabc\r\n0\r\n\r\n"])
async def test_chunks_that_cannot_be_read_are_400(tmp_path: Path, server: str, chunk: bytes) -> None:
    async with running(tmp_path, server) as service:
        data = request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", body=chunk)
        assert (await exchange(service.port, data)).status == 400
        assert await stored(service) == 0


async def test_a_key_in_the_trailers_opens_nothing(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        body = b"%x\r\n%s\r\n0\r\nX-API-Key: %s\r\n\r\n" % (len(PUSH_BODY), PUSH_BODY, ADMIN_KEY.encode())
        data = request("POST /metrics HTTP/1.1", "Transfer-Encoding: chunked", body=body, key=None)
        assert (await exchange(service.port, data)).status == 401


async def test_an_upload_without_a_key_is_refused_without_being_read(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service, connected(service.port) as wire:
        await wire.send(request("POST /metrics HTTP/1.1", "Content-Length: 9000000", key=None))
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        # A client that sends it all before it reads anything is not cut off, which would cost it the answer.
        await wire.send(b"x" * 9_000_000)
        assert await wire.rest() == b""


async def test_an_upload_that_is_not_read_keeps_no_connection(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose client neither goes on nor leaves, while more has come already than a server queues."""
    monkeypatch.setattr("pipeline.guard.LINGER_SECONDS", 0.3)
    async with running(tmp_path, server) as service:
        assert await stored(service) == 0
        before = len(asyncio.all_tasks())
        async with connected(service.port) as wire:
            async with anyio.create_task_group() as tasks:
                async with no_key_looked_up(service):
                    head = request("POST /metrics HTTP/1.1", "Content-Length: 9000000", key=new_key())
                    tasks.start_soon(wire.send, head + b"x" * 2_000_000)
                    with anyio.move_on_after(0.2):  # nothing tells when a server has taken what it takes
                        await anyio.sleep_forever()
                assert (await wire.answer()).status == 401
                assert await wire.rest() == b""
            await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_a_connection_that_its_client_closed_is_not_kept(tmp_path: Path, server: str) -> None:
    """Clients that open one a push would use up all that a process may have open."""
    async with running(tmp_path, server) as service:
        before = in_use()
        for data in (push(), b"", b"POST /metr", request("POST /metrics HTTP/1.1", "Content-Length: 9")):
            async with connected(service.port) as wire:
                await wire.send(data)
                if data == push():
                    await wire.answer()
        began = time.monotonic()
        await until(lambda: in_use() <= before)
        assert time.monotonic() - began < IDLE_SECONDS - 1, "a server drops it then in any case"


@pytest.mark.parametrize("waits", [False, True])
async def test_a_connection_whose_client_left_before_it_was_answered_is_not_kept(
    tmp_path: Path, server: str, waits: bool
) -> None:
    """Clients that are cut off and try again would use up all that one address may have."""
    async with running(tmp_path, server) as service:
        ((listener,),) = [each for one, each in service.service.listeners.items() if one.id == "http"]
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", service.port)) as sock:
                sock.sendall(push())
                if waits:
                    await anyio.to_thread.run_sync(sock.recv, 1, socket.MSG_PEEK)
        await until(lambda: service.service.graph.pipelines[0].journal.last == 20)
        began = time.monotonic()
        await until(lambda: listener.guard.connections == 0)
        assert time.monotonic() - began < IDLE_SECONDS - 1, "a server drops it then in any case"


REFUSED = {415: push("Content-Type: text/plain"), 401: push(key="no")}


@pytest.mark.parametrize("status", REFUSED)
async def test_a_small_refused_push_keeps_its_connection(tmp_path: Path, server: str, status: int) -> None:
    async with running(tmp_path, server) as service, connected(service.port) as wire:
        head, _, body = REFUSED[status].partition(b"\r\n\r\n")
        for _ in range(3):
            await wire.send(head + b"\r\n\r\n")
            assert (await wire.answer()).status == status
            await wire.send(body)
            await wire.send(push())
            assert (await wire.answer()).status == 200


async def test_a_client_may_ask_before_it_sends_its_body(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service, connected(service.port) as wire:
        await wire.send(request("POST /metrics HTTP/1.1", "Expect: 100-continue", f"Content-Length: {len(PUSH_BODY)}"))
        assert (await wire.answer()).status == 100
        await wire.send(PUSH_BODY)
        assert (await wire.answer()).status == 200


async def test_http_1_0_is_served_and_closed(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        for data in (push(line="POST /metrics HTTP/1.0"), b"GET /health HTTP/1.0\r\n\r\n"):
            async with connected(service.port) as wire:
                await wire.send(data)
                answer = await wire.answer()
                assert (answer.status, answer.headers["connection"].lower()) == (200, "close")
                assert await wire.rest() == b""
        assert await stored(service) == 1


async def test_the_answer_to_head_has_the_header_of_get_and_no_body(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service, connected(service.port) as wire:
        await wire.send(request("HEAD /health HTTP/1.1"))
        head = await wire.answer(head=True)
        await wire.send(request("GET /health HTTP/1.1"))
        get = await wire.answer()
        assert (head.status, head.headers["content-length"]) == (200, get.headers["content-length"])
        await wire.send(request("HEAD /metrics HTTP/1.1"))
        assert (await wire.answer(head=True)).status == 405


async def test_only_the_path_itself_is_the_path(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service:
        for path in [
            "//metrics", "///metrics", "/metrics/", "/metrics//", "/metrics%00", "/%00", "/%00metrics", "/%ff", "/metrics%20",
            "/./metrics", "/admin/../metrics", "/%2e%2e/metrics", "/metrics;a=b", "/METRICS", "/metrics%2f", "/%2fmetrics",
        ]:  # fmt: skip
            for line in (f"POST {path} HTTP/1.1", f"GET {path} HTTP/1.1"):
                assert (await exchange(service.port, push(line=line))).status == 404, path
        assert await stored(service) == 0


async def test_a_target_may_be_absolute(tmp_path: Path, server: str) -> None:
    async with running(tmp_path, server) as service, connected(service.port) as wire:
        for target, status in [("/metrics?a=/b", 200), ("http://test/metrics", 200), ("http://test/nothing", 404)]:
            await wire.send(push(line=f"POST {target} HTTP/1.1"))
            assert (await wire.answer()).status == status


async def test_a_client_that_does_not_read_is_cut_off(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("serving_hypercorn", "serving_uvicorn"):
        monkeypatch.setattr(f"pipeline.{module}.UNREAD_SECONDS", 0.2)
    async with running(tmp_path, server) as service:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(10)
            client.connect(("127.0.0.1", service.port))
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(ask_and_ask, client, request("GET /openapi.json HTTP/1.1"))
        assert await stored(service) == 0


def ask_and_ask(client: socket.socket, ask: bytes) -> None:
    """Ask again and again without reading an answer: many megabytes of them would be waiting."""
    for _ in range(100_000):
        client.sendall(ask)
