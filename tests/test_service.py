"""The service as a whole: it starts, fails to start, and stops, and what it acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import anyio
import httpx
import pytest

from pipeline import StartError
from tests.plugins.receivers.wire import connected, push, request
from tests.running import KEY, environment, free_port, process, running

METRIC = {"type": "auth_request", "value": 1.0}


def in_use() -> tuple[int, int]:
    """What this process has of what a service could leave behind: threads, open files."""
    return threading.active_count(), sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.anyio
@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
async def test_a_service_stops_whole_and_starts_again_on_its_data(tmp_path: Path, server: str) -> None:
    override = f"receivers.http.server={server}"
    async with running(tmp_path, override):
        pass  # so that all that is loaded once has been
    before, tasks = in_use(), len(asyncio.all_tasks())
    for stored in (1, 2):
        async with running(tmp_path, override) as service:
            assert (await service.push(METRIC)).status_code == 200
            await service.flush()
            assert service.rows() == [(stored,)]
            port = service.port
        assert (in_use(), len(asyncio.all_tasks())) == (before, tasks)
        with pytest.raises(OSError, match="All connection attempts failed"):
            await anyio.connect_tcp("127.0.0.1", port)


@contextmanager
def port_in_use(folder: Path) -> Iterator[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield {"METRICS_SERVICE_PORT": str(other.getsockname()[1])}


@contextmanager
def no_such_address(folder: Path) -> Iterator[dict[str, str]]:
    yield {"METRICS_SERVICE_HOST": "192.0.2.1"}


@contextmanager
def folder_is_a_file(folder: Path) -> Iterator[dict[str, str]]:
    (folder / "file").touch()
    yield {"SQLITE_DB_PATH": f"{folder}/file/metrics.db"}


@contextmanager
def journal_is_a_file(folder: Path) -> Iterator[dict[str, str]]:
    (folder / "file").touch()
    yield {"METRICS_JOURNAL_DIR": f"{folder}/file"}


@contextmanager
def no_database(folder: Path) -> Iterator[dict[str, str]]:
    (folder / "metrics.db").write_text("this is no database, whatever its name says" * 100)
    yield {}


@contextmanager
def newer_schema(folder: Path) -> Iterator[dict[str, str]]:
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(running(folder)):
        pass
    with closing(sqlite3.connect(folder / "metrics.db")) as connection, connection:
        connection.execute("INSERT INTO schema_migrations VALUES (9999, 'from_the_future', 'x', '2050-01-01')")
    yield {}


@contextmanager
def second_process(folder: Path) -> Iterator[dict[str, str]]:
    with process(folder):
        yield {}


@contextmanager
def missing_certificate(folder: Path) -> Iterator[dict[str, str]]:
    yield {"METRICS_TLS_CERTIFICATE": f"{folder}/nothing.pem", "METRICS_TLS_KEY": f"{folder}/nothing.key"}


@contextmanager
def missing_key_file(folder: Path) -> Iterator[dict[str, str]]:
    yield {"METRICS_API_KEY_OTHER_FILE": f"{folder}/nothing"}


OBSTACLES = [
    (port_in_use, 69, "error: port {METRICS_SERVICE_PORT} on 127.0.0.1 is in use by another program"),
    (no_such_address, 69, "error: cannot listen on 192.0.2.1 port"),
    (folder_is_a_file, 73, "error: cannot create the folder {folder}/file: "),
    (journal_is_a_file, 73, "error: cannot create the folder {folder}/file: "),
    (no_database, 73, "error: cannot use the database {folder}/metrics.db: "),
    (newer_schema, 78, "error: the database {folder}/metrics.db has schema version 9999 "),
    (second_process, 73, "error: {folder}/metrics.db.lock is held by process "),
    (missing_certificate, 78, "error: cannot use the certificate {folder}/nothing.pem "),
    (missing_key_file, 78, "error: METRICS_API_KEY_OTHER_FILE: cannot read the file: "),
]


@pytest.mark.parametrize(("obstacle", "code", "reason"), OBSTACLES, ids=[each.__name__ for each, *_ in OBSTACLES])
def test_a_start_that_fails_is_one_clear_line(tmp_path: Path, obstacle: object, code: int, reason: str) -> None:
    with obstacle(tmp_path) as variables:  # type: ignore[operator]
        variables = {"METRICS_SERVICE_HOST": "127.0.0.1", "METRICS_SERVICE_PORT": str(free_port()), **variables}
        ended = subprocess.run(
            ["metrics-service", "run", "--config", "production"],
            env=environment_of_process(tmp_path, **variables),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert "Traceback" not in ended.stderr
    log, lines = [], []
    for line in ended.stderr.splitlines():
        (log if line.startswith("{") else lines).append(line)
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith(reason.format(folder=tmp_path, **variables))
    assert not [line for line in log if json.loads(line)["level"] == "ERROR"]
    assert ended.returncode == code
