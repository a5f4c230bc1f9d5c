"""Starting and stopping: locks, refusals, what is left on the disk."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import Extension, StartError, looking_at
from plugins.extensions import database as plugin
from plugins.extensions.database.connection import WAL_LIMIT, has_wal_reset_bug
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension
from plugins.extensions.database.migration_files import load_migrations
from tests.plugins.extensions.databases import make_database, started_database

pytestmark = pytest.mark.anyio


async def refusal(path: Path, *, is_service: bool = True, migrate: str = "auto") -> StartError:
    """What a start that must fail says."""
    with pytest.raises(StartError) as caught:
        async with started_database(path, is_service=is_service, migrate=migrate, connection_timeout=0.1):
            pass
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("is_service", [True, False])
async def test_create_never_refuses_a_missing_file_and_makes_nothing(tmp_path: Path, is_service: bool) -> None:
    path = tmp_path / "data" / "metrics.db"
    with pytest.raises(StartError, match="does not exist, and 'never' forbids a new one") as caught:
        await make_database(path, is_service=is_service, create="never").start()
    assert caught.value.exit_code == 78
    assert not path.parent.exists()
    async with started_database(path):
        pass
    async with started_database(path, create="never"):
        pass


async def test_a_copy_of_a_file_that_disappeared_blocks_the_start(tmp_path: Path) -> None:
    copy = tmp_path / "data.rescued-20261130T120000Z"
    copy.mkdir()
    with pytest.raises(StartError, match=str(copy)) as caught:
        await make_database(tmp_path / "data" / "metrics.db").start()
    assert caught.value.exit_code == 78
    assert not (tmp_path / "data").exists()


@contextmanager
def running_service(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the database as a service, after it has committed a few rows."""
    program = [sys.executable, "-m", "tests.plugins.extensions.database.hold", str(path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4]) as process:
        try:
            assert process.stdout is not None
            while process.stdout.readline().strip() != "5":
                assert process.poll() is None
            yield process
        finally:
            process.kill()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@contextmanager
def as_another_user(path: Path) -> Iterator[None]:
    """Make the file one that only its owner may write, in a folder that everybody may write, and be somebody else."""
    path.chmod(0o444)
    path.parent.chmod(0o777)
    Path(f"{path}.lock").chmod(0o666)
    user = os.getuid()
    if user == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(user, user, user)


def change(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql)
    connection.close()


async def test_a_start_makes_folder_file_and_schema_private_to_the_service(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "metrics.db"
    async with started_database(path) as database:
        assert await database.read("SELECT count(*) FROM schema_migrations") == [(len(load_migrations()),)]
        assert [mode(each) for each in (path, Path(f"{path}-wal"), path.parent)] == [0o640, 0o640, 0o750]


async def test_stop_is_safe_without_a_start_and_twice_and_start_is_possible_again(tmp_path: Path) -> None:
    database = make_database(tmp_path / "a.db")
    await database.stop()
    for _ in range(2):
        await database.start()
        await database.stop()
        await database.stop()


async def test_the_writing_connection_is_as_durable_as_promised(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db") as database, database.transaction() as connection:
        settings = {
            name: [row[0] for row in await connection.execute_fetchall(f"PRAGMA {name}")]
            for name in ("journal_mode", "synchronous", "foreign_keys", "wal_autocheckpoint", "busy_timeout")
        }
    assert settings == {
        "journal_mode": ["wal"],
        "synchronous": [2],
        "foreign_keys": [1],
        "wal_autocheckpoint": [0],
        "busy_timeout": [30_000],
    }


async def test_a_second_service_is_turned_away_in_one_line_that_names_the_first(tmp_path: Path) -> None:
    with running_service(tmp_path / "a.db") as process:
        error = await refusal(tmp_path / "a.db")
    assert f"is held by process {process.pid}" in str(error)
    assert error.exit_code == 73


async def test_a_command_may_read_and_write_while_a_service_runs(tmp_path: Path) -> None:
    with running_service(tmp_path / "a.db") as process:
        async with started_database(tmp_path / "a.db", is_service=False) as database:
            async with database.transaction() as connection:
                await connection.execute(
                    "INSERT INTO exporter_cursors (exporter, pipeline, position) VALUES ('command', '1', 1)"
                )
            assert await database.read("SELECT 1 FROM exporter_cursors WHERE exporter = 'command'") == [(1,)]
        assert process.poll() is None


async def test_after_a_kill_what_was_committed_is_there_whole_and_the_lock_is_free(tmp_path: Path) -> None:
    with running_service(tmp_path / "a.db") as process:
        process.kill()
        assert process.stdout is not None
        told = [5, *(int(line) for line in process.stdout.read().split("\n")[:-1])]
        process.wait()
    async with started_database(tmp_path / "a.db") as database:
        found = await database.read("SELECT group_concat(exporter) FROM exporter_cursors GROUP BY pipeline")
    assert set(found) == {("pair,row",)}
    assert told[-1] <= len(found) <= told[-1] + 1


async def test_a_newer_schema_is_refused_naming_both_versions_and_the_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with started_database(path):
        pass
    change(path, "INSERT INTO schema_migrations VALUES (9001, 'future', '', '')")
    before = path.read_bytes()
    error = await refusal(path)
    assert "has schema version 9001 (future) and this program knows versions up to" in str(error)
    assert error.exit_code == 78
    assert path.read_bytes() == before


async def test_a_schema_that_is_behind_is_refused_when_it_is_only_to_be_checked(tmp_path: Path) -> None:
    error = await refusal(tmp_path / "a.db", migrate="check")
    assert f"{len(load_migrations())} migrations are to be applied, from 0001_metrics (run migrate up)" in str(error)
    assert error.exit_code == 78
    async with started_database(tmp_path / "a.db"):
        pass
    async with started_database(tmp_path / "a.db", migrate="check"):
        pass


async def test_a_migration_edited_after_it_was_applied_is_refused(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db"):
        pass
    change(tmp_path / "a.db", "UPDATE schema_migrations SET checksum = 'other' WHERE version = 3")
    assert "migration 0003_retention was edited after" in str(await refusal(tmp_path / "a.db"))


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_text("precious notes, longer than the header of a database\n" * 20)
    before = path.read_bytes()
    assert str(await refusal(path)) == f"cannot use the database {path}: file is not a database"
    assert path.read_bytes() == before


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.mkdir()
    assert str(await refusal(path)) == f"cannot use the database {path}: it is a directory"


async def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    assert "cannot create the folder" in str(await refusal(tmp_path / "folder" / "a.db", is_service=False))


async def test_a_file_of_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.db")
        async with started_database(path):
            pass
        with as_another_user(path):
            assert str(await refusal(path)) == f"cannot use the database {path}: no permission to write to it"


async def test_a_file_that_another_program_keeps_locked_is_refused_after_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with started_database(path):
        pass
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert str(await refusal(path)) == f"cannot use the database {path}: database is locked"
    finally:
        other.close()


async def test_a_path_with_signs_that_mean_something_in_a_uri_works(tmp_path: Path) -> None:
    async with started_database(tmp_path / "100% sure?#.db") as database:
        assert await database.read("SELECT 1") == [(1,)]
    assert (tmp_path / "100% sure?#.db").exists()


async def test_a_stopped_service_leaves_no_write_ahead_log_to_recover(tmp_path: Path) -> None:
    async with started_database(tmp_path / "a.db"):
        other = sqlite3.connect(tmp_path / "a.db")  # else SQLite itself tidies up after the last connection
        other.execute("SELECT count(*) FROM metrics").fetchall()
    assert (tmp_path / "a.db-wal").stat().st_size == 0
    other.close()


@pytest.mark.parametrize(
    ("version", "has_it"),
    [
        ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False), ((3, 45, 0), True), ((3, 50, 6), True),
        ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False), ((3, 52, 0), False),
    ],
)  # fmt: skip
def test_the_wal_reset_bug_is_known_by_version(version: tuple[int, ...], has_it: bool) -> None:
    assert has_wal_reset_bug(version) is has_it


@pytest.mark.skipif(not has_wal_reset_bug(sqlite3.sqlite_version_info), reason="this SQLite has it fixed")
async def test_a_service_on_an_sqlite_with_the_wal_reset_bug_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with started_database(tmp_path / "a.db"), started_database(tmp_path / "a.db", is_service=False):
            pass
    assert [sqlite3.sqlite_version in record.getMessage() for record in caplog.records] == [True]


def test_the_plugin_declares_the_extension_and_its_commands() -> None:
    (declaration,) = plugin.declare_components()
    assert (declaration.type, declaration.component, declaration.config) == (
        "database",
        DatabaseExtension,
        DatabaseConfig,
    )
    assert issubclass(declaration.component, Extension)
    assert [command.name for command in plugin.declare_commands()] == ["migrate", "backup"]


def size(path: Path) -> int:
    return path.stat().st_size


def delete(path: Path) -> None:
    path.unlink()


def link_to(real: Path, link: Path) -> None:
    link.symlink_to(real)


async def test_the_files_of_a_database_behind_a_link_are_where_the_link_leads(tmp_path: Path) -> None:
    real, link = tmp_path / "disk" / "real.db", tmp_path / "link.db"
    async with started_database(real):
        pass
    link_to(real, link)
    log = Path(f"{real}-wal")
    async with started_database(link) as database:
        assert "only one service may use this data" in str(await refusal(real))
        async with database.transaction() as connection:
            await connection.execute("CREATE TABLE blobs (blob)")
        with looking_at(link) as beside:
            assert beside.execute("SELECT count(*) FROM blobs").fetchall() == [(0,)]
        for _ in range(6):
            async with database.transaction() as connection:
                await connection.execute("INSERT INTO blobs VALUES (zeroblob(?))", (WAL_LIMIT,))
        assert size(log) < 3 * WAL_LIMIT, "nobody checkpoints it"
        assert database._files.examine() == []
        delete(log)
        assert [fault.path for fault in database._files.examine() or ()] == [log]
