"""`kill -9` at a random moment: everything that was answered 200 is in SQLite exactly once.

With its negative control: the same test against a service that answers from memory must fail, or it would prove nothing.
"""

from __future__ import annotations

import json
import random
import socket
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.faults.changed import BUSY, plugin
from tests.faults.filling import sent_by_the_books
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(240, 3600))]

ROUNDS = sized(12, 500)
"""Over both servers."""
CONTROL_ROUNDS = 5
"""A service that is wrong on purpose has lost something by then."""
CLIENTS = 32
METRICS = 5


@dataclass
class Books:
    """The ids of the pushes that were sent and of those that were answered 200, and what the service's own books say in the end."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    taken: float = 0
    """How many metrics the store has taken by its account, in the journal's books."""


def client(base: str, books: Books, number: int, ended: threading.Event) -> None:
    """Push unique documents on one kept-alive connection until the service dies."""
    address = urlsplit(base)
    assert address.hostname is not None
    assert address.port is not None
    count = 0
    try:
        with (
            socket.create_connection((address.hostname, address.port), timeout=5) as sock,
            sock.makefile("rb") as answers,
        ):
            while not ended.is_set():
                count += 1
                push_id = f"{number}-{count}-{random.getrandbits(48):x}"
                metrics = [{"type": "custom", "value": place, "metadata": {"id": push_id}} for place in range(METRICS)]
                body = json.dumps({"service": "test", "metrics": metrics}).encode()
                head = f"POST /metrics HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
                books.sent.add(push_id)
                sock.sendall(head.encode() + body)
                if answer_status(answers) == 200:
                    books.acknowledged.add(push_id)
    except OSError:
        pass


def answer_status(answers: object) -> int:
    """Read one whole answer; raise `ConnectionError` if the service is gone."""
    line = answers.readline()  # type: ignore[attr-defined]
    if not line:
        raise ConnectionError
    length = 0
    while (header := answers.readline().strip()) != b"":  # type: ignore[attr-defined]
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    answers.read(length)  # type: ignore[attr-defined]
    return int(line.split()[1])


def stored(database: Path) -> Counter[str]:
    """How many rows of each push there are."""
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT json_extract(metadata, '$.id'), count(*) FROM metrics GROUP BY 1").fetchall()
    connection.close()
    return Counter(dict(rows))


def kill_rounds(folder: Path, rounds: int, server: str, *arguments: str, busy: tuple[str, ...] = ()) -> Books:
    """Load and kill that many times, then start once more and flush. Every other time the service has the arguments `busy` as well."""
    books = Books()
    for number in range(rounds):
        chosen = (*arguments, *(busy if number % 2 else ()))
        with process(folder, *chosen, METRICS_SERVER=server, FLUSH_INTERVAL_SECONDS="0.2") as (running, base):
            ended = threading.Event()
            clients = [
                threading.Thread(target=client, args=(base, books, number, ended), daemon=True)
                for number in range(CLIENTS)
            ]
            for each in clients:
                each.start()
            time.sleep(random.uniform(0.1, 0.7))  # the moment of the kill is the point of the test
            running.kill()
            ended.set()
            for each in clients:
                each.join(timeout=10)
    with process(folder, *arguments, METRICS_SERVER=server) as (_, base):
        answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=sized(60, 600))
        assert answer.json() == {"status": "success", "message": "Metrics flushed to storage"}
        books.taken = sent_by_the_books(base)
    return books


def compared(books: Books, rows: Counter[str]) -> dict[str, set[str]]:
    """The pushes that are not stored as they should be, by what is wrong."""
    return {
        "lost": books.acknowledged - rows.keys(),
        "never sent": rows.keys() - books.sent,
        "in part or twice": {push for push, count in rows.items() if count != METRICS},
    }


def figures(books: Books, rows: Counter[str]) -> dict[str, int]:
    """The same for the report."""
    wrong = {what: len(pushes) for what, pushes in compared(books, rows).items()}
    return {"acknowledged": len(books.acknowledged), **wrong}


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
def test_kill_9_loses_nothing_that_was_acknowledged_and_stores_nothing_twice(
    tmp_path: Path, server: str, report: Report
) -> None:
    books = kill_rounds(tmp_path, ROUNDS // 2, server, busy=plugin(tmp_path, BUSY))
    rows = stored(tmp_path / "metrics.db")
    assert books.taken == rows.total()
    report(kills=ROUNDS // 2, **figures(books, rows), books="exact")
    assert len(books.acknowledged) > 10 * ROUNDS
    assert compared(books, rows) == {"lost": set(), "never sent": set(), "in part or twice": set()}
    with sqlite3.connect(tmp_path / "metrics.db") as connection:
        ((summed,),) = connection.execute("SELECT sum(count) FROM metrics_hourly")
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    connection.close()
    assert summed == rows.total()


def test_the_same_kills_find_a_service_that_answers_from_memory(tmp_path: Path, report: Report) -> None:
    for kill in range(CONTROL_ROUNDS):
        folder = tmp_path / str(kill)
        folder.mkdir()
        books = kill_rounds(folder, 1, "uvicorn", "--set", "processors.batch.durability=none")
        found = figures(books, stored(folder / "metrics.db"))
        if found["lost"]:
            report(control="found", kills=kill + 1, **found)
            return
    pytest.fail(f"nothing was lost in {CONTROL_ROUNDS} kills")
