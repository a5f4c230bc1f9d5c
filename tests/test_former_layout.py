"""An earlier version kept every journal in the folder `journal` beside the database: it is adopted where its owner is certain.

`tests/faults/golden/without_owner` is what that version left when it was killed: 5 events stored, 20 that wait.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import StartError
from pipeline.cli import main
from pipeline.files import FileLock
from tests.running import rows, running
from tests.test_identity import VALUES, push, refused

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).with_name("faults") / "golden" / "without_owner"
ALL = [(float(value),) for value in range(25)]


def build(path: Path, name: str, *changes: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((GOLDEN / f"{name}.sql").read_text(encoding="utf-8"))
        for change in changes:
            connection.execute(change)
        connection.commit()
    return path


def journal(folder: Path, *changes: str) -> Path:
    return build(folder / "journal" / "events.db", "journal-events", *changes)


def database(path: Path, *changes: str) -> Path:
    return build(path, "metrics", *changes)


OTHER = "UPDATE schema_migrations SET applied_at = '2026-01-01T00:00:00.000001+00:00'"
"""Makes another database of the copy."""
BEHIND = "UPDATE exporter_cursors SET position = 1 WHERE exporter = 'sqlite'"
BEYOND = "UPDATE exporter_cursors SET position = 99 WHERE exporter = 'sqlite'"
UNUSED = "DELETE FROM exporter_cursors"


async def stored_after_a_start(folder: Path, path: Path, **variables: str) -> list[tuple[float]]:
    async with running(folder, SQLITE_DB_PATH=str(path), **variables) as service:
        await service.flush()
        return service.rows(VALUES)


async def test_the_journal_of_the_only_database_is_adopted(tmp_path: Path) -> None:
    journal(tmp_path)
    path = database(tmp_path / "metrics.db")
    for _ in range(2):
        assert await stored_after_a_start(tmp_path, path) == ALL
    assert not (tmp_path / "journal").exists()
    assert (tmp_path / "metrics-journal" / "events.db").exists()


@pytest.mark.parametrize(
    "changes",
    [(OTHER, BEHIND), (OTHER, BEYOND), (OTHER, UNUSED), ()],
    ids=["behind", "beyond the end", "unused", "a backup of it"],
)
async def test_of_two_databases_the_one_whose_cursor_fits_gets_it(tmp_path: Path, changes: Sequence[str]) -> None:
    journal(tmp_path)
    path = database(tmp_path / "metrics.db")
    database(tmp_path / "staging_metrics.db", *changes)
    assert await stored_after_a_start(tmp_path, path) == ALL
    assert not (tmp_path / "journal").exists()


async def test_a_new_database_beside_them_gets_a_journal_of_its_own(tmp_path: Path) -> None:
    journal(tmp_path)
    path = database(tmp_path / "metrics.db")
    assert await stored_after_a_start(tmp_path, tmp_path / "staging_metrics.db") == []
    assert (tmp_path / "journal" / "events.db").exists(), "the owner has not started yet"
    assert await stored_after_a_start(tmp_path, path) == ALL


async def test_where_two_cursors_fit_the_start_is_refused_and_the_remedies_work(tmp_path: Path) -> None:
    journal(tmp_path)
    path, other = database(tmp_path / "metrics.db"), database(tmp_path / "staging_metrics.db", OTHER)
    for each in (path, other):
        said = await refused(tmp_path, "it is not certain", SQLITE_DB_PATH=str(each))
        assert str(tmp_path / "journal") in said
        assert f"{each.stem}-journal" in said
    shutil.copytree(tmp_path, tmp_path / "copy")
    explicit = {"METRICS_JOURNAL_DIR": str(tmp_path / "copy" / "journal")}
    assert await stored_after_a_start(tmp_path, tmp_path / "copy" / "metrics.db", **explicit) == ALL
    (tmp_path / "journal").rename(tmp_path / "metrics-journal")
    assert await stored_after_a_start(tmp_path, path) == ALL


async def test_the_one_that_shared_it_is_refused_once_the_owner_has_it(tmp_path: Path) -> None:
    journal(tmp_path)
    path, other = database(tmp_path / "metrics.db"), database(tmp_path / "staging_metrics.db", OTHER, BEHIND)
    await refused(tmp_path, "it is not certain", SQLITE_DB_PATH=str(other))
    assert await stored_after_a_start(tmp_path, path) == ALL
    await refused(tmp_path, "--accept-journal-reset", SQLITE_DB_PATH=str(other))
    assert rows(other, VALUES) == ALL[:5]


async def test_a_missing_database_is_refused_and_nothing_is_renamed(tmp_path: Path) -> None:
    journal(tmp_path)
    path = tmp_path / "metrics.db"
    await refused(tmp_path, "is missing, but the journal", SQLITE_DB_PATH=str(path))
    assert (tmp_path / "journal" / "events.db").exists()
    database(path)
    assert await stored_after_a_start(tmp_path, path) == ALL


async def test_a_journal_of_which_nothing_was_stored_yet_is_adopted_without_a_database(tmp_path: Path) -> None:
    """The negative control of the refusal: the first start was killed before it stored anything."""
    journal(tmp_path, "UPDATE cursors SET position = 0, sent = 0, journaled_before = 5")
    path = tmp_path / "metrics.db"
    async with running(tmp_path, SQLITE_DB_PATH=str(path)) as service:
        await service.flush()
        assert len(service.rows(VALUES)) >= 20
    assert not (tmp_path / "journal").exists()


async def test_an_older_service_that_still_runs_is_noticed(tmp_path: Path) -> None:
    journal(tmp_path)
    path = database(tmp_path / "metrics.db")
    held = FileLock(tmp_path / "journal" / "events.lock")
    held.acquire()
    try:
        with pytest.raises(ExceptionGroup) as group:
            async with running(tmp_path, SQLITE_DB_PATH=str(path)):
                pytest.fail("it has started")
        assert group.group_contains(StartError, match="only one service may use this data", depth=None)
        assert (tmp_path / "journal" / "events.db").exists()
    finally:
        held.release()
    assert await stored_after_a_start(tmp_path, path) == ALL


async def test_an_explicit_folder_stays_and_is_adopted_where_it_is(tmp_path: Path) -> None:
    journal(tmp_path)
    path = database(tmp_path / "metrics.db")
    explicit = str(tmp_path / "journal")
    assert await stored_after_a_start(tmp_path, path, METRICS_JOURNAL_DIR=explicit) == ALL
    assert (tmp_path / "journal" / "events.db").exists()
    other = tmp_path / "staging_metrics.db"
    assert await stored_after_a_start(tmp_path, other) == [], "a folder of its own: that one has another owner"
    await refused(tmp_path, str(path), SQLITE_DB_PATH=str(other), METRICS_JOURNAL_DIR=explicit)


async def test_a_backup_from_before_the_upgrade_is_known_as_the_same_database(tmp_path: Path) -> None:
    journal(tmp_path)
    path = database(tmp_path / "metrics.db")
    assert await stored_after_a_start(tmp_path, path) == ALL
    path.unlink()
    database(path)
    async with running(tmp_path, SQLITE_DB_PATH=str(path)) as service:
        await push(service, 100)
        await service.flush()
        found = service.rows(VALUES)
    assert found[:5] == ALL[:5]
    assert found[-1] == (100.0,)
    assert len(found) == len(set(found))


def named_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "production"])
    shown = capsys.readouterr()
    return ended.value.code, shown.out + shown.err


@pytest.mark.parametrize("count", [1, 2])
def test_commands_find_it_before_it_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    journal(tmp_path, "INSERT INTO dead_letters VALUES (7, 'exporter.sqlite', 3, 0, 0, 1, 'why', x'', 0)")
    monkeypatch.setenv("SQLITE_DB_PATH", str(database(tmp_path / "metrics.db")))
    if count == 2:
        database(tmp_path / "staging_metrics.db", OTHER)
    run: Callable[..., tuple[object, str]] = lambda *words: named_by(capsys, *words)  # noqa: E731
    if count == 1:
        assert "sqlite" in run("books")[1]
        assert "events:7" in run("dead-letters", "list")[1]
        assert str(tmp_path / "journal") in run("doctor")[1]
    else:
        for words in (("books",), ("dead-letters", "list")):
            code, said = run(*words)
            assert code == 78
            assert "it is not certain" in said
        assert "the next start is refused" in run("doctor")[1]
    assert (tmp_path / "journal" / "events.db").exists()


async def test_two_journals_of_one_database_are_refused_and_the_remedy_works(tmp_path: Path) -> None:
    """This version has used one of them, then an earlier version, after `migrate down`, has used the other."""
    journal(tmp_path)
    path = database(tmp_path / "metrics.db")
    assert await stored_after_a_start(tmp_path, path) == ALL
    journal(tmp_path)
    assert await stored_after_a_start(tmp_path, path) == ALL, (
        "the control: no earlier version has used the database since"
    )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE exporter_cursors SET journal = '', position = 2, items = NULL")
        connection.execute("DELETE FROM metrics WHERE value >= 5")
        connection.commit()
    said = await refused(tmp_path, "both hold journals", SQLITE_DB_PATH=str(path))
    assert f"move {tmp_path / 'metrics-journal'} away" in said
    (tmp_path / "metrics-journal").rename(tmp_path / "away")
    assert await stored_after_a_start(tmp_path, path) == ALL
