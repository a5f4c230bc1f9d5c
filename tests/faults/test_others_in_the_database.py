"""Other programs in the database: one that holds the write lock delays no push, and a long reader does not fill the disk unnoticed.

With negative controls: a service that stores before it answers, and queries that nobody interrupts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import httpx
import pytest

from pipeline import Batch, Context, Outcome
from pipeline.journal import Journal
from plugins.extensions.database.extension import DatabaseExtension
from tests.faults.sizes import sized
from tests.running import Running, running, until
from tests.scrapes import total

pytestmark = [pytest.mark.faults, pytest.mark.anyio, pytest.mark.timeout(sized(60, 300))]

METRIC = {"type": "custom", "value": 1.0}
BIG = [{"type": "custom", "value": 1.0, "metadata": {"text": "x" * 900}}] * 50
SECONDS = sized(2, 20)
"""That long the other program holds its lock."""
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n, metrics"


async def push_while_locked(service: Running) -> list[httpx.Response]:
    """Push while another program holds the write lock, all the time."""
    answers = []
    with service.locked():
        deadline = anyio.current_time() + SECONDS
        while anyio.current_time() < deadline:
            answers.append(await service.push(METRIC))
            await anyio.sleep(0.02)
        answers.append(await service.client.get("/health"))
        waiting = total(await service.scrape(), "otelcol_exporter_queue_size", exporter="sqlite", pipeline="events")
        assert waiting == len([each for each in answers[:-1] if each.status_code == 200])
    return answers


async def test_a_write_lock_of_another_program_delays_no_push(tmp_path: Path) -> None:
    async with running(tmp_path, FLUSH_INTERVAL_SECONDS="0.1", DB_CONNECTION_TIMEOUT="0.3") as service:
        await service.push(METRIC)
        await service.flush()
        answers = await push_while_locked(service)
        assert {answer.status_code for answer in answers} == {200}
        assert max(answer.elapsed.total_seconds() for answer in answers) < 5
        await until(lambda: service.rows() == [(len(answers),)])


async def test_the_same_lock_finds_a_service_that_stores_before_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Journal.append
    async with running(tmp_path, DB_CONNECTION_TIMEOUT="0.3") as service:
        database = service.service.extension(DatabaseExtension)

        async def store(journal: Journal, batch: Batch, context: Context) -> Outcome:
            async with database.transaction():
                pass
            return await append(journal, batch, context)

        monkeypatch.setattr(Journal, "append", store)
        answers = await push_while_locked(service)
        assert {answer.status_code for answer in answers[:-1]} != {200}


@asynccontextmanager
async def small_log(folder: Path, monkeypatch: pytest.MonkeyPatch, long_log: int) -> AsyncIterator[Running]:
    """A service that checkpoints after every write."""
    monkeypatch.setattr("plugins.extensions.database.extension.WAL_LIMIT", 4096)
    monkeypatch.setattr("plugins.extensions.database.extension.LONG_LOG", long_log)
    async with running(folder, OTEL_PROMETHEUS_ENABLED="false") as service:
        await store(service, 1)
        yield service


async def store(service: Running, times: int) -> int:
    """Push and store that often. Returns the size of the write-ahead log then, in bytes."""
    for _ in range(times):
        assert (await service.push(*BIG)).status_code == 200
        await service.flush()
    return service.database.with_name(f"{service.database.name}-wal").stat().st_size


async def test_a_long_reader_elsewhere_is_noticed_and_the_log_is_used_again_once_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with small_log(tmp_path, monkeypatch, 500_000) as service:
        with closing(sqlite3.connect(service.database, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM metrics").fetchone()
            assert await store(service, 10) > 500_000
            assert caplog.text.count("another program has been reading") == 1
        size = await store(service, 2)
        assert await store(service, 10) == size


async def log_beside_a_query_of_ours(service: Running, seconds: float) -> int:
    """By how many bytes the log grows beside a query of ours without an end, that may take so long, once it should have ended."""
    database = service.service.extension(DatabaseExtension)
    database.read_seconds = seconds
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_ask, database)
        await store(service, 5)
        await anyio.sleep(1)
        size = await store(service, 2)
        grown = await store(service, 10) - size
        tasks.cancel_scope.cancel()
    return grown


async def _ask(database: DatabaseExtension) -> None:
    with pytest.raises(TimeoutError):
        await database.read(ENDLESS)


async def test_a_query_of_ours_that_takes_too_long_does_not_keep_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with small_log(tmp_path, monkeypatch, 2**30) as service:
        assert await log_beside_a_query_of_ours(service, 0.2) == 0


async def test_a_query_that_nobody_interrupts_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_log(tmp_path, monkeypatch, 2**30) as service:
        assert await log_beside_a_query_of_ours(service, 600) > 0
