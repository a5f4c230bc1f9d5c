"""What can happen to a service, one thing after the other, in an order and for times that a seed decides."""

from __future__ import annotations

import random
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType

from tests.books import assert_balanced
from tests.faults.downstream import held_port
from tests.faults.filling import Ballast
from tests.faults.power import stop
from tests.faults.test_clock import HOUR, Clock
from tests.running import process

CONFIG = "oracle.yaml"
STOP_SECONDS = 15
"""What a stop may take: `service.stop_timeout`, and some."""
KILLED = 0.25
"""The share of the things that last in which the service is killed before they are over."""


class Subject:
    """The service, at the same address in each of its lives. Its data is in `data`, its configuration,
    CONFIG, its log and its clock's file in `folder`."""

    def __init__(self, folder: Path, data: Path, config: str, drawn: random.Random, *arguments: str) -> None:
        self.data = data
        self.clock = Clock(folder)
        self.lives = 0
        self._held = (held_port(), held_port())
        port, scraped = (each.getsockname()[1] for each in self._held)
        self.address = f"127.0.0.1:{port}"
        self.base = f"http://{self.address}"
        self.scraped = f"http://127.0.0.1:{scraped}/metrics"
        self._variables = {
            "METRICS_SERVICE_PORT": str(port),
            "OTEL_PROMETHEUS_PORT": str(scraped),
            "SQLITE_DB_PATH": str(data / "metrics.db"),
            "FLUSH_INTERVAL_SECONDS": "0.2",
            **self.clock.variables,
        }
        (folder / CONFIG).write_text(config)
        self._folder = folder
        self._drawn = drawn
        self._arguments = arguments
        self._life = ExitStack()

    def __enter__(self) -> Subject:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        for each in self._held:
            each.close()

    def start(self) -> None:
        """Start it, on one server or the other. The books of its last life balance."""
        assert_balanced((self.data / "metrics-journal").glob("*.db"))
        self.lives += 1
        variables = {**self._variables, "METRICS_SERVER": self._drawn.choice(["hypercorn", "uvicorn"])}
        started = process(self._folder, *self._arguments, config=str(self._folder / CONFIG), **variables)
        self.running, _ = self._life.enter_context(started)

    def kill(self) -> None:
        """`kill -9`; nothing happens if it has ended."""
        if self.running.poll() is None:
            self.running.kill()
            self.running.wait()
        self._life.close()

    def terminate(self) -> None:
        """Ask it to stop."""
        self.running.send_signal(signal.SIGTERM)
        ended = self.running.wait(STOP_SECONDS)
        assert ended == 0, f"a stop ended with exit code {ended}"
        self._life.close()
        assert_balanced((self.data / "metrics-journal").glob("*.db"))

    @property
    def config(self) -> str:
        """Its configuration."""
        return (self._folder / CONFIG).read_text()

    def reload(self, config: str) -> None:
        """Another configuration from now on."""
        (self._folder / CONFIG).write_text(config)
        self.running.send_signal(signal.SIGHUP)

    def reloads(self) -> int:
        """How many it has done, by its log."""
        said = (self._folder / "service.log").read_text()
        return said.count('"message": "reloading"') - said.count('"message": "not reloaded: ')

    def check(self) -> None:
        """It has not ended by itself."""
        assert self.running.poll() is None, f"it ended with exit code {self.running.returncode}"


class Mayhem:
    """`longest` is how many seconds a thing lasts at the most that lasts. `happened` counts them."""

    def __init__(self, subject: Subject, drawn: random.Random, longest: float) -> None:
        self.happened: Counter[str] = Counter()
        self._subject = subject
        self._drawn = drawn
        self._longest = longest

    def run(self, seconds: float, kinds: Sequence[str]) -> None:
        """Have these happen, each as often as the others, for that long, and each once in any case."""
        happens: dict[str, Callable[[], None]] = {
            "kill": self._subject.kill,
            "stop": self._subject.terminate,
            "pause": self._pause,
            "full disk": self._full_disk,
            "lock": self._lock,
            "clock": self._clock,
            "reload": self._reload,
        }
        until = time.monotonic() + seconds
        deck: list[str] = []
        while time.monotonic() < until or not all(self.happened[kind] for kind in kinds):
            deck = deck or self._drawn.sample(kinds, len(kinds))
            kind = deck.pop()
            time.sleep(self._drawn.uniform(0.2, 1.2))  # the moment is the point of the test
            self._subject.check()
            happens[kind]()
            self.happened[kind] += 1
            self._mend()

    def _mend(self) -> None:
        if self._subject.running.poll() is not None:
            self._subject.start()

    def _last(self) -> None:
        time.sleep(self._drawn.uniform(0.2, self._longest))  # as above
        if self._drawn.random() < KILLED:
            self._subject.check()
            self._subject.kill()
            self.happened["killed meanwhile"] += 1

    def _pause(self) -> None:
        stop(self._subject.running)
        self._last()
        if self._subject.running.poll() is None:
            self._subject.running.send_signal(signal.SIGCONT)

    def _full_disk(self) -> None:
        ballast = Ballast(self._subject.data / "ballast")
        ballast.fill()
        self._last()
        ballast.remove()

    def _lock(self) -> None:
        """Another program writes to the database, and takes its time."""
        with closing(sqlite3.connect(self._subject.data / "metrics.db", isolation_level=None, timeout=10)) as other:
            other.execute("BEGIN IMMEDIATE")
            self._last()

    def _reload(self) -> None:
        """Exporters are replaced, with whatever they have on its way."""
        self._subject.reload(
            re.sub(r"timeout: [0-9.]+s", f"timeout: {self._drawn.uniform(1, 3):.2f}s", self._subject.config)
        )
        self._last()

    def _clock(self) -> None:
        self._subject.clock.move(self._drawn.randint(-HOUR, HOUR))
