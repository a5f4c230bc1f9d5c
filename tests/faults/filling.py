"""Clients that push all the time and keep books of what they were answered, and a file that takes all the room of a disk."""

from __future__ import annotations

import http.client
import json
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import httpx

from tests.books import assert_shown_as_taken_in
from tests.running import KEY, scraped
from tests.scrapes import total

CLIENTS = 8
METRICS = 2
PADDING = "x" * 900
"""In every metric, so that little room is soon gone."""
PACE = 0.05
"""Seconds between two pushes of a client: the disk is filled by others."""
PATIENCE = 10.0
"""Seconds; a push that takes longer hangs."""


class Pushers:
    """Clients that push one document after the other, each with an id of its own, until told to end."""

    def __init__(self, base: str, before: Pushers | None = None, pace: float = PACE) -> None:
        self.sent: set[str] = before.sent if before else set()
        self.acknowledged: set[str] = before.acknowledged if before else set()
        self.statuses: Counter[int] = Counter()
        self.took: list[float] = []
        """Seconds, of each push that was answered 200."""
        self.wrong: list[str] = []
        """Answers that are not as they should be: neither 200 nor 503, 503 without Retry-After, none at all."""
        self.ending = False
        """Whether the service may go away now."""
        self._address = urlsplit(base).netloc
        self._pace = pace
        self._ended = threading.Event()
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._push, args=(n,), daemon=True) for n in range(CLIENTS)]

    def __enter__(self) -> Pushers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Push no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE + 5)

    def wait_for(self, status: int, more: int, seconds: float) -> float:
        """Wait until so many more were answered that; how long it took. Fails after `seconds`."""
        began = time.monotonic()
        with self._changed:
            wanted = self.statuses[status] + more
            assert self._changed.wait_for(lambda: self.statuses[status] >= wanted, seconds), (
                f"{more} times {status} did not come in {seconds} s: {self.statuses}, {self.wrong[:5]}"
            )
        return time.monotonic() - began

    def _push(self, number: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE)
        count = 0
        while not self._ended.is_set():
            count += 1
            push_id = f"{number}-{count}-{random.getrandbits(48):x}"
            self.sent.add(push_id)
            began = time.monotonic()
            try:
                answer = _post(connection, push_id)
                self._note(push_id, time.monotonic() - began, *answer)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if not self.ending:
                    with self._changed:
                        self.wrong.append(f"no answer: {error!r}")
                self._ended.wait(self._pace)
        connection.close()

    def _note(self, push_id: str, took: float, status: int, retry_after: str | None, body: bytes) -> None:
        with self._changed:
            if status == 200:
                self.acknowledged.add(push_id)
                self.took.append(took)
            elif status != 503 or not (retry_after or "").isdigit():
                self.wrong.append(f"{status}, Retry-After: {retry_after}, {body[:200]!r}")
            self.statuses[status] += 1
            self._changed.notify_all()
        self._ended.wait(self._pace)


def metrics_of(*pushes: str) -> list[str]:
    """The ids of the metrics of these pushes, which collectors see as well."""
    return [f"{push_id}-{place}" for push_id in pushes for place in range(METRICS)]


def _post(connection: http.client.HTTPConnection, push_id: str) -> tuple[int, str | None, bytes]:
    metrics = [
        {"type": "custom", "value": place, "dimensions": {"id": id}, "metadata": {"id": push_id, "padding": PADDING}}
        for place, id in enumerate(metrics_of(push_id))
    ]
    connection.request("POST", "/metrics", json.dumps({"service": "test", "metrics": metrics}), {"X-API-Key": KEY})
    answer = connection.getresponse()
    return answer.status, answer.getheader("Retry-After"), answer.read()


class Ballast:
    """A file of somebody else, on the same disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self, leaving: int = 0) -> None:
        """Take all the room that there is but `leaving` bytes; if that is 0, also what is kept back for root."""
        with self._path.open("ab", buffering=0) as file:
            for chunk in (b"x" * 65536, b"x" * 512):
                with suppress(OSError):
                    while not leaving or _room(self._path) > leaving:
                        file.write(chunk)

    def remove(self) -> None:
        """Give it back."""
        self._path.unlink()


def _room(path: Path) -> int:
    there = os.statvfs(path)
    return there.f_bavail * there.f_frsize


def settle(base: str, seconds: float) -> None:
    """Flush until everything is stored: an exporter that has failed waits before it tries again. What came in is accounted for."""
    deadline = time.monotonic() + seconds
    while True:
        answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=60)
        if answer.json()["status"] == "success":
            return assert_shown_as_taken_in(scraped[base])
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)


def sent_by_the_books(base: str, exporter: str = "sqlite") -> float:
    """How many items an exporter of events has taken, by its account: of the store, how many rows there must be."""
    shown = httpx.get(scraped[base], timeout=30).raise_for_status().text
    return total(shown, "books_items", exporter=exporter, pipeline="events", column="sent")


def faults_of(pushers: Pushers, database: Path) -> dict[str, set[str]]:
    """The pushes that are not stored as they should be, by what is wrong."""
    query = "SELECT json_extract(metadata, '$.id'), count(*) FROM metrics WHERE timestamp > '2021' GROUP BY 1"
    with closing(sqlite3.connect(database)) as connection:
        rows = dict(connection.execute(query).fetchall())
    found = {
        "lost": pushers.acknowledged - rows.keys(),
        "never sent": rows.keys() - pushers.sent,
        "in part or twice": {push for push, count in rows.items() if count != METRICS},
    }
    return {what: pushes for what, pushes in found.items() if pushes}


def intact(data: Path) -> bool:
    """Whether SQLite finds nothing wrong with any file there."""
    files = [data / "metrics.db", *(data / "metrics-journal").glob("*.db")]
    assert len(files) > 1
    for file in files:
        with closing(sqlite3.connect(file)) as connection:
            if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                return False
    return True
