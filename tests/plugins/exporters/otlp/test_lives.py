"""In the whole service: what is held is seen, what is on its way does not hold up the end, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from aiohttp import web

from pipeline import Blocked
from pipeline.testing import event_batch, metric_batch
from tests.collector import grpc_collector, gunzip, http_collector
from tests.plugins.exporters.otlp.forwarding import (
    answers,
    exporter_for,
    forwarding,
    listening,
    over,
    read_request,
    taken,
)
from tests.running import in_use, running, until, without_blocks

pytestmark = pytest.mark.anyio

VALUES = [1.0, 2.0]
METRIC = {"type": "auth_request", "value": 1}
BOTH = pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.attempts.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(Blocked, "PROBE_SECONDS", 0.05)


@BOTH
async def test_what_is_held_is_seen_in_health_and_telemetry(
    protocol: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in = http_collector() if protocol == "http/protobuf" else grpc_collector()
    async with stand_in as collector:
        answers(collector, 401 if protocol == "http/protobuf" else grpc.StatusCode.UNAUTHENTICATED)
        said = "HTTP 401" if protocol == "http/protobuf" else "UNAUTHENTICATED"
        options = [f"exporters.otlp.protocol={protocol}"]
        async with running(tmp_path, *options, OTEL_OTLP_ENDPOINT=collector.url) as service:
            await service.push(METRIC)
            await service.flush()
            await collector.until(lambda: collector.requests > 0)
            await until(lambda: "cannot deliver" in service.service.health().components["exporter/otlp"])
            # The page needs no key, so that the reason is in the log alone.
            assert said not in service.service.health().components["exporter/otlp"]
            assert said in caplog.text
            assert service.service.health().accepting
            shown = [line for line in (await service.scrape()).splitlines() if line.startswith("exporter_blocked{")]
            assert len(shown) == 1
            assert all(
                f'{label}="{value}"' in shown[0] for label, value in (("exporter", "otlp"), ("reason", "credential"))
            )
            assert shown[0].endswith(" 1.0")
            answers(collector, 401, lambda request: False)
            await until(lambda: without_blocks(service.service.health().components)["exporter/otlp"] == "ok")
            assert "exporter_blocked{" not in await service.scrape()


async def stays_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


@BOTH
async def test_a_request_that_hangs_does_not_hold_up_the_end(protocol: str, tmp_path: Path) -> None:
    async with listening(stays_silent) as port:
        options: dict[str, Any] = {"endpoint": f"http://{port.address}", "protocol": protocol, "timeout": 60}
        async with forwarding(tmp_path, grace=0.2, **options) as found:
            await found.put(metric_batch(*VALUES))
            await until(lambda: port.connections > 0)
            stopping = anyio.current_time()
        assert anyio.current_time() - stopping < 2
    # Nothing of it is lost.
    stand_in = http_collector() if protocol == "http/protobuf" else grpc_collector()
    async with stand_in as collector, forwarding(tmp_path, endpoint=collector.url, protocol=protocol) as found:
        await found.delivery.flush()
        assert taken(collector) == Counter(VALUES)


@BOTH
async def test_nothing_is_left_behind(protocol: str, tmp_path: Path) -> None:
    async def once(number: int) -> None:
        stand_in = http_collector() if protocol == "http/protobuf" else grpc_collector()
        folder = tmp_path / str(number)
        folder.mkdir()
        async with (
            stand_in as collector,
            listening(stays_silent) as hole,
            forwarding(
                folder,
                {"endpoint": f"http://{hole.address}", "protocol": protocol, "timeout": 0.1},
                endpoint=collector.url,
                protocol=protocol,
            ) as found,
        ):
            await found.put(metric_batch(*VALUES))
            await found.done()
            await until(lambda: found.delivery.workers[1].handover.attempts.failed_tries >= 3)

    for number in range(2):  # threads of pools, and of gRPC, stay for the next
        await once(number)
    gc.collect()
    before, tasks = in_use(), len(asyncio.all_tasks())
    for number in range(2, 7):
        await once(number)
    gc.collect()
    await until(lambda: in_use() <= before)
    assert len(asyncio.all_tasks()) == tasks


@BOTH
async def test_it_stops_twice_and_without_a_start(protocol: str) -> None:
    exporter = exporter_for(endpoint="http://127.0.0.1:1", protocol=protocol)
    await exporter.stop()
    await exporter.start()
    await exporter.stop()
    await exporter.stop()


@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_what_is_sent_over_http(compression: str, tmp_path: Path) -> None:
    requests: list[tuple[str, dict[str, str], bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with listening(serve) as port:
        options: dict[str, Any] = {
            "endpoint": f"http://{port.address}/otlp",
            "compression": compression,
            "headers": {"X-Scope": "a b", "user-AGENT": "mine", "Accept-encoding": "gzip"},
        }
        async with forwarding(tmp_path, **options) as found:
            await found.put(metric_batch(*VALUES))
            await found.done()
    ((line, headers, body),) = requests
    assert line == "POST /otlp/v1/metrics HTTP/1.1"
    assert headers.pop("content-length") == str(len(body))
    assert headers.pop("content-encoding", "none") == compression
    assert headers == {
        "host": port.address, "content-type": "application/x-protobuf", "accept": "*/*", "accept-encoding": "gzip",
        "user-agent": "mine", "x-scope": "a b",
    }  # fmt: skip
    body = gunzip(body) if compression == "gzip" else body
    assert body == metric_batch(*VALUES).request


@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_what_is_sent_over_grpc(compression: str, tmp_path: Path) -> None:
    headers = {"X-Scope": "a b", "Authorization": "Bearer abc"}
    async with over("grpc", tmp_path, compression=compression, headers=headers) as (collector, found):
        await found.put(metric_batch(*VALUES), event_batch(3.0))
        await found.done()
        assert taken(collector)[1.0] == taken(collector)[2.0] == 1
        for seen in collector.headers:
            assert {"x-scope": "a b", "authorization": "Bearer abc"}.items() <= seen.items()
            assert seen["user-agent"].startswith("mcp-metrics-service/")


async def test_metrics_and_events_go_in_one_request(tmp_path: Path) -> None:
    async with over("http", tmp_path, size=4) as (collector, found):
        await found.put(metric_batch(1.0), event_batch(2.0), event_batch(3.0), metric_batch(4.0))
        await found.delivery.flush()
        names = Counter(name for _, name, _, _, _ in collector.points)
        assert names == {"test_total": 2, "mcp.event.custom": 2, "mcp.event.custom.duration": 2}
        assert collector.requests == 1


GRPC_IS_QUIET = """
import asyncio
from plugins.exporters.otlp.config import OtlpConfig
from plugins.exporters.otlp.exporter import OtlpExporter
from pipeline import Delivery, Retryable
from pipeline.testing import NopHost, metric_batch

async def main():
    async def plain(reader, writer):
        await reader.read(10)
        writer.close()
    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for endpoint in (f"https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://nowhere.invalid", f"http://127.0.0.1:{port}"):
        exporter = OtlpExporter("otlp", OtlpConfig(endpoint=endpoint, protocol="grpc", timeout=2), NopHost())
        await exporter.start()
        try:
            await exporter.export(Delivery("metrics", 0, 1, (metric_batch(),)))
        except Retryable as error:
            print(type(error).__name__)
        await exporter.stop()
    server.close()

asyncio.run(main())
"""


def test_grpc_writes_nothing_past_our_log() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", GRPC_IS_QUIET], capture_output=True, text=True, timeout=50, check=False
    )
    assert ended.stderr == ""
    assert len(ended.stdout.split()) == 4


def test_http_takes_no_grpc_into_memory() -> None:
    script = (
        "import asyncio, sys\n"
        "from plugins.exporters.otlp.config import OtlpConfig\n"
        "from plugins.exporters.otlp.exporter import OtlpExporter\n"
        "from pipeline.testing import NopHost\n"
        "asyncio.run(OtlpExporter('otlp', OtlpConfig(endpoint='http://c'), NopHost()).start())\n"
        "print('grpc' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False)
    assert ended.stdout == "False\n"


async def test_cookies_are_not_kept(tmp_path: Path) -> None:
    async with over("http", tmp_path) as (collector, found):
        answers(collector, lambda: web.Response(headers={"Set-Cookie": "a=b"}))
        await found.put(metric_batch(1.0), metric_batch(2.0))
        await found.done()
        assert all("Cookie" not in each for each in collector.headers)
