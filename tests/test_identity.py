"""A journal belongs to exactly one database, and both say so: whatever is swapped, deleted or shared, no event is stored in another."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import StartError
from tests.running import Running, rows, running

pytestmark = pytest.mark.anyio

VALUES = "SELECT value FROM metrics ORDER BY id"


async def push(service: Running, *values: float) -> None:
    answer = await service.push(*({"type": "custom", "value": value} for value in values))
    assert answer.status_code == 200


def files(folder: Path) -> set[Path]:
    """The databases, journals and marks that are there."""
    return {path for path in folder.rglob("*") if path.suffix in {".db", ".mark"}}


async def refused(folder: Path, match: str, **variables: str) -> str:
    """The start is refused with 78 and one line that matches."""
    before = files(folder)
    with pytest.raises(ExceptionGroup) as group:
        async with running(folder, **variables):
            pytest.fail("it has started")
    error: BaseException = group.value
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, StartError)
    assert error.exit_code == 78
    assert "\n" not in str(error)
    assert match in str(error), error
    assert files(folder) - before == set(), "made in the place of what is missing"
    return str(error)


@pytest.mark.parametrize(("first", "second"), [("metrics", "staging_metrics"), ("dev", "dev_metrics")])
async def test_two_databases_in_one_folder_have_a_journal_each(tmp_path: Path, first: str, second: str) -> None:
    one, other = tmp_path / f"{first}.db", tmp_path / f"{second}.db"
    async with running(tmp_path, "processors.batch.flush_interval=1h", SQLITE_DB_PATH=str(other)) as service:
        await push(service, 1)
        await service.flush()
        await push(service, 2, 3)  # they wait in the journal when it stops
    assert rows(other, VALUES) == [(1,)]
    async with running(tmp_path, SQLITE_DB_PATH=str(one)) as service:
        await push(service, 10)
        await service.flush()
        assert service.rows(VALUES) == [(10,)]
    async with running(tmp_path, SQLITE_DB_PATH=str(other)) as service:
        await service.flush()
        assert service.rows(VALUES) == [(1,), (2,), (3,)]
    assert {path.parent.name for path in files(tmp_path)} >= {f"{first}-journal", f"{second}-journal"}
    assert not (tmp_path / "journal").exists()


async def test_two_databases_in_one_folder_run_at_once(tmp_path: Path) -> None:
    one, other = tmp_path / "metrics.db", tmp_path / "staging_metrics.db"
    async with (
        running(tmp_path, SQLITE_DB_PATH=str(one)) as first,
        running(tmp_path, SQLITE_DB_PATH=str(other)) as second,
    ):
        await push(first, 1)
        await push(second, 2)
        await first.flush()
        await second.flush()
    assert (rows(one, VALUES), rows(other, VALUES)) == ([(1,)], [(2,)])


async def test_a_shared_folder_is_refused_to_the_second_database(tmp_path: Path) -> None:
    one, other, shared = tmp_path / "metrics.db", tmp_path / "staging_metrics.db", str(tmp_path / "shared")
    async with running(
        tmp_path, "processors.batch.flush_interval=1h", SQLITE_DB_PATH=str(one), METRICS_JOURNAL_DIR=shared
    ) as service:
        await push(service, 1)
    async with running(tmp_path, SQLITE_DB_PATH=str(other)):
        pass
    said = await refused(tmp_path, str(one), SQLITE_DB_PATH=str(other), METRICS_JOURNAL_DIR=shared)
    assert str(other) in said
    assert "METRICS_JOURNAL_DIR" in said
    async with running(tmp_path, SQLITE_DB_PATH=str(one), METRICS_JOURNAL_DIR=shared) as service:
        await service.flush()
        assert service.rows(VALUES) == [(1,)]
    assert rows(other, VALUES) == []


class Pair:
    """Two services' files, which were stopped with events in their journals."""

    def __init__(self, folder: Path) -> None:
        self.databases = [folder / "metrics.db", folder / "staging_metrics.db"]
        self.journals = [folder / "metrics-journal", folder / "staging_metrics-journal"]


def swap(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def swap_databases(pair: Pair) -> None:
    swap(*pair.databases)


def swap_journals(pair: Pair) -> None:
    swap(*pair.journals)


def swap_events_journals(pair: Pair) -> None:
    swap(*(journal / "events.db" for journal in pair.journals))


def swap_metrics_journals(pair: Pair) -> None:
    """Those of a pipeline whose exporters keep no position of their own."""
    for name in ("metrics.db", "metrics.mark"):
        swap(*(journal / name for journal in pair.journals))


def swap_marks(pair: Pair) -> None:
    swap(*(journal / "events.mark" for journal in pair.journals))


def delete_database(pair: Pair) -> None:
    pair.databases[0].unlink()


def delete_journals(pair: Pair) -> None:
    shutil.rmtree(pair.journals[0])


def delete_events_journal(pair: Pair) -> None:
    (pair.journals[0] / "events.db").unlink()


def delete_events_journal_and_mark(pair: Pair) -> None:
    (pair.journals[0] / "events.db").unlink()
    (pair.journals[0] / "events.mark").unlink()


def new_database(pair: Pair) -> None:
    """A database of another service with the same name, in which nothing was stored."""
    pair.databases[1].unlink()
    shutil.copy(pair.databases[0].with_name("empty.db"), pair.databases[0])


MIXED: list[tuple[Callable[[Pair], None], str]] = [
    (swap_databases, "was replaced by another one"),
    (swap_journals, "it belongs to the database"),
    (swap_events_journals, "events.mark"),
    (swap_metrics_journals, "it belongs to the database"),
    (swap_marks, "events.mark was written for"),
    (delete_database, "is missing, but the journal"),
    (delete_journals, "--accept-journal-reset"),
    (delete_events_journal, "--accept-journal-reset"),
    (delete_events_journal_and_mark, "--accept-journal-reset"),
    (new_database, "was replaced by another one"),
]


@pytest.mark.parametrize(("mix", "reason"), MIXED, ids=[mix.__name__ for mix, _ in MIXED])
async def test_files_that_do_not_belong_together_are_refused_and_work_once_they_do(
    tmp_path: Path, mix: Callable[[Pair], None], reason: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pair = Pair(data)
    async with running(tmp_path, SQLITE_DB_PATH=str(data / "empty.db")):
        pass
    for number, database in enumerate(pair.databases):
        async with running(tmp_path, "processors.batch.flush_interval=1h", SQLITE_DB_PATH=str(database)) as service:
            await push(service, number)
            await service.flush()
            await push(service, 10 + number)
    shutil.copytree(data, tmp_path / "right")
    mix(pair)
    await refused(tmp_path, reason, SQLITE_DB_PATH=str(pair.databases[0]))
    shutil.rmtree(data)
    (tmp_path / "right").rename(data)
    for number, database in enumerate(pair.databases):
        async with running(tmp_path, SQLITE_DB_PATH=str(database)) as service:
            await service.flush()
            assert service.rows(VALUES) == [(number,), (10 + number,)]


@pytest.mark.parametrize("left", [True, False])
async def test_a_missing_database_is_named_with_the_log_that_would_damage_a_backup(tmp_path: Path, left: bool) -> None:
    path = tmp_path / "metrics.db"
    async with running(tmp_path, SQLITE_DB_PATH=str(path)) as service:
        await push(service, 1)
        await service.flush()
    path.unlink()
    log = path.with_name("metrics.db-wal")
    if left:  # as after kill -9
        log.write_bytes(b"frames")
    said = await refused(tmp_path, "restore a backup", SQLITE_DB_PATH=str(path))
    assert (f"move {log} away and restore a backup" in said) is left


async def test_a_log_that_would_damage_a_restored_backup_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.db"
    async with running(tmp_path, SQLITE_DB_PATH=str(path)) as service:
        await push(service, 1)
        await service.flush()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
        for number in range(2, 60):
            await push(service, number)
        await service.flush()
        left = path.with_name("metrics.db-wal").read_bytes()  # what kill -9 leaves
    assert len(left) > 32
    log = path.with_name("metrics.db-wal")
    (tmp_path / "backup.db").rename(path)
    log.write_bytes(left)
    restored = path.read_bytes()
    said = await refused(tmp_path, "would damage it", SQLITE_DB_PATH=str(path))
    assert f"move {log} and {path}-shm away" in said
    assert (path.read_bytes(), log.read_bytes()) == (restored, left)
    log.unlink()
    async with running(tmp_path, SQLITE_DB_PATH=str(path)) as service:
        assert service.rows("PRAGMA integrity_check") == [("ok",)]


def test_sqlite_applies_the_log_of_another_file(tmp_path: Path) -> None:
    """The negative control: without the refusal, SQLite opens both and reports no error."""
    path, log = tmp_path / "a.db", tmp_path / "a.db-wal"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode=WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1);")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
        connection.execute("INSERT INTO t VALUES (2)")
        left = log.read_bytes()
    (tmp_path / "backup.db").rename(path)
    log.write_bytes(left)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(2,)]  # the backup held one


def nothing(pair: Pair) -> None:
    pass


def delete_mark(pair: Pair) -> None:
    (pair.journals[0] / "events.mark").unlink()


def delete_both(pair: Pair) -> None:
    delete_database(pair)
    delete_journals(pair)


@pytest.mark.parametrize(("mix", "stored"), [(nothing, [(0,), (10,)]), (delete_mark, [(0,), (10,)]), (delete_both, [])])
async def test_files_that_belong_together_or_are_all_gone_start(
    tmp_path: Path, mix: Callable[[Pair], None], stored: list[tuple[float]]
) -> None:
    """The negative control of the refusals above."""
    pair = Pair(tmp_path)
    variables = {"SQLITE_DB_PATH": str(pair.databases[0])}
    async with running(tmp_path, "processors.batch.flush_interval=1h", **variables) as service:
        await push(service, 0)
        await service.flush()
        await push(service, 10)
    mix(pair)
    async with running(tmp_path, **variables) as service:
        await service.flush()
        assert service.rows(VALUES) == stored


async def test_a_database_that_moved_together_with_its_journal_starts(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    async with running(tmp_path, SQLITE_DB_PATH=str(old / "metrics.db")) as service:
        await push(service, 1)
        await service.flush()
    old.rename(new)
    async with running(tmp_path, SQLITE_DB_PATH=str(new / "metrics.db")) as service:
        await push(service, 2)
        await service.flush()
        assert service.rows(VALUES) == [(1,), (2,)]


async def test_what_a_restored_backup_lacks_is_missing_once_and_shown_in_the_first_scrape(tmp_path: Path) -> None:
    path = tmp_path / "metrics.db"
    async with running(tmp_path) as service:
        await push(service, *range(5))
        await service.flush()
        await service.service.graph.pipelines[0].journal.call(lambda file: file.trim(file.last))
    backup = path.read_bytes()
    async with running(tmp_path) as service:
        for value in range(5, 50):
            await push(service, value)
        await service.flush()
        await service.service.graph.pipelines[0].journal.call(lambda file: file.trim(file.last))
    path.write_bytes(backup)
    for found in (45, 0):
        async with running(tmp_path) as service:
            shown = await service.scrape()
            assert f'books_missing_at_start_items{{exporter="sqlite",pipeline="events"}} {found}.0' in shown
            assert 'books_items{column="missing",exporter="sqlite",pipeline="events"} 45.0' in shown
            assert 'books_items{column="sent",exporter="sqlite",pipeline="events"} 5.0' in shown
            assert service.rows(VALUES) == [(value,) for value in range(5)]


async def test_another_pipeline_in_a_folder_of_another_database_is_refused(tmp_path: Path) -> None:
    """Its journal has a name of its own, so only the reserve tells that the folder is in use."""
    shared = {"METRICS_JOURNAL_DIR": str(tmp_path / "shared")}
    async with running(tmp_path, SQLITE_DB_PATH=str(tmp_path / "metrics.db"), **shared):
        pass
    other = tmp_path / "staging_metrics.db"
    async with running(tmp_path, SQLITE_DB_PATH=str(other)):
        pass
    for name in ("events", "metrics"):
        for end in (".db", ".mark", ".lock"):
            (tmp_path / "shared" / f"{name}{end}").rename(tmp_path / "shared" / f"{name}-of-theirs{end}")
    (tmp_path / "shared" / "state.db").unlink()
    said = await refused(tmp_path, "reserve.bin belongs to", SQLITE_DB_PATH=str(other), **shared)
    assert "METRICS_JOURNAL_DIR" in said
    size = (tmp_path / "shared" / "reserve.bin").stat().st_size
    assert size == 2**20
