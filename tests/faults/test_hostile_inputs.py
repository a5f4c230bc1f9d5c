"""What a hostile or broken client may send, row by row of a table, to one real service a server.

Of every row: the status, that nothing of it is stored, that it is counted, and that the next good push on a connection of its own
is answered at once. In the end everything that was accepted is stored, and the log shows no error of ours. What takes until a
deadline is in `test_slow_clients.py`, what takes memory in `test_bombs.py`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.faults.hostile import METRIC, ROWS, document
from tests.faults.raw import connected, exchange, push, request, status
from tests.leaks import secret
from tests.running import ADMIN_KEY, KEY, OURS, environment, free_port, process, rows
from tests.scrapes import total

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(60)]

SERVERS = ("hypercorn", "uvicorn")
NASTY = "a\x00b\r\nc\u2028\x1b[31md\x85';DROP TABLE metrics;--../../etc\U0001f600\""
ELSEWHERE = "127.0.0.9"
"""Another address of this machine."""


@dataclass
class Served:
    """A service as a process, and what was asked of it."""

    pid: int
    port: int
    scraped: str
    folder: Path
    good: int = 0
    """Items that good pushes had."""
    seconds: list[float] = field(default_factory=list)
    """How long good pushes took, each on a connection of its own."""

    def push(self) -> None:
        """A good push, at once."""
        began = time.monotonic()
        assert status(exchange(self.port, push())) == 200
        self.seconds.append(time.monotonic() - began)
        self.good += 1
        assert self.seconds[-1] < 1

    def scrape(self) -> str:
        """What Prometheus would see now."""
        return httpx.get(self.scraped, timeout=5).raise_for_status().text

    def counted(self) -> tuple[float, float]:
        """How many requests and connections were answered or refused, and how many items accepted."""
        text = self.scrape()
        refused = total(text, "listener_refused_total", component="receiver/http")
        accepted = total(text, "otelcol_receiver_accepted_items_total", receiver="http")
        return total(text, "http_requests_total") + refused, accepted

    def check(self, row: str) -> None:
        """Send a row of the table. Fails if what becomes of it is wrong."""
        data, right = ROWS[row]
        requests, accepted = self.counted()
        answer = exchange(self.port, data if isinstance(data, bytes) else data())
        assert status(answer) in right, answer[:300]
        head, _, body = answer.partition(b"\r\n\r\n")
        assert KEY.encode() not in answer
        assert len(body) < 20_000, "an answer must not echo a body"
        assert b"access-control" not in head.lower()
        if row.startswith("B") and status(answer) in (400, 501):
            assert b"connection: close" in head.lower()
        self.push()
        counted, now_accepted = self.counted()
        assert now_accepted - accepted == 1, "something of it was stored"
        assert counted - requests >= 2, "it is not counted"


@contextmanager
def serving(folder: Path, server: str, *arguments: str) -> Iterator[Served]:
    """A service of its own."""
    scraped = free_port()
    ports = {"METRICS_SERVER": server, "OTEL_PROMETHEUS_PORT": str(scraped)}
    with process(folder, *arguments, **ports) as (running, base):
        yield Served(running.pid, httpx.URL(base).port or 0, f"http://127.0.0.1:{scraped}/metrics", folder)


@pytest.fixture(scope="module", params=SERVERS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp(request.param), request.param) as service:
        yield service


@pytest.mark.parametrize("row", ROWS)
def test_a_hostile_request_is_refused_counted_and_hurts_nobody(served: Served, row: str) -> None:
    served.check(row)


def test_a15_who_leaves_right_after_sending_is_stored_whole_or_not_at_all(served: Served) -> None:
    reset = struct.pack("ii", 1, 0)
    data = push(document(*[METRIC] * 100))
    for sent in (*range(1, len(data), len(data) // 25), *[len(data)] * 25):
        with connected(served.port) as sock:
            sock.sendall(data[:sent])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    served.push()
    assert (
        httpx.post(f"http://127.0.0.1:{served.port}/flush", headers={"X-API-Key": KEY}, timeout=30).status_code == 200
    )
    ((stored,),) = rows(served.folder / "metrics.db", "SELECT count(*) FROM metrics")
    whole, part = divmod(stored - served.good, 100)
    assert part == 0
    assert whole <= 25
    served.good += 100 * whole


def test_d13_d23_any_text_is_kept_as_it_is_and_shown_escaped(served: Served) -> None:
    metric = {**METRIC, "dimensions": {"metric_name": NASTY, "other": NASTY}, "metadata": {NASTY[:40]: NASTY}}
    assert status(exchange(served.port, push(document(metric, metadata=NASTY)))) == 200
    served.good += 1
    served.push()
    assert "c_" in served.scrape()
    assert "DROP TABLE" not in served.scrape()
    assert status(exchange(served.port, request("POST /flush HTTP/1.1", "Content-Length: 0"))) == 200
    (found,) = rows(
        served.folder / "metrics.db", "SELECT dimensions, metadata FROM metrics WHERE dimensions LIKE '%DROP%'"
    )
    kept = json.loads(json.dumps(metric).replace("\\u0000", "\\ufffd"))
    assert [json.loads(each) for each in found] == [kept["dimensions"], kept["metadata"]]


def test_d17_d18_labels_without_end_fill_nothing_but_the_store(served: Served) -> None:
    for start in range(0, 10_000, 1000):
        metrics = [{**METRIC, "dimensions": {"metric_name": f"v{n}", f"n{n}": 1}} for n in range(start, start + 1000)]
        assert status(exchange(served.port, push(document(*metrics)))) == 200
        served.good += 1000
    text = served.scrape()
    assert sum(line.startswith("mcp_custom_events_total") for line in text.splitlines()) <= 152
    assert total(text, "mcp_custom_events_total", metric_name="_other") > 9_000
    assert len(text) < 500_000


def test_d21_d22_the_same_push_a_thousand_times_is_stored_once(served: Served) -> None:
    name = "Idempotency-Key: one-and-the-same"
    answers = [exchange(served.port, push(document(METRIC), name)) for _ in range(200)]
    served.good += 1
    assert {status(each) for each in answers} == {200}
    assert sum(b"idempotent-replay: true" in each.lower() for each in answers) == 199
    assert status(exchange(served.port, push(document(METRIC, METRIC), name))) == 409
    assert status(exchange(served.port, push(document(METRIC), "Idempotency-Key: " + "x" * 129))) == 400


def test_d25_d26_of_the_bad_ones_the_first_hundred_are_named(served: Served) -> None:
    answer = exchange(served.port, push(document(METRIC, *[{"type": "custom"}] * 500, METRIC)))
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    served.good += 2
    assert (body["status"], body["accepted"], body["rejected"], len(body["errors"])) == ("partial", 2, 500, 101)


def test_e6_who_guesses_keys_is_held_off_and_good_keys_pass(served: Served) -> None:
    answers = [exchange(served.port, push(key=f"guess-{n}-{n}"), ELSEWHERE) for n in range(40)]
    statuses = [status(each) for each in answers]
    assert statuses[:20] == [401] * 20
    assert statuses[20:].count(429) >= 18  # there is another try every three seconds
    assert all(b"retry-after: " in each.lower() for each in answers if status(each) == 429)
    assert status(exchange(served.port, push(), ELSEWHERE)) == 200
    served.good += 1
    assert status(exchange(served.port, push(key="another guess"), "127.0.0.10")) == 401


def test_e8_nobody_is_whom_he_says_he_is(served: Served) -> None:
    forged = [
        exchange(served.port, push(b"", f"X-Forwarded-For: 192.0.2.{n}", key=f"k{n}"), "127.0.0.11") for n in range(30)
    ]
    assert [status(each) for each in forged].count(429) >= 8


def keys(folder: Path, *arguments: str) -> str:
    """What `metrics-service keys` prints."""
    called = [*OURS, "keys", *arguments, "--config", "production"]
    environ = {**os.environ, **environment(folder)}
    return subprocess.run(called, env=environ, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_e7_e9_a_limit_and_a_revocation_hold_on_a_connection_that_is_kept(tmp_path: Path) -> None:
    with serving(tmp_path, "uvicorn") as served, httpx.Client(base_url=f"http://127.0.0.1:{served.port}") as client:
        created = keys(tmp_path, "create", "--service", "other", "--rate-limit", "50")
        id, key = (re.findall(each, created)[0] for each in (r"API key (\d+)", r"mcp_metrics_\S{49}"))
        secret(key)
        answers = [client.post("/flush", headers={"X-API-Key": key}) for _ in range(60)]
        assert [each.status_code for each in answers].count(429) in range(7, 11)
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert answers[-1].headers["x-ratelimit-limit"] == "50"
        assert client.post("/flush", headers={"X-API-Key": ADMIN_KEY}).status_code == 200
        keys(tmp_path, "revoke", id)
        began = time.monotonic()
        while client.get("/rate-limit", headers={"X-API-Key": key}).status_code != 401:
            assert time.monotonic() - began < 5


def test_e12_what_needs_no_key_says_nothing_of_the_data(served: Served) -> None:
    health = httpx.get(f"http://127.0.0.1:{served.port}/health")
    assert health.json() == {"status": "healthy", "service": "metrics-collection"}
    assert "server" not in health.headers


def test_all_that_was_accepted_is_stored_and_the_log_shows_no_error(served: Served) -> None:
    assert (
        httpx.post(f"http://127.0.0.1:{served.port}/flush", headers={"X-API-Key": KEY}, timeout=30).status_code == 200
    )
    assert rows(served.folder / "metrics.db", "SELECT count(*) FROM metrics") == [(served.good,)]
    assert statistics.median(served.seconds) < 0.1
    log = (served.folder / "service.log").read_text()
    assert [line for line in log.splitlines() if is_ours(line)] == []
    assert len(log) < 1_000_000
    assert KEY not in log
    assert "\x1b" not in log


def is_ours(line: str) -> bool:
    """Whether a line of the log tells of a mistake of ours: an error, an exception that nobody caught, or what is no line of a log."""
    if any(sign in line for sign in ("Traceback", "Task exception", "never retrieved", "Exception in")):
        return True
    try:
        return json.loads(line)["level"] in ("ERROR", "CRITICAL")
    except ValueError:
        return True


WRONG = '''
"""A service that is wrong on purpose: its guard looks at nothing, and its log says so."""

import logging

from pipeline import guard, hookimpl

guard._fault = lambda scope: logging.getLogger("wrong").error("a mistake of ours")


@hookimpl
def declare_components():
    return []
'''


def test_the_same_rows_find_a_service_without_a_guard(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    with serving(tmp_path, "hypercorn", "--plugins-dir", str(tmp_path / "plugins")) as served:
        for row in ("A6 101 headers", "B1 length and chunked", "A6 url of 9 KB"):
            with pytest.raises(AssertionError):
                served.check(row)
    log = (tmp_path / "service.log").read_text().splitlines()
    errors = [line for line in log if is_ours(line)]
    assert errors
    assert errors == [line for line in log if "a mistake of ours" in line]
