"""Writing and reading: what holds when somebody is cancelled, refused, slow or in the way."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from types import coroutine
from typing import Any

import anyio
import pytest

from plugins.extensions.database.connection import WAL_LIMIT
from plugins.extensions.database.extension import DatabaseExtension
from tests.plugins.extensions.databases import started_database

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO exporter_cursors (exporter, pipeline, position) VALUES ('one', 'x', 1)"
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[DatabaseExtension]:
    async with started_database(tmp_path / "a.db", connection_timeout=0.2) as database:
        yield database


async def write(database: DatabaseExtension, name: str) -> None:
    """Two rows in one transaction."""
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO exporter_cursors (exporter, pipeline, position) VALUES ('one', ?, 1)", (name,)
        )
        await anyio.lowlevel.checkpoint()
        await connection.execute(
            "INSERT INTO exporter_cursors (exporter, pipeline, position) VALUES ('two', ?, 1)", (name,)
        )


async def run(database: DatabaseExtension, *statements: str, fails: Exception | None = None) -> None:
    """Some statements in one transaction, whose user fails at the end."""
    async with database.transaction() as connection:
        for statement in statements:
            await connection.execute(statement)
        if fails:
            raise fails


async def written(database: DatabaseExtension) -> list[tuple[str, int]]:
    """The names that were written, with how many rows there are of each."""
    rows = await database.read("SELECT pipeline, count(*) FROM exporter_cursors GROUP BY pipeline")
    return [(name, count) for name, count in rows]


@coroutine
def cancelled_at(
    point: int, cancel: Callable[[], object], work: Coroutine[Any, Any, None]
) -> Generator[Any, Any, None]:
    """Run `work`, and call `cancel` when it waits for the time `point`, counted from 0."""
    thrown: BaseException | None = None
    while True:
        try:
            waits_for = work.throw(thrown) if thrown else work.send(None)
        except StopIteration:
            return
        if point == 0:
            cancel()
        point -= 1
        thrown = None
        try:
            yield waits_for
        except BaseException as error:
            thrown = error


async def cancel_scope_at(point: int, work: Coroutine[Any, Any, None]) -> bool:
    """Cancel as anyio does. Gives whether the work noticed."""
    with anyio.CancelScope() as scope:
        await cancelled_at(point, scope.cancel, work)
        return False
    return True


async def cancel_task_at(point: int, work: Coroutine[Any, Any, None]) -> bool:
    """Cancel as asyncio does, which no shield keeps off. Gives whether the work noticed."""

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        await cancelled_at(point, task.cancel, work)

    return isinstance((await asyncio.gather(asyncio.create_task(run()), return_exceptions=True))[0], BaseException)


@pytest.mark.parametrize("cancel_at", [cancel_scope_at, cancel_task_at])
async def test_a_transaction_cancelled_at_any_point_is_whole_or_absent_and_the_next_one_works(
    database: DatabaseExtension, cancel_at: Callable[[int, Coroutine[Any, Any, None]], Awaitable[bool]]
) -> None:
    noticed = 0
    for point in range(12):
        noticed += await cancel_at(point, write(database, f"cancelled {point}"))
        await write(database, f"after {point}")
        assert {count for _, count in await written(database)} == {2}
        assert [name for name, _ in await written(database) if name == f"after {point}"]
    assert 4 <= noticed < 12, "some points lie before the commit, and the last ones behind the end"


async def test_whoever_hears_of_the_cancellation_has_not_committed(database: DatabaseExtension) -> None:
    for point in range(12):
        noticed = await cancel_scope_at(point, write(database, str(point)))
        assert ((str(point), 2) in await written(database)) is not noticed


async def test_cancelled_writers_that_compete_never_poison_the_connection(database: DatabaseExtension) -> None:
    async def compete(number: int) -> None:
        for turn in range(8):
            await cancel_scope_at((number + turn) % 9, write(database, f"{number} {turn}"))

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(compete, number)
    await write(database, "last")
    assert ("last", 2) in await written(database)
    assert {count for _, count in await written(database)} == {2}


async def test_what_raises_is_rolled_back_and_comes_through(database: DatabaseExtension) -> None:
    with pytest.raises(ZeroDivisionError):
        await run(database, INSERT, fails=ZeroDivisionError())
    with pytest.raises(sqlite3.IntegrityError):
        await run(database, INSERT, INSERT)
    assert await written(database) == []


async def test_a_transaction_that_cannot_be_committed_is_rolled_back(database: DatabaseExtension) -> None:
    await run(database, "CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    await run(database, "CREATE TABLE children (id REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        await run(database, "INSERT INTO children VALUES (7)")
    assert await database.read("SELECT id FROM children") == []
    await write(database, "after")
    assert await written(database) == [("after", 2)]


async def test_writers_are_served_one_at_a_time_in_turn(database: DatabaseExtension) -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        async with database.transaction() as connection:
            order.append(number)
            await connection.execute("SELECT 1")
            order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(one, number)
    assert order == sorted(order)


async def test_a_lock_held_by_another_program_is_an_error_after_the_timeout_and_no_longer(
    database: DatabaseExtension,
) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await write(database, "too early")
        await cancel_scope_at(1, write(database, "cancelled while it waits"))
        other.execute("ROLLBACK")
        await write(database, "after")
        assert await written(database) == [("after", 2)]
    finally:
        other.close()


async def test_reading_cannot_write(database: DatabaseExtension) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await database.read("DELETE FROM retention_policies")


async def test_reading_sees_only_what_is_committed(database: DatabaseExtension) -> None:
    async with database.transaction() as connection:
        await connection.execute(INSERT)
        assert await written(database) == []
    assert await written(database) == [("x", 1)]


async def test_a_slow_query_does_not_hold_up_another(database: DatabaseExtension) -> None:
    database.read_seconds = 600
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(database.read, ENDLESS)
            tasks.start_soon(database.read, ENDLESS)
            await anyio.wait_all_tasks_blocked()
            assert await database.read("SELECT 1") == [(1,)]
            tasks.cancel_scope.cancel()


async def test_a_query_that_takes_too_long_is_interrupted_and_the_next_is_answered(database: DatabaseExtension) -> None:
    database.read_seconds = 0.05
    with pytest.raises(TimeoutError, match=r"took longer than 0.05 seconds"):
        await database.read(ENDLESS)
    assert await database.read("SELECT ?", (7,)) == [(7,)]


@pytest.mark.parametrize("point", [0, 1])
async def test_a_cancelled_query_ends_at_once_and_the_next_is_answered(database: DatabaseExtension, point: int) -> None:
    async def ask() -> None:
        await database.read(ENDLESS)

    database.read_seconds = 600
    assert await cancel_scope_at(point, ask())
    assert await database.read("SELECT 1") == [(1,)]


def wal_size(database: DatabaseExtension) -> int:
    return Path(f"{database.path}-wal").stat().st_size


async def fill(database: DatabaseExtension, times: int) -> int:
    """Write a mebibyte that many times. Gives the largest size that the write-ahead log had."""
    largest = 0
    for _ in range(times):
        async with database.transaction() as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS filling (data BLOB)")
            await connection.execute("INSERT INTO filling VALUES (randomblob(1048576))")
        largest = max(largest, wal_size(database))
    return largest


async def test_a_service_keeps_the_write_ahead_log_small(database: DatabaseExtension) -> None:
    assert WAL_LIMIT < await fill(database, 20) < WAL_LIMIT + 3 * 2**20


async def test_a_service_checkpoints_again_after_a_reader_has_held_it_up(database: DatabaseExtension) -> None:
    reader = sqlite3.connect(database.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM metrics").fetchall()
    assert await fill(database, 10) > 10 * 2**20
    reader.close()
    await fill(database, 2)
    assert wal_size(database) <= WAL_LIMIT + 2 * 2**20


async def test_a_command_leaves_checkpoints_to_the_service(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db", is_service=False) as database:
        size = database.path.stat().st_size
        assert await fill(database, 8) > 8 * 2**20
        assert database.path.stat().st_size == size
