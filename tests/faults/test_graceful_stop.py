"""A stop under load: each request is answered 200 and stored, or refused cleanly; nothing is lost, and the end comes in time."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType

import httpx
import pytest

from tests.collector import ids_of
from tests.faults.changed import plugin
from tests.faults.filling import settle
from tests.faults.report import Report
from tests.faults.test_collectors import CONFIG
from tests.faults.test_forwarding import collecting
from tests.faults.test_link import WRONG
from tests.running import KEY, process, rows

pytestmark = pytest.mark.faults

SERVERS = pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
CLIENTS = 12
MANY, IDLE, STALLED = 32, 8, 4
"""Clients beside a collector that never answers."""
CUT_SHORT = 2.0
"""`service.stop_timeout` there, which the stalled ones use up."""
STOP_TIMEOUT = 5.0


def document(id: str) -> str:
    """What one push holds: one metric, whose id the store keeps and collectors see."""
    metric = {"type": "custom", "value": 1, "dimensions": {"id": id}, "metadata": {"id": id}}
    return json.dumps({"service": "test", "metrics": [metric]})


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
        try:
            connection.request("POST", "/metrics", document(id), {"X-API-Key": KEY})
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

    def __init__(self, base: str, count: int = CLIENTS) -> None:
        self.all = [Client(base, number, reconnect=number % 3 == 0) for number in range(count)]

    @property
    def acknowledged(self) -> set[str]:
        """The ids of what was answered 200."""
        return {id for client in self.all for id in client.acknowledged}

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
        wrong = {
            "clients": [repr(client.fault) for client in self.all if client.fault],
            "lost": self.acknowledged - found.keys(),
            "twice": {id for id, count in found.items() if count > 1},
            "stored without an answer": found.keys() - self.acknowledged,
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


@contextmanager
def quiet_clients(base: str) -> Iterator[None]:
    """Some that only hold a connection, and some that stop in the middle of a push."""
    url = httpx.URL(base)
    with ExitStack() as open_ones:
        for number in range(IDLE + STALLED):
            connection = open_ones.enter_context(socket.create_connection((url.host, url.port or 80), timeout=10))
            if number < STALLED:
                body = document(f"stalled {number}")
                head = f"POST /metrics HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(f"{head}{body[:-9]}".encode())
        yield


def stopped_beside_a_black_hole(
    folder: Path, server: str, *arguments: str
) -> tuple[dict[str, object], set[str], float]:
    """Stop it under load while its collector takes connections and never answers, and start it with one that does: what is wrong with what
    is stored, what was acknowledged and did not arrive, and how long the stop took."""
    (folder / "own.yaml").write_text(CONFIG)
    timeouts = ("--set", f"service.stop_timeout={CUT_SHORT}", "--set", "exporters.otlp/events.timeout=3s")
    chosen = {"config": str(folder / "own.yaml"), "METRICS_SERVER": server}
    with socket.create_server(("127.0.0.1", 0)) as hole:
        endpoint = f"http://127.0.0.1:{hole.getsockname()[1]}"
        with (
            process(folder, *timeouts, *arguments, OTEL_OTLP_ENDPOINT=endpoint, **chosen) as (running, base),
            quiet_clients(base),
            Clients(base, MANY) as clients,
        ):
            clients.wait_until_busy()
            running.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert running.wait(CUT_SHORT + 20) == 0
            took = time.monotonic() - began
    with collecting("http/protobuf") as collector:
        with process(folder, *arguments, OTEL_OTLP_ENDPOINT=collector.url, **chosen) as (_, base):
            settle(base, 30)
        arrived = {id for request in collector.taken for id in ids_of(request)}
    assert arrived <= clients.acknowledged
    return clients.faults(folder), clients.acknowledged - arrived, took


@SERVERS
def test_a_stop_keeps_what_a_collector_does_not_take_and_waits_for_nobody(
    tmp_path: Path, server: str, report: Report
) -> None:
    faults, missing, took = stopped_beside_a_black_hole(tmp_path, server)
    report(seconds=f"{took:.1f}", not_forwarded=len(missing))
    assert faults == {}
    assert missing == set()
    assert took < CUT_SHORT + 5


def test_a_stop_that_gives_up_what_a_collector_does_not_take_is_found(tmp_path: Path) -> None:
    _, missing, _ = stopped_beside_a_black_hole(tmp_path, "uvicorn", *plugin(tmp_path, WRONG))
    assert missing != set()


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
