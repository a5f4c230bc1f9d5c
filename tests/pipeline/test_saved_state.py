"""Saved state: what a component saved is there after a restart, whatever happens to the file."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from pipeline import FormerState, Position, StartError, StateError, StateLost, Store
from pipeline.saved_state import LOG_BYTES, SavedState, Source, StateFile, StateFiles

pytestmark = pytest.mark.anyio

OWNER = "connector.series"


def at(position: int, journal: str = "j1") -> Position:
    return Position(position, 10 * position, journal)


class Database(FormerState):
    """State that an earlier version kept; counts how often it is read."""

    def __init__(self, positions: Mapping[str, Position], records: Mapping[str, bytes]) -> None:
        self.positions, self.records = positions, records
        self.reads = 0
        self.broken = False

    async def load(self, owner: str) -> tuple[dict[str, Position], dict[str, bytes]]:
        self.reads += 1
        if self.broken:
            raise StateError("metrics.db: database is locked")
        return dict(self.positions), dict(self.records)


@asynccontextmanager
async def opened(
    folder: Path, *pipelines: str, journal: str = "j1", former: FormerState | None = None
) -> AsyncIterator[SavedState]:
    """The state of a service whose journals are in that folder."""
    files = StateFiles()
    sources = [Source(pipeline, folder, journal) for pipeline in pipelines or ("events",)]
    try:
        yield SavedState(files, lambda owner: sources, lambda: former)
    finally:
        await files.close()
        await files.close()


async def test_an_owner_that_saved_nothing_gets_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        assert await state.load(OWNER) == ({}, {})


async def test_what_was_saved_is_there_after_a_restart_and_the_files_are_private(tmp_path: Path) -> None:
    records = {f"name {number}": bytes([number % 256]) * 3 for number in range(1001)}
    async with opened(tmp_path / "journal", "events", "events/other") as state:
        await state.load(OWNER)
        await state.save(OWNER, {"events": at(7), "events/other": at(9)}, records)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) & 0o027 for each in (tmp_path / "journal").iterdir()}
        assert modes.keys() == {"state.db", "state.db-wal", "state.db-shm", "state.lock"}
        assert set(modes.values()) == {0}
    async with opened(tmp_path / "journal", "events", "events/other") as state:
        assert await state.load(OWNER) == ({"events": at(7), "events/other": at(9)}, records)


async def test_a_save_replaces_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        for owner in ("one", "other"):
            await state.load(owner)
        await state.save("one", {"events": at(1)}, {"a": b"1", "b": b"1"})
        await state.save("other", {"events": at(5)}, {"a": b"5"})
        await state.save("one", {"events": at(2)}, {"b": b"2"})
        assert await state.load("one") == ({"events": at(2)}, {"a": b"1", "b": b"2"})
        assert await state.load("other") == ({"events": at(5)}, {"a": b"5"})


async def test_a_save_that_fails_changes_nothing_and_raises_no_error_of_sqlite(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.load(OWNER)
        await state.save(OWNER, {"events": at(1)}, {"a": b"1"})
        with pytest.raises(StateError, match=r"state\.db: NOT NULL constraint failed"):
            await state.save(OWNER, {"events": Position(None, None, "j1")}, {"a": b"2"})  # type: ignore[arg-type]
        assert await state.load(OWNER) == ({"events": at(1)}, {"a": b"1"})


async def test_of_several_journals_the_one_that_feeds_the_owner_now_decides(tmp_path: Path) -> None:
    async with opened(tmp_path, journal="j1") as state:
        await state.load(OWNER)
        await state.save(OWNER, {"events": at(7)}, {"a": b"1"})
    async with opened(tmp_path, journal="j2") as state:
        assert await state.load(OWNER) == ({"events": at(7, "j1")}, {"a": b"1"})
        await state.save(OWNER, {"events": at(3, "j2")}, {})
        assert await state.load(OWNER) == ({"events": at(3, "j2")}, {"a": b"1"})
    async with opened(tmp_path, journal="j1") as state:
        assert await state.load(OWNER) == ({"events": at(7, "j1")}, {"a": b"1"})


def recording(folder: Path, store: Store, *, accept_reset: bool = False) -> tuple[StateFiles, SavedState]:
    """State of a service whose journal says that it was saved in that store."""
    files = StateFiles(accept_reset=accept_reset)
    return files, SavedState(files, lambda owner: [Source("events", folder, "j1", store)])


async def test_state_that_the_journal_remembers_is_not_created_in_its_place(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.load(OWNER)
        await state.save(OWNER, {"events": at(7)}, {"a": b"1"})
        store = state.store(OWNER)
    content = (tmp_path / "state.db").read_bytes()
    (tmp_path / "state.db").unlink()
    files, state = recording(tmp_path, store)
    with pytest.raises(
        StartError, match=r"state\.db is missing, but the journal .* run with --accept-journal-reset"
    ) as refused:
        await state.load(OWNER)
    assert refused.value.exit_code == 78
    await files.close()
    assert not (tmp_path / "state.db").exists()
    (tmp_path / "state.db").write_bytes(content)
    files, state = recording(tmp_path, store)
    assert await state.load(OWNER) == ({"events": at(7)}, {"a": b"1"})
    assert state.store(OWNER) == store
    await files.close()


async def test_missing_state_starts_again_under_its_identity_once_that_is_accepted(tmp_path: Path) -> None:
    store = Store("ab" * 16, "state.db")
    files, state = recording(tmp_path, store, accept_reset=True)
    assert await state.load(OWNER) == ({}, {})
    assert state.store(OWNER).id == store.id
    await files.close()


@pytest.mark.parametrize("recorded", [False, True])
async def test_a_new_file_is_deleted_after_a_failed_start_unless_a_journal_has_recorded_it(
    tmp_path: Path, recorded: bool
) -> None:
    files = StateFiles()
    state = SavedState(files, lambda owner: [Source("events", tmp_path / "journal")])
    await state.load(OWNER)
    await files.close({state.store(OWNER).id} if recorded else set())
    assert (tmp_path / "journal").exists() == recorded


async def test_an_old_file_is_kept_after_a_failed_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.load(OWNER)
    files = StateFiles()
    await SavedState(files, lambda owner: [Source("events", tmp_path)]).load(OWNER)
    await files.close(set())
    assert (tmp_path / "state.db").exists()


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as state, opened(tmp_path) as other:
        await state.load(OWNER)
        with pytest.raises(StartError, match=rf"state\.lock is held by process {os.getpid()}"):
            await other.load(OWNER)


async def test_the_write_ahead_log_stays_small(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.load(OWNER)
        for number in range(12):
            await state.save(OWNER, {"events": at(number)}, {str(name): bytes(2**16) for name in range(16)})
            assert (tmp_path / "state.db-wal").stat().st_size < LOG_BYTES + 2 * 2**20


async def test_state_of_an_earlier_version_is_copied_once(tmp_path: Path) -> None:
    database = Database({"events": at(7), "gone": at(3)}, {"a": b"1"})
    async with opened(tmp_path, former=database) as state:
        assert await state.load(OWNER) == ({"events": at(7)}, {"a": b"1"})
        await state.save(OWNER, {"events": at(8)}, {"a": b"2"})
    restored = Database({"events": at(5)}, {"a": b"0", "b": b"0"})
    async with opened(tmp_path, former=restored) as state:
        assert await state.load(OWNER) == ({"events": at(8)}, {"a": b"2"})
    assert (database.reads, restored.reads) == (1, 0)


async def test_an_owner_that_began_without_a_database_never_copies_from_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        assert await state.load(OWNER) == ({}, {})
    async with opened(tmp_path, former=Database({"events": at(5)}, {"a": b"0"})) as state:
        assert await state.load(OWNER) == ({}, {})


async def test_a_database_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    database = Database({"events": at(7)}, {"a": b"1"})
    database.broken = True
    async with opened(tmp_path, former=database) as state:
        with pytest.raises(StateError, match="database is locked"):
            await state.load(OWNER)
        with pytest.raises(StateError, match="has not loaded its state"):
            await state.save(OWNER, {"events": at(1)}, {})
    database.broken = False
    async with opened(tmp_path, former=database) as state:
        assert await state.load(OWNER) == ({"events": at(7)}, {"a": b"1"})


async def test_a_file_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as state:
        await state.load(OWNER)
    with closing(sqlite3.connect(tmp_path / "state.db")) as other:
        other.execute("PRAGMA user_version=2")
    before = (tmp_path / "state.db").read_bytes()
    async with opened(tmp_path) as state:
        with pytest.raises(StartError, match=r"state\.db: has format version 2") as refused:
            await state.load(OWNER)
        assert refused.value.exit_code == 78
    assert (tmp_path / "state.db").read_bytes() == before


@pytest.mark.parametrize("offset", [0, 100, 4096])
async def test_a_damaged_file_is_set_aside_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, offset: int
) -> None:
    async with opened(tmp_path) as state:
        await state.load(OWNER)
        await state.save(OWNER, {"events": at(7)}, {str(name): bytes(200) for name in range(100)})
    damage(tmp_path / "state.db", offset)
    database = Database({"events": at(5)}, {"a": b"0"})
    async with opened(tmp_path, former=database) as state:
        assert await state.load(OWNER) == ({}, {})
        await state.save(OWNER, {"events": at(8)}, {"a": b"1"})
    assert "state.db is damaged" in caplog.text
    assert len(set_aside(tmp_path)) == 1
    async with opened(tmp_path, former=database) as state:
        assert await state.load(OWNER) == ({"events": at(8)}, {"a": b"1"})
    assert database.reads == 0, "an old sum must not take the place of a lost one"


def set_aside(folder: Path) -> list[Path]:
    return list(folder.glob("state.db.corrupt-*"))


def damage(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        rest = path.stat().st_size - at
        file.seek(at)
        file.write(b"\xff" * rest)


def damage_behind_its_back(folder: Path) -> None:
    """Damage a file that is open: another program's commit makes it read the pages again."""
    with closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO owners VALUES ('another program')")
        damage(folder / "state.db", 4096)
        other.execute("COMMIT")


async def test_a_record_that_is_damaged_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path) as state:
        await state.load(OWNER)
        await state.save(OWNER, {"events": at(7)}, {"a": b"right", "b": b"wrong"})
    (tmp_path / "state.db").write_bytes((tmp_path / "state.db").read_bytes().replace(b"wrong", b"wring"))
    async with opened(tmp_path) as state:
        assert await state.load(OWNER) == ({"events": at(7)}, {"a": b"right"})
    assert "1 records of connector.series are damaged" in caplog.text


def test_a_file_that_is_damaged_while_it_is_used_is_set_aside_and_keeps_its_identity(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.open()
    id = file.id
    file.save(OWNER, {"events": at(7)}, {str(name): bytes(200) for name in range(1000)})
    file.close()
    file.open()
    damage_behind_its_back(tmp_path)
    with pytest.raises(StateLost, match=r"state\.db is damaged"):
        file.save(OWNER, {"events": at(8)}, {str(number): b"1" for number in range(1000)})
    file.save(OWNER, {"events": at(9)}, {"a": b"2"})
    assert (file.id, file.load(OWNER, {"events": "j1"})) == (id, ({"events": at(9)}, {"a": b"2"}))
    assert not file.adopts("connector.other")
    file.close()
