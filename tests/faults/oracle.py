"""An oracle: what clients have sent and were answered, and from that what must be stored, may be, and must not be.

A push is an obligation only once a 200 for it was read. What is in it follows from its id, so that a changed value is seen.
"""

from __future__ import annotations

import http.client
import json
import random
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.running import KEY

CLIENTS = 8
PACE = 0.05
"""Seconds between two requests of a client."""
HUNG_UP = 0.05
"""The share of requests whose client does not wait for the answer."""
MAYBE = (408, 503)
"""Answers after which a push may be stored all the same (docs/api.md)."""

Fact = tuple[Any, ...]
"""What is stored of an event. The first is the push's id."""


def events(push: str) -> list[dict[str, Any]]:
    """The events of a push: nothing but its id decides what is in them."""
    drawn = random.Random(push)
    return [
        {
            "type": "custom",
            "value": drawn.randrange(2**40) / 1024,
            "duration_ms": drawn.choice([None, drawn.randrange(60_000)]),
            "dimensions": {"id": push, "place": place},
            "metadata": {"text": drawn.randbytes(drawn.randrange(200)).hex()},
        }
        for place in range(drawn.randint(1, 4))
    ]


def as_rows(push: str) -> set[Fact]:
    """A push as `rows` finds it."""
    return {
        (push, each["dimensions"]["place"], each["value"], each["duration_ms"], each["metadata"]["text"])
        for each in events(push)
    }


def rows(database: Path) -> Counter[Fact]:
    """What SQLite holds, and how often."""
    sql = """SELECT json_extract(dimensions, '$.id'), json_extract(dimensions, '$.place'), value, duration_ms,
                    json_extract(metadata, '$.text') FROM metrics"""
    with closing(sqlite3.connect(database)) as connection:
        return Counter(connection.execute(sql))


def as_points(push: str) -> set[Fact]:
    """A push as a collector gets it: a point for each value, and one for each duration, in seconds."""
    found: set[Fact] = set()
    for each in events(push):
        found.add((push, each["dimensions"]["place"], "mcp.event.custom", each["value"]))
        if each["duration_ms"] is not None:
            found.add((push, each["dimensions"]["place"], "mcp.event.custom.duration", each["duration_ms"] / 1000))
    return found


@dataclass
class Ledger:
    """What the clients know."""

    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    """Pushes with a key that had no 200 when everything ended."""
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    replays: int = 0
    """Answers that say that the push was stored before."""
    wrong: list[str] = field(default_factory=list)
    """Answers that there must not be."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, push: str, answer: http.client.HTTPResponse) -> None:
        """A push was answered."""
        body = answer.read()
        with self.lock:
            self.statuses[answer.status] += 1
            self.replays += answer.getheader("Idempotent-Replay") == "true"
            if answer.status == 200:
                self.acknowledged.add(push)
            elif answer.status not in MAYBE:
                self.wrong.append(f"{answer.status} {body[:200]!r}")


class Client(threading.Thread):
    """Sends one push after the other; `keyed`, each until it is answered 200, else each once."""

    def __init__(self, address: str, ledger: Ledger, number: int, ended: threading.Event) -> None:
        super().__init__(daemon=True)
        self.keyed = number % 2 == 0
        self.ledger = ledger
        self.abandoned = threading.Event()
        """Told to send nothing again either."""
        self._number = number
        self._ended = ended
        # Half of them leave before a service that stands still goes on.
        self._connection = http.client.HTTPConnection(address, timeout=20 if number // 2 % 2 else 0.8)

    def run(self) -> None:
        """Send until told to end."""
        count = 0
        while not self._ended.wait(PACE):
            count += 1
            push = f"{self._number}-{count}-{random.getrandbits(48):x}"
            self.send(push)
            while self.keyed and push not in self.ledger.acknowledged:
                if self.abandoned.wait(PACE):
                    self.ledger.given_up.add(push)
                    return
                self.send(push)
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def send(self, push: str) -> None:
        """Send it once."""
        self.ledger.sent.add(push)
        headers = {"X-API-Key": KEY} | ({"Idempotency-Key": push} if self.keyed else {})
        try:
            self._connection.request(
                "POST", "/metrics", json.dumps({"service": "test", "metrics": events(push)}), headers
            )
            if random.random() < HUNG_UP:
                raise ConnectionAbortedError
            self.ledger.note(push, self._connection.getresponse())
        except (OSError, http.client.HTTPException):
            self._connection.close()
            with self.ledger.lock:
                self.ledger.unanswered += 1


@dataclass
class Verdict:
    """The pushes that are not as they should be, in one place where they are kept."""

    missing: set[str]
    """Acknowledged, and not there."""
    spurious: set[str]
    """There, and never sent."""
    corrupted: set[str]
    """There in part, or with other values than those that were sent."""
    twice: set[str]

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(pushes) for name, pushes in vars(self).items()}


def judge(ledger: Ledger, found: Counter[Fact], expected: Callable[[str], set[Fact]]) -> Verdict:
    """Hold what was found against what was sent and acknowledged."""
    pushes: dict[str, set[Fact]] = defaultdict(set)
    for fact in found:
        pushes[fact[0]].add(fact)
    return Verdict(
        missing=ledger.acknowledged - pushes.keys(),
        spurious=pushes.keys() - ledger.sent,
        corrupted={push for push, facts in pushes.items() if push in ledger.sent and facts != expected(push)},
        twice={fact[0] for fact, times in found.items() if times > 1},
    )
