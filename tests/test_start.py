"""A start that fails says why in one line, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from pipeline import StartError
from tests.running import command, free_port, in_use, process, running, until


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
    with closing(sqlite3.connect(folder / "metrics.db")) as connection, connection:
        connection.execute("CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, name, checksum, applied_at)")
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


Obstacle = Callable[[Path], AbstractContextManager[dict[str, str]]]

OBSTACLES: list[tuple[Obstacle, int, str]] = [
    (port_in_use, 69, "port {METRICS_SERVICE_PORT} on 127.0.0.1 is in use by another program"),
    (no_such_address, 69, "cannot listen on 192.0.2.1 port"),
    (folder_is_a_file, 73, "cannot create the folder {folder}/file/metrics-journal: "),
    (journal_is_a_file, 73, "cannot create the folder {folder}/file: "),
    (no_database, 73, "cannot use the database {folder}/metrics.db: "),
    (newer_schema, 78, "the database {folder}/metrics.db has schema version 9999 "),
    (second_process, 73, "{folder}/metrics-journal/events.lock is held by process "),
    (missing_certificate, 78, "cannot use the certificate {folder}/nothing.pem "),
    (missing_key_file, 78, "METRICS_API_KEY_OTHER_FILE: cannot read the file: "),
]


each_obstacle = pytest.mark.parametrize(
    ("obstacle", "code", "reason"), OBSTACLES, ids=[obstacle.__name__ for obstacle, *_ in OBSTACLES]
)


@each_obstacle
def test_a_start_that_fails_is_one_clear_line(tmp_path: Path, obstacle: Obstacle, code: int, reason: str) -> None:
    with obstacle(tmp_path) as variables:
        variables = {"METRICS_SERVICE_HOST": "127.0.0.1", "METRICS_SERVICE_PORT": str(free_port()), **variables}
        arguments, environ = command(tmp_path, **variables)
        ended = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=30, check=False)
    log = [line for line in ended.stderr.splitlines() if line.startswith("{")]
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("error: " + reason.format(folder=tmp_path, **variables))
    assert {json.loads(line)["level"] for line in log} <= {"INFO", "WARNING"}
    assert ended.returncode == code


@pytest.mark.anyio
@each_obstacle
async def test_a_start_that_fails_leaves_nothing_behind(
    tmp_path: Path, obstacle: Obstacle, code: int, reason: str
) -> None:
    async with running(tmp_path / "other"):
        pass  # so that all that is loaded once has been
    before = in_use()
    with obstacle(tmp_path) as variables:
        port = f"receivers.http.port={variables.get('METRICS_SERVICE_PORT', 0)}"
        host = {"METRICS_SERVICE_HOST": "127.0.0.1", **variables}
        with pytest.raises(ExceptionGroup) as group:
            async with running(tmp_path, port, **host):
                pytest.fail("it has started")
        (error,) = group.value.exceptions
        while isinstance(error, ExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, StartError)
        assert error.exit_code == code
        assert str(error).startswith(reason.format(folder=tmp_path, **host))
    await until(lambda: in_use() <= before)
    if obstacle not in (no_database, newer_schema):
        async with running(tmp_path) as service:
            assert (await service.push({"type": "custom", "value": 1})).status_code == 200


@pytest.mark.anyio
async def test_a_start_without_the_journal_that_belongs_here_leaves_none_of_its_own_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.push({"type": "custom", "value": 1})
        await service.flush()
    shutil.rmtree(tmp_path / "metrics-journal")
    with pytest.raises(ExceptionGroup) as raised:
        async with running(tmp_path):
            raise AssertionError("started")
    assert raised.group_contains(StartError, match="--accept-journal-reset", depth=None)
    assert not (tmp_path / "metrics-journal").exists()
