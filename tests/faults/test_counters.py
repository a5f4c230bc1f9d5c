"""`kill -9` under load: a counter never goes back, and in the end counters and histograms are what SQL makes of the rows."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.running import KEY, free_port, process
from tests.scrapes import Sample, samples

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(240, 1800))]

ROUNDS = sized(6, 25)
CONTROL_ROUNDS = 8
"""A service that is wrong on purpose has gone back by then."""
CLIENTS = 8
DURATIONS = (None, 4.9, 5, 5.1, 25, 100, 250.5, 1000, 29_999.9, 60_000)
"""On both sides of a bucket's bound, and on it."""


def event() -> dict[str, object]:
    """A call of a tool; whole numbers, so that sums are exact in any order."""
    return {
        "type": "tool_execution",
        "value": random.randint(-2, 5),
        "duration_ms": random.choice(DURATIONS),
        "dimensions": {"tool_name": f"tool-{random.randrange(12)}", "success": random.random() < 0.8},
    }


def push_until(ended: threading.Event, base: str) -> None:
    """Push on one kept-alive connection until told to end, or until the service dies."""
    with httpx.Client(base_url=base, headers={"X-API-Key": KEY}, timeout=5) as client:
        try:
            while not ended.is_set():
                document = {"service": "test", "metrics": [event() for _ in range(random.randint(1, 20))]}
                client.post("/metrics", content=json.dumps(document))
        except httpx.TransportError:
            pass


class Scraper:
    """Scrapes all the time, and remembers the most that each counter has shown."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.scrapes = 0
        self.went_back: list[tuple[Sample, float, float]] = []
        self.most: dict[Sample, float] = {}

    def scrape(self) -> dict[Sample, float]:
        """Scrape once, when there is something to scrape."""
        while True:
            answer = httpx.get(self.url, timeout=5)
            if answer.status_code != 503:
                answer.raise_for_status()
                break
        shown = samples(answer.text)
        self.went_back += [
            (key, most, shown.get(key, 0)) for key, most in self.most.items() if shown.get(key, 0) < most
        ]
        self.most |= shown
        self.scrapes += 1
        return shown

    def scrape_until(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                self.scrape()
            except httpx.TransportError:
                return


def one_round(folder: Path, scraper: Scraper, port: int, *arguments: str) -> None:
    """Load and scrape a service, and kill it."""
    with process(folder, *arguments, OTEL_PROMETHEUS_PORT=str(port), FLUSH_INTERVAL_SECONDS="0.5") as (running, base):
        ended = threading.Event()
        scraper.scrape()
        threads = [threading.Thread(target=push_until, args=(ended, base)) for _ in range(CLIENTS)]
        threads.append(threading.Thread(target=scraper.scrape_until, args=(ended,)))
        for thread in threads:
            thread.start()
        time.sleep(random.uniform(0.3, 2.5))  # the moment of the kill is the point of the test; a save is due after 2 s
        running.kill()
        ended.set()
        for thread in threads:
            thread.join(timeout=10)


def by_sql(database: Path, bounds: Sequence[float]) -> dict[Sample, float]:
    """What Prometheus should show, from the rows alone."""
    expected: dict[Sample, float] = defaultdict(float)
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            """SELECT json_extract(dimensions, '$.tool_name'), iif(json_extract(dimensions, '$.success'), 'true', 'false'),
                      sum(max(value, 0)), count(duration_ms), coalesce(sum(duration_ms), 0) / 1000
               FROM metrics GROUP BY 1, 2"""
        ).fetchall()
        for tool, success, total, count, seconds in rows:
            unset = ("method", "server_name", "server_path", "client_name", "client_version", "user_hash")
            labels = {"service": "test", "metric_type": "tool_execution", "tool_name": tool, "success": success}
            labels |= dict.fromkeys(unset, "_unset")
            expected["mcp_tool_executions_total", frozenset(labels.items())] = total
            if not count:
                continue
            name = "mcp_tool_execution_duration_seconds"
            expected[f"{name}_count", frozenset(labels.items())] = count
            expected[f"{name}_sum", frozenset(labels.items())] = seconds
            for bound in bounds:
                ((within,),) = connection.execute(
                    """SELECT count(*) FROM metrics WHERE json_extract(dimensions, '$.tool_name') = ?
                       AND iif(json_extract(dimensions, '$.success'), 'true', 'false') = ? AND duration_ms / 1000 <= ?""",
                    (tool, success, bound),
                ).fetchall()
                expected[f"{name}_bucket", frozenset({**labels, "le": str(bound)}.items())] = within
            expected[f"{name}_bucket", frozenset({**labels, "le": "+Inf"}.items())] = count
    return expected


BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def test_across_kill_9_no_counter_goes_back_and_all_are_what_the_rows_add_up_to(tmp_path: Path, report: Report) -> None:
    port = free_port()
    scraper = Scraper(f"http://127.0.0.1:{port}/metrics")
    for _ in range(ROUNDS):
        one_round(tmp_path, scraper, port)
    with process(tmp_path, OTEL_PROMETHEUS_PORT=str(port)) as (_, base):
        shown = scraper.scrape()
        answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=sized(60, 600))
        assert answer.json()["status"] == "success"
    assert scraper.scrapes > ROUNDS
    assert scraper.went_back == []
    expected = by_sql(tmp_path / "metrics.db", BOUNDS)
    assert shown.keys() == expected.keys()
    wrong = {
        key: (shown[key], value) for key, value in expected.items() if shown[key] != pytest.approx(value, rel=1e-9)
    }
    report(
        kills=ROUNDS,
        scrapes=scraper.scrapes,
        went_back=len(scraper.went_back),
        series=len(shown),
        not_as_in_SQL=len(wrong),
    )
    assert wrong == {}


WRONG = '''
"""A service that is wrong on purpose: its journal does not keep what `series` has taken and not saved."""

from pipeline import Exporter, hookimpl
from plugins.connectors.series.connector import SeriesConnector

SeriesConnector.saved = Exporter.saved


@hookimpl
def declare_components():
    return []
'''


def test_the_same_kills_find_a_service_that_trims_what_is_not_saved(tmp_path: Path, report: Report) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    port = free_port()
    scraper = Scraper(f"http://127.0.0.1:{port}/metrics")
    for killed in range(CONTROL_ROUNDS):
        one_round(tmp_path, scraper, port, "--plugins-dir", str(tmp_path / "plugins"))
        if scraper.went_back:
            report(control="found", kills=killed, went_back=len(scraper.went_back))
            return
    pytest.fail(f"no counter went back in {CONTROL_ROUNDS} starts")


FILES = ("metrics.db", "metrics.db-wal", "metrics.db-shm")


def push_and_scrape(folder: Path, scraper: Scraper, port: int, pushes: int) -> dict[Sample, float]:
    """Push that often to a service, wait until all is stored, scrape, and kill it."""
    with process(folder, OTEL_PROMETHEUS_PORT=str(port)) as (running, base):
        with httpx.Client(base_url=base, headers={"X-API-Key": KEY}, timeout=10) as client:
            scraper.scrape()
            for _ in range(pushes):
                client.post("/metrics", json={"service": "test", "metrics": [event()] * 3}).raise_for_status()
            assert client.post("/flush").json()["status"] == "success"
        shown = scraper.scrape()
        running.kill()
    return shown


def restore(folder: Path, backup: Path) -> None:
    """Put the files of the backup into the place of those that are there."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        if (backup / name).exists():
            (folder / name).write_bytes((backup / name).read_bytes())


def back_up(folder: Path) -> Path:
    """A copy of the database while no service runs."""
    backup = folder / "backup"
    for name in FILES:
        if (folder / name).exists():
            (backup / name).parent.mkdir(parents=True, exist_ok=True)
            (backup / name).write_bytes((folder / name).read_bytes())
    return backup


def test_a_restored_database_lowers_no_counter(tmp_path: Path) -> None:
    port = free_port()
    scraper = Scraper(f"http://127.0.0.1:{port}/metrics")
    push_and_scrape(tmp_path, scraper, port, 10)
    backup = back_up(tmp_path)
    before = push_and_scrape(tmp_path, scraper, port, 20)
    restore(tmp_path, backup)
    after = push_and_scrape(tmp_path, scraper, port, 0)
    assert (scraper.went_back, after) == ([], before)
    push_and_scrape(tmp_path, scraper, port, 10)
    assert scraper.went_back == []


CALL = {
    "type": "tool_execution",
    "value": 1,
    "duration_ms": 100,
    "dimensions": {"tool_name": "tool-0", "success": True},
}


def push_and_save(folder: Path, scraper: Scraper, port: int, pushes: int) -> float:
    """Push one call that often to a service, wait until it has added all up, scrape, and stop it, which saves the sums.

    Gives how many calls the counter shows.
    """
    with process(folder, OTEL_PROMETHEUS_PORT=str(port)) as (running, base):
        with httpx.Client(base_url=base, headers={"X-API-Key": KEY}, timeout=10) as client:
            for _ in range(pushes):
                client.post("/metrics", json={"service": "test", "metrics": [CALL]}).raise_for_status()
            assert client.post("/flush").json()["status"] == "success"
        shown = scraper.scrape()
        running.terminate()
        running.wait(timeout=20)
    (calls,) = (value for (name, _), value in shown.items() if name == "mcp_tool_executions_total")
    return calls


def test_the_same_restore_finds_a_service_whose_sums_go_back_with_the_database(tmp_path: Path) -> None:
    """Sums that were kept in the database would be those of the backup."""
    port = free_port()
    scraper = Scraper(f"http://127.0.0.1:{port}/metrics")
    assert push_and_save(tmp_path, scraper, port, 10) == 10
    (state,) = tmp_path.rglob("state.db")
    before = tmp_path / "before"
    before.write_bytes(state.read_bytes())
    assert push_and_save(tmp_path, scraper, port, 20) == 30
    with closing(sqlite3.connect(state, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS before", (str(before),))
        assert connection.execute("REPLACE INTO records SELECT * FROM before.records").rowcount > 0
    push_and_scrape(tmp_path, scraper, port, 0)
    assert [(most, now) for (name, _), most, now in scraper.went_back if name == "mcp_tool_executions_total"] == [
        (30, 10)
    ]
