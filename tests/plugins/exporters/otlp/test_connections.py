"""What is no answer at all: nobody there, a connection that ends, somebody who does not speak the protocol, or speaks without end."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.testing import metric_batch
from tests.collector import grpc_collector, http_collector
from tests.plugins.exporters.otlp.forwarding import (
    Serves,
    forwarding,
    listening,
    over,
    read_request,
    request_values,
    taken,
)
from tests.running import free_port

pytestmark = pytest.mark.anyio

VALUES = [1.0, 2.0, 3.0, 4.0]
MIB = 2**20


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr("pipeline.attempts.LONGEST_BACKOFF", 0.5)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side gets RST, as from a process that was killed."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    reset(writer)


async def ends_without_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)


async def ends_within_the_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.05)


async def talks_rubbish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"\x1b[2Jnot a protocol\r\n\r\n")


async def has_endless_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("serve", "ambiguous"),
    [
        (resets, True), (ends_without_an_answer, True), (ends_within_the_answer, True), (says_nothing, True),
        (drips, True), (talks_rubbish, True), (has_endless_headers, True),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
async def test_what_is_no_answer_is_tried_again(serve: Serves, ambiguous: bool, tmp_path: Path) -> None:
    async with (
        listening(serve) as port,
        forwarding(tmp_path, endpoint=f"http://{port.address}", timeout=0.2) as found,
    ):
        await found.put(metric_batch(*VALUES))
        await found.failed(3)
        assert port.connections >= 3
        assert (found.worker.position, found.blocked, found.dead_letters()) == (0, None, [])
        assert found.worker.failure is not None
        assert found.worker.failure.isprintable()
        assert (found.counted("otlp_ambiguous_requests_total") >= 3) == ambiguous


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_what_nobody_listened_to_arrives_once_somebody_does(protocol: str, tmp_path: Path) -> None:
    port = free_port()
    collecting = http_collector if protocol == "http/protobuf" else grpc_collector
    async with forwarding(tmp_path, endpoint=f"http://127.0.0.1:{port}", protocol=protocol) as found:
        await found.put(metric_batch(*VALUES))
        await found.failed(6)
        assert found.counted("otlp_ambiguous_requests_total") == 0
        async with collecting(port=port) as collector:
            await found.done()
            assert taken(collector) == Counter(VALUES)
        await found.put(metric_batch(5.0))
        await found.failed(10)
        async with collecting(port=port) as collector:
            await found.done()
            assert taken(collector) == Counter([5.0])


@pytest.mark.parametrize("endpoint", ["http://nowhere.invalid:4318", "http://127.0.0.1:1", "http://[::1]:1"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_an_address_where_nobody_is(protocol: str, endpoint: str, tmp_path: Path) -> None:
    async with forwarding(tmp_path, endpoint=endpoint, protocol=protocol, timeout=2) as found:
        await found.put(metric_batch(*VALUES))
        await found.failed(2)
        assert (found.worker.position, found.blocked) == (0, None)
        assert found.counted("otlp_ambiguous_requests_total") == 0


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_connection_that_dies_silently_is_left(protocol: str, tmp_path: Path) -> None:
    """As behind a firewall that forgot it, or a machine that was replaced: packets go nowhere, new connections work."""
    collecting = http_collector if protocol == "http/protobuf" else grpc_collector
    silent = set[int]()

    async with collecting() as collector:
        host, _, number = collector.url.removeprefix("http://").partition(":")

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            mine = port.connections
            there, back = await asyncio.open_connection(host, int(number))

            async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                while data := await source.read(2**16):
                    if mine not in silent:
                        target.write(data)

            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(pass_on(reader, back))
                    tasks.create_task(pass_on(there, writer))
            finally:
                back.close()

        async with (
            listening(forward) as port,
            forwarding(tmp_path, endpoint=f"http://{port.address}", protocol=protocol, timeout=0.5) as found,
        ):
            await found.put(metric_batch(1.0))
            await found.done()
            silent.add(port.connections)
            await found.put(metric_batch(2.0))
            await found.done()
            assert taken(collector) == Counter([1.0, 2.0])


@pytest.mark.parametrize("length", ["Content-Length: 10737418240", "Transfer-Encoding: chunked"])
async def test_an_answer_without_end_is_not_read(length: str, tmp_path: Path) -> None:
    read = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await read_request(reader)
        writer.write(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
        chunk = bytes(MIB) if "Length" in length else b"100000\r\n" + bytes(MIB) + b"\r\n"
        while read < 200 * MIB:
            writer.write(chunk)
            await writer.drain()
            read += MIB

    async with listening(serve) as port, forwarding(tmp_path, endpoint=f"http://{port.address}") as found:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await found.put(metric_batch(*VALUES))
        await found.done()
        assert [values for values, _ in found.dead_letters()] == [VALUES]
        assert port.connections == 1
        assert read < 40 * MIB  # with what the kernel takes in for both
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


async def test_a_refusal_without_end_is_what_its_status_says(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 10737418240\r\n\r\n")
        while True:
            writer.write(bytes(MIB))
            await writer.drain()

    async with listening(serve) as port, forwarding(tmp_path, endpoint=f"http://{port.address}") as found:
        await found.put(metric_batch(*VALUES))
        await found.done()
        ((values, reason),) = found.dead_letters()
        assert values == VALUES
        assert len(reason) < 600
        assert reason.startswith("HTTP 500")


@pytest.mark.parametrize("ending", ["close", "reset", "silence"])
async def test_a_refusal_is_one_whose_body_never_comes(ending: str, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\nits own wo")
        await writer.drain()
        await asyncio.sleep(0.05 if ending != "silence" else 60)
        if ending == "reset":
            reset(writer)

    async with listening(serve) as port, forwarding(tmp_path, endpoint=f"http://{port.address}", timeout=0.5) as found:
        await found.put(metric_batch(*VALUES))
        await found.done()
        ((values, reason),) = found.dead_letters()
        assert (values, reason) == (VALUES, "HTTP 500: its own wo")


async def test_413_before_the_body_was_read(tmp_path: Path) -> None:
    """As servers do when Content-Length is over their limit: they answer and close, and what still comes is answered with RST."""
    got: list[float] = []
    refused: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        if length > 3 * MIB:
            refused.append(length)
            writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        got.append(length)
        await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    each = [metric_batch(value, labels={"padding": "x" * 2 * MIB}) for value in (1.0, 2.0)]
    # One batch, since a first delivery of several ends before that limit (pipeline/memory.py).
    large = each[0].replace(request=b"".join(one.request for one in each), points=len(each))
    options: dict[str, Any] = {"compression": "none", "max_request_size": 100 * MIB}
    async with (
        listening(serve) as port,
        forwarding(tmp_path, endpoint=f"http://{port.address}", size=2, **options) as found,
    ):
        await found.put(large)
        await found.done()
        assert (len(got), len(refused)) == (2, 1)
        assert found.dead_letters() == []


async def test_a_black_hole_holds_up_nobody_else(tmp_path: Path) -> None:
    async with (
        listening(says_nothing) as hole,
        http_collector() as collector,
        forwarding(tmp_path, {"endpoint": collector.url}, endpoint=f"http://{hole.address}") as found,
    ):
        for number in range(50):
            await found.put(metric_batch(float(number)))
        # Less than the timeout of one request.
        await collector.until(lambda: len(taken(collector)) == 50, seconds=5)
        assert (found.worker.position, found.worker.failure) == (0, None)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_more_than_a_request_may_hold_goes_in_several(protocol: str, tmp_path: Path) -> None:
    async with over(protocol, tmp_path, max_items=4, max_request_size=1000, size=12) as (collector, found):
        batches = [metric_batch(float(number), labels={"padding": "x" * 300}) for number in range(12)]
        await found.put(*batches, metric_batch(12.0, labels={"padding": "x" * 2000}))
        await found.delivery.flush()
        assert taken(collector) == Counter(float(number) for number in range(12))
        assert max(each.ByteSize() for each in collector.taken) <= 1000
        assert max(len(request_values(each)) for each in collector.taken) <= 4
        ((values, reason),) = found.dead_letters()
        assert values == [12.0]
        assert "max_request_size" in reason
