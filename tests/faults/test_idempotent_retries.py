"""Clients that are cut off before the answer and send again: with an `Idempotency-Key` each push is stored once.

Without a key it cannot be, and the same clients count what is stored twice: the negative control.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_kill import answer_status, stored
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 600))]

SENDS = sized(2000, 10_000)
CLIENTS = 16
CUT = 0.2
"""The share of tries that are cut off."""
METRICS = 3


@dataclass
class Sent:
    """What the clients know of it."""

    answered: set[str] = field(default_factory=set)
    tries: int = 0
    cut_off: int = 0


class Client:
    """Sends each push again until it is answered, on one kept-alive connection as long as that lasts."""

    def __init__(self, port: int, sent: Sent, lock: threading.Lock, *, keyed: bool) -> None:
        self._port = port
        self._sent = sent
        self._lock = lock
        self._keyed = keyed
        self._connection: socket.socket | None = None

    def push(self, name: str) -> None:
        """Push until answered."""
        items = [{"type": "custom", "value": place, "metadata": {"id": name}} for place in range(METRICS)]
        body = json.dumps({"service": "test", "metrics": items}).encode()
        key = f"Idempotency-Key: {name}\r\n" if self._keyed else ""
        head = f"POST /metrics HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n{key}Content-Length: {len(body)}\r\n\r\n"
        answered = False
        while not answered:
            cut = random.random() < CUT
            with self._lock:
                self._sent.tries += 1
                self._sent.cut_off += cut
            with suppress(OSError):
                answered = self._try(head.encode() + body, cut=cut)
        with self._lock:
            self._sent.answered.add(name)

    def _try(self, request: bytes, *, cut: bool) -> bool:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        self._connection.sendall(request)
        if not cut:
            with self._connection.makefile("rb") as answers:
                status = answer_status(answers)
            assert status == 200, status
            return True
        if random.random() < 0.5:
            self._connection.recv(1, socket.MSG_PEEK)  # the answer is on its way, and never read
        self.close()
        return False

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def send_all(folder: Path, server: str, *, keyed: bool) -> tuple[Sent, Counter[str]]:
    """Send that many pushes: what the clients know, and how many rows there are of each push."""
    sent, lock, names = Sent(), threading.Lock(), iter(range(SENDS))
    with process(folder, METRICS_SERVER=server) as (_, base):

        def run_client(_: int) -> None:
            client = Client(int(base.rpartition(":")[2]), sent, lock, keyed=keyed)
            while True:
                with lock:
                    number = next(names, None)
                if number is None:
                    break
                client.push(f"push-{number}")
            client.close()

        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(run_client, range(CLIENTS)))
        answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=60)
        assert answer.json()["status"] == "success"
    rows = stored(folder / "metrics.db")
    return sent, rows


def figures(sent: Sent, rows: Counter[str]) -> dict[str, int]:
    """For the report."""
    again = rows.total() // METRICS - len(rows)
    return {
        "pushes": SENDS,
        "tries": sent.tries,
        "cut off": sent.cut_off,
        "lost": len(sent.answered - rows.keys()),
        "stored again": again,
    }


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
def test_what_is_sent_again_with_its_key_is_stored_once(tmp_path: Path, server: str, report: Report) -> None:
    sent, rows = send_all(tmp_path, server, keyed=True)
    report(**figures(sent, rows))
    assert sent.cut_off > SENDS * CUT / 2
    assert len(sent.answered) == SENDS
    assert rows == Counter(dict.fromkeys(sent.answered, METRICS))


def test_without_keys_the_same_clients_find_duplicates(tmp_path: Path, report: Report) -> None:
    sent, rows = send_all(tmp_path, "uvicorn", keyed=False)
    assert rows.keys() == sent.answered
    report(control="found", **figures(sent, rows))
    twice = [name for name, count in rows.items() if count > METRICS]
    assert twice != [], f"{sent.cut_off} pushes were cut off, and none was stored twice: this test proves nothing here"
    assert all(count % METRICS == 0 for count in rows.values()), "stored in part"
