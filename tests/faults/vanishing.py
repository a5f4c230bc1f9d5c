"""A real service whose files are removed, moved, replaced or truncated while it runs, and what a person does about it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.faults.changed import plugin
from tests.faults.filling import Pushers, faults_of
from tests.running import KEY, command, free_port, wait_until_healthy

GRACE = 1.5
"""Seconds that a file may be gone; 30 in production."""
REFUSED_AFTER = 1.0
"""Seconds in which pushes may still be acknowledged. The promise is for a machine that is not overloaded: see `SLACK`."""
SLACK = 1.5
IO_ERROR, MUST_DECIDE = 74, 78

QUICK = f"""
from functools import partial

import pipeline.service
from pipeline import hookimpl
from pipeline.presence import Presence

pipeline.service.Presence = partial(Presence, grace={GRACE})


@hookimpl
def declare_components():
    return []
"""
"""A service that waits for less than 30 s."""
BLIND = """
import pipeline.service
from pipeline import hookimpl
from pipeline.presence import Presence


class Blind(Presence):
    async def check(self):
        pass


pipeline.service.Presence = Blind


@hookimpl
def declare_components():
    return []
"""
"""A service that examines nothing, as services did before."""

FILES = (
    "metrics.db",
    "metrics.db-wal",
    "metrics.db-shm",
    "metrics.db.lock",
    *(
        f"metrics-journal/{name}{end}"
        for name in ("events", "metrics")
        for end in (".db", ".db-wal", ".db-shm", ".mark", ".lock")
    ),
    "metrics-journal/state.db",
    "metrics-journal/state.db-wal",
    "metrics-journal/state.db-shm",
    "metrics-journal/state.lock",
    "metrics-journal",
    "",
)
"""Below the data's folder, which is the last one."""


class TimedPushers(Pushers):
    """Pushers that know when each acknowledgement arrived."""

    last_acknowledged = 0.0

    def __enter__(self) -> TimedPushers:
        super().__enter__()
        return self

    def _note(self, push_id: str, took: float, status: int, retry_after: str | None, body: bytes) -> None:
        if status == 200:
            self.last_acknowledged = time.monotonic()
        super()._note(push_id, took, status, retry_after, body)


@dataclass
class Data:
    """The folder of one service's data, and the service."""

    folder: Path
    arguments: tuple[str, ...]
    problems: list[str] = field(default_factory=list)

    @classmethod
    def made(cls, folder: Path, change: str = QUICK) -> Data:
        """An empty one, and a service with that plugin."""
        (folder / "data").mkdir(mode=0o750)
        return cls(folder, plugin(folder, change))

    @property
    def path(self) -> Path:
        """Where the data are."""
        return self.folder / "data"

    @property
    def log(self) -> str:
        """What the services of this folder have logged."""
        return (self.folder / "service.log").read_text()

    def lines(self, logger: str) -> list[str]:
        """The messages of one logger."""
        records = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [record["message"] for record in records if record["logger"] == logger]

    def start(self) -> tuple[subprocess.Popen[bytes], str]:
        """Start it; it need not become healthy."""
        port = free_port()
        chosen = {
            "SQLITE_DB_PATH": str(self.path / "metrics.db"),
            "FLUSH_INTERVAL_SECONDS": "0.1",
            "METRICS_SERVICE_PORT": str(port),
            "METRICS_SERVICE_HOST": "127.0.0.1",
            "OTEL_PROMETHEUS_PORT": str(free_port()),
        }
        called, environ = command(self.folder, *self.arguments, **chosen)
        with (self.folder / "service.log").open("ab") as log:
            running = subprocess.Popen(called, env=environ, stderr=log, cwd=self.folder, start_new_session=True)
        return running, f"http://127.0.0.1:{port}"

    @contextmanager
    def service(self) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        """The same, healthy, and killed at the end."""
        running, base = self.start()
        try:
            wait_until_healthy(base, running, self.folder / "service.log")
            yield running, base
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()

    def refused_start(self) -> bool:
        """Start it where a copy waits for a person: whether it refuses, and names that."""
        running, _ = self.start()
        try:
            return running.wait(20) == MUST_DECIDE and ".rescued-" in self.log.splitlines()[-1]
        finally:
            running.kill()
            running.wait()

    def copies(self) -> list[Path]:
        """What was saved: files, or a folder of them."""
        found = [each for each in self.folder.rglob("*.rescued-*") if re.search(r"\.rescued-\w+Z$", each.name)]
        return [each for each in found if ".rescued-" not in str(each.parent)]

    def remedy(self) -> int:
        """Move every copy to its place, as the log says. Returns how many there were."""
        copies = self.copies()
        for copy in copies:
            place = copy.with_name(copy.name.partition(".rescued-")[0])
            if place.is_dir():
                shutil.rmtree(place)
            copy.rename(place)
        return len(copies)


def another(path: Path) -> Path:
    """A file or folder that is not the one at that path, beside it."""
    other = path.with_name(f"{path.name}.other")
    if path.is_dir():
        other.mkdir()
    elif path.suffix == ".db":
        with closing(sqlite3.connect(other)) as connection:
            connection.execute("CREATE TABLE other (n)")
            connection.commit()
    else:
        other.write_bytes(random.Random(1).randbytes(5000))
    return other


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it."""
    if path.is_dir():
        while path.exists():
            shutil.rmtree(path, ignore_errors=True)  # the service may make a file there meanwhile
    else:
        path.unlink()


def replace(path: Path) -> None:
    """Rename something else over it, as a restore does that forgets to stop the service."""
    other = another(path)
    if path.is_dir():
        path.rename(path.with_name(f"{path.name}.before"))
    other.rename(path)


def move(path: Path) -> None:
    """Give it another name."""
    path.rename(moved(path))


def moved(path: Path) -> Path:
    """That name."""
    return path.with_name(f"{path.name}.moved")


def overwrite(path: Path) -> None:
    """Write an empty database into the same file, as a shell does that restores a backup with `>`."""
    other = another(path)
    path.write_bytes(other.read_bytes())
    other.unlink()


def truncate(path: Path) -> None:
    """Cut it to nothing."""
    os.truncate(path, 0)


Accident = Callable[[Path], None]


def accident_under_load(
    data: Data, path: Path, accident: Accident, *, back: Callable[[], object] | None = None
) -> TimedPushers:
    """Push, let it happen, and see that nothing is acknowledged any more; put the file back, or wait for the end."""
    with data.service() as (running, base), TimedPushers(base, pace=0.02) as pushers:
        pushers.wait_for(200, more=100, seconds=20)
        pushers.ending = True
        happened = time.monotonic()
        accident(path)
        _see_what_follows(data, running, base, pushers, happened, back)
    return pushers


def accident_when_idle(
    data: Data, path: Path, accident: Accident, *, back: Callable[[], object] | None = None
) -> TimedPushers:
    """The same of a service that has stored all that was pushed before, and to which nothing is sent for a second."""
    with data.service() as (running, base):
        with TimedPushers(base, pace=0.02) as before:
            before.wait_for(200, more=40, seconds=20)
        httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30).raise_for_status()
        happened = time.monotonic()
        accident(path)
        _wait_until(lambda: running.poll() is not None or _status(base) == 503, "is unhealthy", data)
        pushers = TimedPushers(base, before, pace=0.02)
        pushers.ending = True
        with pushers:
            _see_what_follows(data, running, base, pushers, happened, back)
    return pushers


def _see_what_follows(
    data: Data,
    running: subprocess.Popen[bytes],
    base: str,
    pushers: TimedPushers,
    happened: float,
    back: Callable[[], object] | None,
) -> None:
    deadline = happened + REFUSED_AFTER + SLACK
    while not pushers.statuses[503] and running.poll() is None and time.monotonic() < deadline + 1:
        time.sleep(0.02)
    if running.poll() is None and back is not None:
        time.sleep(max(0.0, happened + REFUSED_AFTER - time.monotonic()))
        if pushers.last_acknowledged > deadline:
            data.problems.append("acknowledged after the first second")
        ready = httpx.get(f"{base}/health/ready", timeout=5)
        if ready.status_code != 503 or str(data.path) not in ready.json()["components"].get("files", ""):
            data.problems.append(f"health: {ready.text}")
        back()
        pushers.wait_for(200, more=20, seconds=REFUSED_AFTER + SLACK)
        pushers.end()
        running.send_signal(signal.SIGTERM)
        code = running.wait(30)
        if code:
            data.problems.append(f"ended with {code}")
        return
    try:
        code = running.wait(GRACE + 10)
    except subprocess.TimeoutExpired:
        data.problems.append("does not end")
    else:
        data.problems += [] if code in (IO_ERROR, -signal.SIGBUS) else [f"ended with {code}"]
    if pushers.last_acknowledged > deadline:
        data.problems.append(f"acknowledged {pushers.last_acknowledged - happened:.1f} s later")


def _status(base: str) -> int:
    try:
        return httpx.get(f"{base}/health", timeout=2).status_code
    except httpx.TransportError:
        return 0


def _wait_until(condition: Callable[[], bool], what: str, data: Data) -> None:
    deadline = time.monotonic() + REFUSED_AFTER + SLACK
    while not condition():
        if time.monotonic() > deadline:
            data.problems.append(f"never {what}")
            return
        time.sleep(0.02)


def started_again(data: Data, pushers: Pushers) -> None:
    """Do what the log says, start again, and compare what is stored with what was acknowledged."""
    if data.copies() and not data.refused_start():
        data.problems.append("starts beside a copy")
    data.remedy()
    with data.service() as (running, base):
        deadline = time.monotonic() + 20
        while httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=30).json()["status"] != "success":
            assert time.monotonic() < deadline, data.log
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    found = faults_of(pushers, data.path / "metrics.db")
    data.problems += [f"{what}: {len(pushes)}" for what, pushes in found.items()]
