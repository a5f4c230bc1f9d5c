"""A stop under load: each request is answered 200 and stored, or refused cleanly; nothing is lost, and the end comes in time."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import TracebackType

import httpx
import pytest

from tests.running import KEY, process, rows

pytestmark = pytest.mark.faults

SERVERS = pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
CLIENTS = 12
STOP_TIMEOUT = 5.0


class Client(threading.Thread):
    """Pushes by a kept connection as fast as it goes, and by a new one when it was told so or the old one is gone; ends when nobody
    listens any more. Notes what became of each push."""

    def __init__(self, base: str, number: int, *, reconnect: bool) -> None:
        super().__init__(daemon=True)
        self.outcomes: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self.unanswered: set[str] = set()
        self.fault: BaseException | None = None
        self._address = base.removeprefix("http://")
        self._number = number
        self._reconnect = reconnect

    def run(self) -> None:
        try:
            while self._connect():
                pass
        except BaseException as error:
            self.fault = error

    def _connect(self) -> bool:
        """Use one connection until it is closed. False once nobody listens."""
        connection = http.client.HTTPConnection(self._address, timeout=20)
        with closing(connection):
            try:
                connection.connect()
            except ConnectionRefusedError:
                self.outcomes["refused"] += 1
                return False
            except ConnectionResetError:
                self.outcomes["reset while connecting"] += 1
                return True
            while self._push(connection):
                pass
        return True

    def _push(self, connection: http.client.HTTPConnection) -> bool:
        id = f"{self._number}-{sum(self.outcomes.values())}"
        body = json.dumps({"service": "test", "metrics": [{"type": "custom", "value": 1, "metadata": {"id": id}}]})
        try:
            connection.request("POST", "/metrics", body, {"X-API-Key": KEY})
            answer = connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self.outcomes["closed before any byte"] += 1
            self.unanswered.add(id)
            return False
        content = answer.read()  # raises if it is cut off
        assert answer.status in (200, 503), content
        self.outcomes[str(answer.status)] += 1
        if answer.status == 200:
            self.acknowledged.add(id)
        if answer.will_close:
            self.outcomes["told to close"] += 1
        return not answer.will_close and not (self._reconnect and self.outcomes["200"] % 20 == 0)


class Clients:
    """Many of them, of which a third changes connections now and then."""

    def __init__(self, base: str) -> None:
        self.all = [Client(base, number, reconnect=number % 3 == 0) for number in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for client in self.all:
            client.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for client in self.all:
            client.join(25)

    def wait_until_busy(self) -> None:
        deadline = time.monotonic() + 20
        while not all(client.outcomes["200"] > 20 for client in self.all):
            assert time.monotonic() < deadline, self.outcomes()
            time.sleep(0.01)

    def outcomes(self) -> Counter[str]:
        return sum((client.outcomes for client in self.all), Counter[str]())

    def faults(self, folder: Path) -> dict[str, object]:
        """What is wrong, once what the journal held is stored: nothing, if all is well."""
        found = Counter(
            id for (id,) in rows(folder / "metrics.db", "SELECT json_extract(metadata, '$.id') FROM metrics")
        )
        acknowledged = {id for client in self.all for id in client.acknowledged}
        wrong = {
            "clients": [repr(client.fault) for client in self.all if client.fault],
            "lost": acknowledged - found.keys(),
            "twice": {id for id, count in found.items() if count > 1},
            "stored without an answer": found.keys() - acknowledged,
        }
        return {what: which for what, which in wrong.items() if which}


def store_the_rest(folder: Path, server: str) -> None:
    """What the journal still holds."""
    with process(folder, METRICS_SERVER=server) as (_, base):
        httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30).raise_for_status()


@SERVERS
@pytest.mark.parametrize("delay", ["0", "1"])
def test_a_stop_under_load_answers_or_refuses_each_request(tmp_path: Path, server: str, delay: str) -> None:
    timeout = ("--set", f"service.stop_timeout={STOP_TIMEOUT}")
    variables = {"METRICS_SERVER": server, "METRICS_DRAIN_DELAY_SECONDS": delay}
    with process(tmp_path, *timeout, **variables) as (running, base), Clients(base) as clients:
        clients.wait_until_busy()
        running.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert running.wait(timeout=float(delay) + STOP_TIMEOUT + 5) == 0
        took = time.monotonic() - began
    assert took >= float(delay)
    store_the_rest(tmp_path, server)
    assert clients.faults(tmp_path) == {}
    outcomes = clients.outcomes()
    assert outcomes["refused"] == CLIENTS
    if float(delay):
        # Who was told leaves by himself, and nobody is cut off who did not connect in the last moment.
        assert outcomes["told to close"] > CLIENTS >= outcomes["closed before any byte"], outcomes


@SERVERS
def test_not_ready_comes_first_and_requests_are_served_meanwhile(tmp_path: Path, server: str) -> None:
    with process(tmp_path, METRICS_SERVER=server, METRICS_DRAIN_DELAY_SECONDS="1.5") as (running, base):
        idle = socket.create_connection(("127.0.0.1", int(base.rpartition(":")[2])))
        running.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 1
        while httpx.get(f"{base}/health").status_code == 200:
            assert time.monotonic() < deadline
        assert httpx.get(f"{base}/health/ready").json()["status"] == "not ready"
        assert httpx.get(f"{base}/health/live").status_code == 200
        document = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
        pushed = httpx.post(f"{base}/metrics", json=document, headers={"X-API-Key": KEY})
        assert (pushed.status_code, pushed.headers["connection"]) == (200, "close")
        assert running.poll() is None
        idle.settimeout(10)
        assert idle.recv(1) == b"", "closed cleanly, without an answer to nothing"
        idle.close()
        assert running.wait(15) == 0
    store_the_rest(tmp_path, server)
    assert rows(tmp_path / "metrics.db", "SELECT count(*) FROM metrics") == [(1,)]


def test_a_process_that_is_killed_is_found(tmp_path: Path) -> None:
    """The negative control: pushes that were stored and nobody was told of, which a stop leaves none of."""
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with process(folder) as (running, base), Clients(base) as clients:
            clients.wait_until_busy()
            running.kill()
            assert running.wait(5) == -signal.SIGKILL
        store_the_rest(folder, "hypercorn")
        if clients.faults(folder):
            return
    pytest.fail("five kills under load left no push without its answer")
