"""Whatever the rules allow, from whoever holds a key, the service stays within the memory of the shipped pod and stores what it accepted.

The limit is on the resident set (`VmHWM`): a thread reads it and kills the process at 512 MiB, as the kernel kills a pod. The
kernel also counts page cache, but reclaims that first. The exporters are stuck while the pushes arrive: another program holds the
write lock of the database, and the collector accepts requests and never answers.

With its negative control: a service without a budget must be killed.
"""

from __future__ import annotations

import gzip
import http.client
import itertools
import queue
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.faults import changed
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_bombs import memory_of
from tests.running import KEY, process, rows

pytestmark = [pytest.mark.faults, pytest.mark.alone, pytest.mark.timeout(sized(240, 1800))]

LIMIT = 512 * 2**20
"""Bytes: the memory limit of k8s/base/statefulset.yaml."""
SETTLED = 120
"""Seconds until all is stored once the database is free."""
EMOJI = "\U0001f389"
"""Python stores a string with one of these in four bytes for each character."""


def metric(dimensions: str = "", metadata: str = "") -> str:
    """A metric with these entries."""
    parts = ['"type":"custom","value":1']
    parts += [f'"dimensions":{{{dimensions}}}'] if dimensions else []
    parts += [f'"metadata":{{{metadata}}}'] if metadata else []
    return f"{{{','.join(parts)}}}"


def entries(count: int, value: str, prefix: str = "k") -> str:
    """So many entries with this value."""
    return ",".join(f'"{prefix}{number}":{value}' for number in range(count))


def nested(depth: int, times: int) -> str:
    """A list of objects in lists, so deep."""
    return "[" + ",".join(['{"a":[' * depth + "]}" * depth] * times) + "]"


def named(number: int) -> str:
    """20 dimensions whose names occur nowhere else."""
    return ",".join(f'"{f"n{number}_{place}_":x<50}":1' for place in range(20))


@dataclass(frozen=True)
class Shape:
    """Pushes of one kind. `make` gives the metrics of one; `count` are sent, `at_a_time` of them together."""

    make: Callable[[], list[str]]
    count: int
    at_a_time: int = 4
    packed: bool = False


SHAPES = {
    "lists in metadata": Shape(
        lambda: [metric("", entries(30, f"[{','.join(['[]'] * 333)}]"))] * 31, 18, 6, packed=True
    ),
    "every dimension and all metadata": Shape(
        lambda: [metric(entries(20, '"abcdefgh"', "dimension_"), entries(30, "1234567", "m"))] * 10_000, 16, 16
    ),
    "long texts with an emoji": Shape(lambda: [metric("", entries(30, f'"{EMOJI}{"x" * 999}"'))] * 320, sized(1, 12)),
    "dimensions with an emoji": Shape(lambda: [metric(entries(20, f'"{EMOJI}{"x" * 190}"'))] * 2_200, sized(1, 12)),
    "objects in lists": Shape(lambda: [metric("", entries(30, nested(15, 8)))] * 80, sized(1, 12), packed=True),
    "small integers": Shape(lambda: [metric("", entries(30, f"[{','.join('1' * 490)}]"))] * 43, sized(1, 12)),
    "small dimensions": Shape(lambda: [metric(entries(20, "7", "d"))] * 10_000, sized(1, 12)),
    "fractions": Shape(lambda: [metric(entries(20, "0.5", "d"), entries(30, "0.5", "m"))] * 10_000, sized(1, 12)),
    "names that occur once": Shape(lambda: [metric(named(number)) for number in range(8_000)], sized(1, 12)),
    "smallest metrics": Shape(lambda: [metric()] * 10_000, sized(1, 30)),
    "small pushes": Shape(lambda: [metric(entries(3, f'"{EMOJI}"'), entries(3, "[[],[]]"))], sized(200, 20_000), 8),
}
"""What the rules of docs/api.md allow at most, in each direction."""


TOO_MUCH = ("every dimension and all metadata", "long texts with an emoji", "dimensions with an emoji")


@dataclass
class Sent:
    """What became of pushes, each from a service of its own name."""

    accepted: dict[str, int] = field(default_factory=dict)
    """The number of metrics, by service."""
    tried: dict[str, int] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    names: Iterator[int] = field(default_factory=itertools.count)

    def send(self, port: int, shape: Shape, idempotent: bool = False) -> None:
        """All pushes of a shape. One that is answered 503 is sent again."""
        metrics = shape.make()
        tail = f'","metrics":[{",".join(metrics)}]}}'.encode()
        numbers = queue.SimpleQueue[int]()
        for number in itertools.islice(self.names, shape.count):
            numbers.put(number)
            self.tried[f"s{number}"] = len(metrics)

        def send_some() -> None:
            with (
                closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection,
                suppress(queue.Empty),
            ):
                while True:
                    name = f"s{numbers.get_nowait()}"
                    body, headers = b'{"service":"' + name.encode() + tail, {"X-API-Key": KEY}
                    if shape.packed:
                        body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
                    if idempotent:
                        headers["Idempotency-Key"] = name
                    if self._push(connection, body, headers) == 200:
                        self.accepted[name] = len(metrics)

        with ThreadPoolExecutor(shape.at_a_time) as threads:
            for each in [threads.submit(send_some) for _ in range(shape.at_a_time)]:
                each.result()

    def _push(self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> int:
        """The status in the end; 0 if there was no answer."""
        deadline = time.monotonic() + SETTLED
        while True:
            try:
                connection.request("POST", "/metrics", body, headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.statuses[0] += 1
                return 0
            self.statuses[answer.status] += 1
            if answer.status != 503 or time.monotonic() > deadline:
                return answer.status
            time.sleep(0.5)

    def missing(self, database: Path) -> dict[str, tuple[int, int]]:
        """The services with other rows than were accepted: how many there are, and how many there must be. What was not answered
        may be stored or not."""
        stored: dict[str, int] = dict(rows(database, "SELECT service, count(*) FROM metrics GROUP BY service"))
        wrong = {
            name: (stored.get(name, 0), count) for name, count in self.accepted.items() if stored.get(name, 0) != count
        }
        for name in stored.keys() - self.accepted.keys():
            if stored[name] != self.tried[name]:
                wrong[name] = (stored[name], self.tried[name])
        return wrong


class Watched:
    """A process that is killed when it holds more than the limit."""

    def __init__(self, running: subprocess.Popen[bytes]) -> None:
        self.peak = 0
        self.killed = False
        self.process = running
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.look()

    def look(self) -> int:
        """The most that it has held until now, in bytes."""
        with suppress(OSError, ValueError):  # it has ended
            self.peak = max(self.peak, memory_of(self.process.pid, "VmHWM"))
        return self.peak

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            if self.look() > LIMIT:
                self.killed = True
                self.process.kill()
                return


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program holds the write lock of the database."""
    with closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def black_hole() -> Iterator[str]:
    """A collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@contextmanager
def limited(folder: Path, server: str, *arguments: str, collector: str = "") -> Iterator[tuple[Watched, str]]:
    """A service with the configuration of production that is killed when it takes too much; and its base URL."""
    variables = {"METRICS_SERVER": server, "OTEL_OTLP_ENDPOINT": collector, "DB_CONNECTION_TIMEOUT": "0.2"}
    variables |= {"BATCH_SIZE": "100", "FLUSH_INTERVAL_SECONDS": "0.2"}
    with process(folder, *arguments, **variables) as (running, base), Watched(running) as watched:
        yield watched, base


def stored(base: str, database: Path, sent: Sent, watched: Watched) -> None:
    """Wait until all that was accepted is stored: the collector never answers, so a flush cannot tell."""
    expected, deadline = sum(sent.accepted.values()), time.monotonic() + SETTLED
    while rows(database, "SELECT count(*) FROM metrics") < [(expected,)]:
        assert not watched.killed, "it takes too much memory to deliver"
        assert time.monotonic() < deadline, "not stored in time"
        time.sleep(0.1)


def attack(folder: Path, server: str, shapes: Mapping[str, Shape], *arguments: str) -> Iterator[tuple[str, int]]:
    """Push while the exporters are stuck, kill the service, start it again, and let it store everything. Yields each step with the most
    memory that it took, in bytes; fails where a process took too much or something is lost."""
    sent, database = Sent(), folder / "metrics.db"
    with black_hole() as collector:
        with limited(folder, server, *arguments, collector=collector) as (watched, base), locked(database):
            for name, shape in shapes.items():
                sent.send(httpx.URL(base).port or 0, shape, idempotent=name == "small pushes")
                yield name, watched.look()
                assert not watched.killed, f"it takes too much memory: {name}"
            assert sent.statuses.keys() <= {200, 503}
            assert len(sent.accepted) == sum(shape.count for shape in shapes.values())
            watched.process.kill()  # with everything in the journal
        with limited(folder, server, *arguments, collector=collector) as (watched, base):
            stored(base, database, sent, watched)
            sent.send(httpx.URL(base).port or 0, shapes["small pushes"])
            stored(base, database, sent, watched)
            yield "start", watched.look()
    assert sent.missing(database) == {}


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
def test_what_was_accepted_is_stored_within_the_memory_of_the_shipped_pod(
    tmp_path: Path, server: str, report: Report
) -> None:
    report(**{f"{server} MiB": ", ".join(f"{name} {size // 2**20}" for name, size in attack(tmp_path, server, SHAPES))})


WRONG = """
import pipeline.journal_tail
from pipeline import hookimpl
from pipeline.memory import Memory

pipeline.journal_tail.TAIL_ITEMS = 10**9

configure = Memory.configure
Memory.configure = lambda self, total, workers: configure(self, 2**60, workers)


@hookimpl
def declare_components():
    return []
"""
"""A service without a budget, wrong on purpose. The number of items alone bounds what is recent only by chance, so that goes too."""


def test_the_same_finds_a_service_without_a_budget(tmp_path: Path) -> None:
    plugin = changed.plugin(tmp_path, WRONG)
    attacks = attack(
        tmp_path,
        "uvicorn",
        {name: SHAPES[name] for name in TOO_MUCH} | {"small pushes": SHAPES["small pushes"]},
        *plugin,
    )
    with pytest.raises(AssertionError, match="too much memory"):
        list(attacks)
