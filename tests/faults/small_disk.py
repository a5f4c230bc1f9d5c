"""Disks of a few megabytes, and a service with its data on one of them while clients push."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.books import assert_balanced
from tests.faults.filling import Pushers, faults_of, intact, settle
from tests.faults.power import disk, own_mounts
from tests.faults.sizes import sized
from tests.programs import lacking
from tests.running import ADMIN_KEY, command, free_port, process
from tests.scrapes import total

HOLD = sized(2, 60)
"""Seconds for which there is no room."""
RECOVERY = 5.0
"""Seconds that may pass from when there is room to the first push that is answered 200."""
TINY = 32 * 2**20


@contextmanager
def tmpfs(folder: Path, options: str = "", size: int = TINY) -> Iterator[Path]:
    """A disk of a few megabytes, in memory."""
    with own_mounts():
        mounted = folder / "disk"
        mounted.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(mounted)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode != 0:
            lacking(f"no small disks without the right to mount: {done.stderr.strip()}")
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "--lazy", mounted], check=False)


@contextmanager
def ext4(folder: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    with disk(folder, "data=ordered") as made:
        yield made.folder


@dataclass
class Victim:
    """A service with its data on a small disk, and clients that push all the time."""

    running: subprocess.Popen[bytes]
    base: str
    scraped: str
    data: Path
    pushers: Pushers

    def check_alive(self) -> None:
        """It runs, answers that, and lets itself be scraped."""
        assert self.running.poll() is None, "the process has ended"
        assert httpx.get(f"{self.base}/health/live", timeout=5).status_code == 200
        answer = httpx.get(self.scraped, timeout=5)
        assert answer.status_code == 200
        assert total(answer.text, "mcp_custom_events_total") > 0

    def wait_until_listening(self) -> None:
        """Wait until it answers, whatever it answers."""
        deadline = time.monotonic() + 20
        while self.running.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                httpx.get(f"{self.base}/health/live", timeout=1)
                return
            time.sleep(0.02)
        raise AssertionError("it does not start")

    def health(self) -> tuple[int, str]:
        """What `/health` answers, and what is said of the journal of events."""
        ready = httpx.get(f"{self.base}/health/ready", timeout=5)
        status = httpx.get(f"{self.base}/health", timeout=5).status_code
        return status, ready.json()["components"]["journal/events"]

    def wait_until_unhealthy(self) -> str:
        """Wait until `/health` says so; what is said of the journal then."""
        deadline = time.monotonic() + RECOVERY
        while time.monotonic() < deadline:
            status, state = self.health()
            if status == 503 and state != "ok":
                return state
            time.sleep(0.02)
        raise AssertionError(f"it says that it is healthy: {self.health()}")

    def clean_up(self) -> int:
        """Delete the old rows; the status of the answer."""
        url = f"{self.base}/admin/retention/cleanup?dry_run=false&table_name=metrics"
        return httpx.post(url, headers={"X-API-Key": ADMIN_KEY}, timeout=30).status_code

    def end(self) -> None:
        """Store everything, stop it, and see what is there."""
        self.pushers.end()
        settle(self.base, 2 * HOLD + 20)
        health = self.health()
        assert health == (200, "ok"), health
        self.running.send_signal(signal.SIGTERM)
        ended = self.running.wait(20)
        assert ended == 0, ended
        assert self.pushers.wrong == [], self.pushers.wrong[:5]
        found = faults_of(self.pushers, self.data / "metrics.db")
        assert found == {}, found
        assert intact(self.data)
        assert_balanced((self.data / "metrics-journal").glob("*.db"))


@contextmanager
def started(folder: Path, data: Path, *arguments: str) -> Iterator[Victim]:
    """Start it where it will not be healthy; nobody pushes yet."""
    port, scraped = free_port(), free_port()
    variables = {
        "SQLITE_DB_PATH": str(data / "metrics.db"),
        "METRICS_SERVICE_HOST": "127.0.0.1",
        "METRICS_SERVICE_PORT": str(port),
        "OTEL_PROMETHEUS_PORT": str(scraped),
    }
    called, environ = command(folder, *arguments, **variables)
    base = f"http://127.0.0.1:{port}"
    with (folder / "service.log").open("ab") as log:
        running = subprocess.Popen(called, env=environ, stderr=log, cwd=folder, start_new_session=True)
    try:
        found = Victim(running, base, f"http://127.0.0.1:{scraped}/metrics", data, Pushers(base))
        found.wait_until_listening()
        yield found
    finally:
        running.kill()
        running.wait()


@contextmanager
def victim(folder: Path, data: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> Iterator[Victim]:
    """Start it."""
    port = free_port()
    variables = {"SQLITE_DB_PATH": str(data / "metrics.db"), "OTEL_PROMETHEUS_PORT": str(port)}
    started = process(folder, *arguments, prefix=prefix, FLUSH_INTERVAL_SECONDS="0.2", **variables)
    with started as (running, base), Pushers(base) as pushers:
        pushers.wait_for(200, more=50, seconds=10)
        found = Victim(running, base, f"http://127.0.0.1:{port}/metrics", data, pushers)
        found.check_alive()
        yield found
