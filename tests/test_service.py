"""The service as a whole stops well, and what it acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import anyio
import httpx
import pytest

from tests.plugins.receivers.wire import connected, push, request
from tests.running import KEY, in_use, process, rows, running, until

METRIC = {"type": "auth_request", "value": 1.0}
SERVERS = pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
CLIENTS = 8


@pytest.mark.anyio
@SERVERS
async def test_a_service_stops_whole_and_starts_again_on_its_data(tmp_path: Path, server: str) -> None:
    override = f"receivers.http.server={server}"
    async with running(tmp_path, override):
        pass  # so that all that is loaded once has been
    before, tasks = in_use(), len(asyncio.all_tasks())
    for stored in (1, 2):
        async with running(tmp_path, override) as service:
            assert (await service.push(METRIC)).status_code == 200
            await service.flush()
            assert service.rows() == [(stored,)]
            port = service.port
        await until(lambda: in_use() <= before and len(asyncio.all_tasks()) <= tasks)
        with pytest.raises(OSError, match="All connection attempts failed"):
            await anyio.connect_tcp("127.0.0.1", port)


@pytest.mark.anyio
@SERVERS
async def test_a_stop_ends_what_idles_and_waits_for_nobody_longer_than_it_may(tmp_path: Path, server: str) -> None:
    overrides = (f"receivers.http.server={server}", "service.stop_timeout=1")
    async with running(tmp_path, *overrides):
        pass
    before = in_use()
    async with (
        running(tmp_path, *overrides) as service,
        connected(service.port) as idle,
        connected(service.port) as slow,
    ):
        await idle.send(push())
        assert (await idle.answer()).status == 200
        await slow.send(request("POST /metrics HTTP/1.1", "Content-Length: 100", body=b"{"))
        await service.flush()
        began = time.monotonic()
        service.service.ask_to_stop()
        assert await idle.rest() == b""
        assert time.monotonic() - began < 0.9
        await slow.rest()
        assert time.monotonic() - began < 3
    await until(lambda: in_use() <= before)


class Client(threading.Thread):
    """Pushes one metric after the other until nobody listens; remembers what became of each."""

    def __init__(self, base: str, number: int) -> None:
        super().__init__(daemon=True)
        self.statuses: Counter[int] = Counter()
        self.acknowledged: set[str] = set()
        self.fault: Exception | None = None
        self._address = base.removeprefix("http://")
        self._number = number

    def run(self) -> None:
        try:
            for first in itertools.count(step=50):  # some requests come on connections that are new
                connection = http.client.HTTPConnection(self._address, timeout=20)
                with closing(connection), suppress(ConnectionResetError, BrokenPipeError):  # closed while it was idle
                    for count in range(first, first + 50):
                        self._push(connection, f"{self._number}-{count}")
        except ConnectionRefusedError:
            pass  # nobody listens any more
        except Exception as error:
            self.fault = error

    def _push(self, connection: http.client.HTTPConnection, id: str) -> None:
        body = json.dumps({"service": "test", "metrics": [{**METRIC, "metadata": {"id": id}}]})
        connection.request("POST", "/metrics", body, {"X-API-Key": KEY})
        answer = connection.getresponse()
        assert json.loads(answer.read())["request_id"]
        self.statuses[answer.status] += 1
        if answer.status == 200:
            self.acknowledged.add(id)


@SERVERS
def test_sigterm_under_load_answers_what_is_in_hand_and_loses_nothing(tmp_path: Path, server: str) -> None:
    with process(tmp_path, METRICS_SERVER=server) as (service, base):
        clients = [Client(base, number) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        anyio.run(until, lambda: all(client.statuses[200] > 20 for client in clients))
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=15) == 0
        for client in clients:
            client.join(timeout=25)
    assert [client.fault for client in clients] == [None] * CLIENTS
    assert {status for client in clients for status in client.statuses} <= {200, 503}
    log = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    assert {line["level"] for line in log} <= {"INFO", "WARNING"}
    assert log[-1]["message"] == "stopped"

    acknowledged = {id for client in clients for id in client.acknowledged}
    with process(tmp_path, METRICS_SERVER=server) as (_, base):
        httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30).raise_for_status()
    assert stored(tmp_path).keys() >= acknowledged
    assert set(stored(tmp_path).values()) == {1}


def test_a_second_sigterm_ends_the_process_at_once_and_loses_nothing(tmp_path: Path) -> None:
    with process(tmp_path, FLUSH_INTERVAL_SECONDS="3600") as (service, base):
        pushed = {"service": "test", "metrics": [{**METRIC, "metadata": {"id": "a"}}]}
        assert httpx.post(f"{base}/metrics", json=pushed, headers={"X-API-Key": KEY}).status_code == 200
        stalled = http.client.HTTPConnection(base.removeprefix("http://"))
        stalled.request("POST", "/metrics", iter([b"{"]), {"X-API-Key": KEY, "Content-Length": "100"})
        service.send_signal(signal.SIGTERM)
        anyio.run(until, lambda: '"stopping"' in (tmp_path / "service.log").read_text())
        assert service.poll() is None, "it waits for the request in hand"
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=2) == -signal.SIGTERM
        stalled.close()
    with process(tmp_path) as (_, base):
        httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30).raise_for_status()
    assert stored(tmp_path) == {"a": 1}


def test_sigint_stops_it_too(tmp_path: Path) -> None:
    with process(tmp_path) as (service, _):
        os.kill(service.pid, signal.SIGINT)
        assert service.wait(timeout=10) == 0


def stored(folder: Path) -> Counter[str]:
    """How many rows there are of each id."""
    return Counter(id for (id,) in rows(folder / "metrics.db", "SELECT json_extract(metadata, '$.id') FROM metrics"))
