"""The database is lost, and the journal holds events that were acknowledged: a new database gets them, once, if a person says so."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from pipeline import StartError
from pipeline.books import Account
from pipeline.cli import main
from tests.running import ACCEPTED, NEW_DATABASE, Running, rows, running

pytestmark = pytest.mark.anyio

VALUES = "SELECT value FROM metrics ORDER BY value"
SLOW = "processors.batch.flush_interval=1h"


async def push(service: Running, *values: float) -> None:
    answer = await service.push(*({"type": "custom", "value": value} for value in values))
    assert answer.status_code == 200


async def run_and_lose(folder: Path) -> Path:
    """Store 1, 2 and 3, leave 4 and 5 in the journal, lose the database. Returns where it is now."""
    async with running(folder, SLOW) as service:
        await push(service, 1, 2, 3)
        await service.flush()
        await push(service, 4, 5)
    return move(folder / "metrics.db", folder / "lost")


def move(database: Path, to: Path) -> Path:
    to.mkdir()
    for path in database.parent.glob(f"{database.name}*"):
        path.rename(to / path.name)
    return to / database.name


async def refused(folder: Path, *options: str, **variables: str) -> str:
    with pytest.raises(ExceptionGroup) as group:
        async with running(folder, *options, **variables):
            pytest.fail("it has started")
    error: BaseException = group.value
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, StartError)
    assert error.exit_code == 78
    return str(error)


def books(service: Running) -> Account:
    (pipeline,) = (each for each in service.service.graph.pipelines if each.id == "events")
    (worker,) = (each for each in pipeline.delivery.workers if each.exporter.name == "exporter.sqlite")
    return worker.account


async def test_what_waits_is_stored_in_the_new_database_once(tmp_path: Path) -> None:
    await run_and_lose(tmp_path)
    assert NEW_DATABASE in await refused(tmp_path)
    assert NEW_DATABASE in await refused(tmp_path, ACCEPTED), "a lost journal is another matter"
    assert not (tmp_path / "metrics.db").exists()
    async with running(tmp_path, NEW_DATABASE) as service:
        await service.flush()
        stored = {value for (value,) in service.rows(VALUES)}
        assert {4, 5} <= stored
        assert len(service.rows(VALUES)) == len(stored), "stored twice"
        assert books(service).missing == 5 - len(stored), "what the journal does not hold any more is missing"
    for option in ((), (NEW_DATABASE,)):  # from now on it is the database; to say so again changes nothing
        async with running(tmp_path, *option) as service:
            await push(service, 6)
            await service.flush()
    assert [value for (value,) in rows(tmp_path / "metrics.db", VALUES)] == [*sorted(stored), 6, 6]


async def test_what_left_the_journal_is_missing(tmp_path: Path) -> None:
    async with running(tmp_path, SLOW) as service:
        await push(service, 1, 2, 3)
        await service.flush()
    async with running(tmp_path, SLOW) as service:  # a start trims what every exporter has
        await push(service, 4)
        await service.flush()
        await push(service, 5)
    move(tmp_path / "metrics.db", tmp_path / "lost")
    async with running(tmp_path, NEW_DATABASE) as service:
        await service.flush()
        stored = [value for (value,) in service.rows(VALUES)]
        account = books(service)
    assert 5 in stored
    assert 1 not in stored
    assert (account.sent, account.missing) == (len(stored), 5 - len(stored))


async def test_a_new_database_that_another_command_made_is_accepted_too(tmp_path: Path) -> None:
    await run_and_lose(tmp_path)
    async with running(tmp_path, SQLITE_DB_PATH=str(tmp_path / "empty.db")):
        pass
    (tmp_path / "empty.db").rename(tmp_path / "metrics.db")
    assert NEW_DATABASE in await refused(tmp_path)
    async with running(tmp_path, NEW_DATABASE) as service:
        await service.flush()
        assert {(4,), (5,)} <= set(service.rows(VALUES))


async def test_the_database_of_another_service_is_refused_and_nothing_is_recorded(tmp_path: Path) -> None:
    lost = await run_and_lose(tmp_path)
    async with running(tmp_path, SQLITE_DB_PATH=str(tmp_path / "other.db")) as service:
        await push(service, 100)
        await service.flush()
    shutil.copy(tmp_path / "other.db", tmp_path / "metrics.db")
    assert "another journal" in await refused(tmp_path, NEW_DATABASE)
    with closing(sqlite3.connect(tmp_path / "metrics.db")) as connection:  # as one of an earlier version
        connection.execute("UPDATE exporter_cursors SET journal = ''")
        connection.commit()
    assert "another journal" in await refused(tmp_path, NEW_DATABASE)
    move(tmp_path / "metrics.db", tmp_path / "wrong")
    shutil.copy(lost, tmp_path / "metrics.db")
    async with running(tmp_path) as service:
        await service.flush()
        assert service.rows(VALUES) == [(1,), (2,), (3,), (4,), (5,)]


async def test_the_former_database_is_refused_once_a_new_one_took_its_place(tmp_path: Path) -> None:
    lost = await run_and_lose(tmp_path)
    async with running(tmp_path, NEW_DATABASE) as service:
        await service.flush()
    move(tmp_path / "metrics.db", tmp_path / "new")
    shutil.copy(lost, tmp_path / "metrics.db")
    assert "replaced" in await refused(tmp_path)
    assert "replaced" in await refused(tmp_path, ACCEPTED)


async def test_the_option_changes_nothing_while_nothing_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path, NEW_DATABASE, SLOW) as service:
        await push(service, 1)
        await service.flush()
        await push(service, 2)
    async with running(tmp_path, NEW_DATABASE) as service:
        await service.flush()
        assert service.rows(VALUES) == [(1,), (2,)]
        assert books(service).missing == 0


@pytest.mark.parametrize("steps", ["1", "3"])
async def test_a_database_keeps_its_identity_when_migrations_are_taken_back(
    tmp_path: Path, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, SLOW) as service:
        await push(service, 1)
        await service.flush()
        await push(service, 2)
    monkeypatch.setenv("SQLITE_DB_PATH", str(tmp_path / "metrics.db"))
    with pytest.raises(SystemExit) as ended:
        await anyio.to_thread.run_sync(main, ["migrate", "down", steps])
    assert ended.value.code == 0
    async with running(tmp_path) as service:
        await service.flush()
        assert service.rows(VALUES) == [(1,), (2,)]
