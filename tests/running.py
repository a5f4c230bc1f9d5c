"""The real service for tests: in this process on a free port, or as a process of its own that can be killed."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx

from pipeline.config.load import load_configuration
from pipeline.deadlines import Deadlines
from pipeline.registry import load_registry
from pipeline.service import Service
from pipeline.serving import Listener
from plugins.extensions.api_keys.extension import ApiKeys
from plugins.extensions.api_keys.keys import digest, new_key
from tests.books import assert_balanced, assert_shown_as_taken_in, assert_taken_in
from tests.leaks import check_shown, keep_log, secret, secrets_of

KEY = secret("test-key-that-is-long-enough-for-no-warning")
ADMIN_KEY = secret("admin-key-that-is-long-enough-for-no-warning")


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The variables of a service whose data lives in `folder`, with an ingest key for `test` and an admin key."""
    secrets_of(variables)
    return {
        "SQLITE_DB_PATH": str(folder / "metrics.db"),
        "METRICS_API_KEY_TEST": KEY,
        "METRICS_ADMIN_KEY": ADMIN_KEY,
        "METRICS_RATE_LIMIT": "1000000",
        "METRICS_JOURNAL_RESERVE": "1MiB",
        "OTEL_PROMETHEUS_PORT": "0",
        **variables,
    }


@dataclass
class Running:
    """A service that runs in this process, and a client that holds a good key."""

    service: Service
    client: httpx.AsyncClient
    database: Path
    scraped: str
    """Where Prometheus scrapes it."""

    async def push(self, *metrics: Mapping[str, Any], **document: Any) -> httpx.Response:
        """Push these metrics."""
        return await self.client.post("/metrics", json={"service": "test", "metrics": list(metrics), **document})

    async def flush(self) -> None:
        """Wait until everything is stored."""
        (await self.client.post("/flush")).raise_for_status()

    async def scrape(self, **headers: str) -> str:
        """What Prometheus would see now."""
        answer = await self.client.get(self.scraped, headers=headers)
        answer.raise_for_status()
        return check_shown(answer.text)

    def rows(self, sql: str = "SELECT count(*) FROM metrics") -> list[tuple[Any, ...]]:
        """What a query of the database gives, by a connection of its own."""
        return rows(self.database, sql)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another program holds the write lock of the database."""
        with closing(sqlite3.connect(self.database, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self.client.base_url.port is not None
        return self.client.base_url.port

    async def make_key(
        self, *scopes: str, service: str = "test", rate_limit: int | None = None, expires_at: datetime | None = None
    ) -> str:
        """A new key in the database, as `metrics-service keys create` makes one."""
        key = secret(new_key())
        table = self.service.extension(ApiKeys).table
        await table.add(digest(key), service, scopes or ("ingest",), rate_limit, expires_at, "", datetime.now(UTC))
        return key


ACCEPTED = "--accept-journal-reset"
"""In place of an override of `running`: with this option."""
NEW_DATABASE = "--accept-database-reset"
"""The same."""


def running(
    folder: Path, *overrides: str, config: str = "development", plugins: Sequence[Any] = (), **variables: str
) -> AbstractAsyncContextManager[Running]:
    """The service with that configuration, `--set` overrides and variables, and plugins beside the built-in ones."""
    return running_within(Deadlines(), folder, *overrides, config=config, plugins=plugins, **variables)


@asynccontextmanager
async def running_within(
    deadlines: Deadlines,
    folder: Path,
    *overrides: str,
    config: str = "development",
    plugins: Sequence[Any] = (),
    **variables: str,
) -> AsyncIterator[Running]:
    """The same, with these deadlines for what plugins do."""
    environ = environment(folder, **variables)
    configuration = load_configuration(
        [config],
        ["receivers.http.port=0", *(each for each in overrides if each not in (ACCEPTED, NEW_DATABASE))],
        environ,
        load_registry(extra=plugins),
    )
    service = Service(
        configuration,
        accept_journal_reset=ACCEPTED in overrides,
        accept_database_reset=NEW_DATABASE in overrides,
        deadlines=deadlines,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(_run, service)
        try:
            served = {component.id: _address(listener) for component, (listener,) in service.listeners.items()}
            scraped = f"{served.get('prometheus', '')}/metrics"
            headers = {"X-API-Key": KEY}
            async with httpx.AsyncClient(base_url=served["http"], headers=headers, verify=False) as client:  # noqa: S501
                yield Running(service, client, Path(environ["SQLITE_DB_PATH"]), scraped)
        finally:
            service.ask_to_stop()
    assert_taken_in(service.graph.pipelines)
    assert_balanced(one.journal.path for one in service.graph.pipelines)


def _address(listener: Listener) -> str:
    scheme = "https" if listener.config.tls.certificate else "http"
    return f"{scheme}://127.0.0.1:{listener.address[1]}"


async def _run(service: Service, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await service.run(task_status=task_status)


def without_blocks(states: Mapping[str, str]) -> dict[str, str]:
    """The states of components as health shows them, with `ok` for one that has blocked the event loop.

    On busy cores any component may have: the watchdog cannot tell a call that waits for a core from one that computes.
    """
    blocked = "blocked the event loop for "
    return {name: "ok" if state.startswith(blocked) else state for name, state in states.items()}


def rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a query gives, by a connection that cannot write."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.01)


def in_use() -> int:
    """How much this process has of what a service could leave behind: threads, and open files, connections among them."""
    return threading.active_count() + sum(1 for _ in Path("/proc/self/fd").iterdir())


FIRST_PORT, LAST_PORT, PORTS = 10_000, 32_000, 200
"""Those below the ports that the system gives to connections; and how many of them one process of tests has for itself."""


def _reserved() -> Iterator[int]:
    """Ports that no other process of tests takes as long as this one lives: who asks for one does not listen on it at once."""
    folder = Path(tempfile.gettempdir()) / "ports-of-tests"
    folder.mkdir(exist_ok=True)
    firsts = range(FIRST_PORT, LAST_PORT, PORTS)
    for first in random.sample(firsts, len(firsts)):
        lock = os.open(folder / str(first), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
        else:
            return itertools.cycle(range(first, first + PORTS))
    raise AssertionError(f"all ports are taken: {folder}")


_ports = _reserved()


def free_port() -> int:
    """A TCP port that nobody listens on now, nor takes in the meantime."""
    for port in _ports:
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("they are endless")


OURS = (sys.executable, "-m", "pipeline.cli")


def command(
    folder: Path, *arguments: str, config: str = "production", program: Sequence[str] = OURS, **variables: str
) -> tuple[list[str], dict[str, str]]:
    """How `metrics-service run` is called, and in which environment."""
    called = [*program, "run", "--config", config, *arguments]
    return called, {**os.environ, **environment(folder, **variables)}


scraped: dict[str, str] = {}
"""Where Prometheus scrapes the process at each base URL."""


def journals(folder: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """The files of the journals of a service that was started there, wherever it keeps its data."""
    database = Path(folder, environ["SQLITE_DB_PATH"])
    beside = database.with_name(f"{database.stem}-journal")
    return Path(folder, environ.get("METRICS_JOURNAL_DIR") or beside).glob("*.db")


@contextmanager
def process(
    folder: Path,
    *arguments: str,
    config: str = "production",
    prefix: Sequence[str] = (),
    program: Sequence[str] = OURS,
    **variables: str,
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`metrics-service run` as a process of its own; yields it with its base URL once it is healthy, and kills it at the end.

    Its books must balance: what came in if it still runs then, and what is in its journals in any case.
    `prefix` is put before the command: taskset, strace. `program` is another environment's `metrics-service`.
    """
    port = int(variables.get("METRICS_SERVICE_PORT") or free_port())
    ports = {"METRICS_SERVICE_PORT": str(port), "OTEL_PROMETHEUS_PORT": str(free_port())}
    chosen = {"METRICS_SERVICE_HOST": "127.0.0.1", **ports, **variables}
    called, environ = command(folder, *arguments, config=config, program=program, **chosen)
    with (folder / "service.log").open("ab") as log:
        logged = log.tell()
        running = subprocess.Popen([*prefix, *called], env=environ, stderr=log, cwd=folder, start_new_session=True)
    base = f"http://127.0.0.1:{port}"
    scraped[base] = f"http://127.0.0.1:{chosen['OTEL_PROMETHEUS_PORT']}/metrics"
    try:
        wait_until_healthy(base, running, folder / "service.log")
        yield running, base
        _check_what_came_in(running, scraped[base])
    finally:
        del scraped[base]
        with suppress(ProcessLookupError):  # all of it: strace, killed alone, leaves its program running
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        keep_log(folder / "service.log", logged)
    assert assert_balanced(journals(folder, environ)) > 0, "no journal that can be read"


def _check_what_came_in(running: subprocess.Popen[bytes], shown: str) -> None:
    """The books that Prometheus sees, unless the process has ended or stands still, or nobody may scrape it."""
    if (
        running.poll() is not None
        or Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ"
    ):
        return
    for url in (shown, shown.replace("http:", "https:")):
        try:
            answer = httpx.get(url, verify=False, timeout=30)  # noqa: S501
        except httpx.TransportError:
            continue  # it speaks TLS, is on its way out, or has no exporter for Prometheus
        if answer.status_code == 200:  # without a key, and with nothing to catch up with
            check_shown(answer.text)
            assert_shown_as_taken_in(url)
        return


def wait_until_healthy(base: str, running: subprocess.Popen[bytes], log: Path, seconds: float = 20) -> None:
    """Ask for the health until it is good; fail at once if the process ends."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(f"{base}/health", timeout=1).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert running.poll() is None, f"the service ended: {log.read_text()}"
        assert time.monotonic() < deadline, f"not healthy after {seconds} s: {log.read_text()}"
        time.sleep(0.02)
