"""The monitor of open files, in this process: what it tells journals, and what a rescue saves."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

import pipeline.service as service_module
from pipeline import Overloaded, StartError
from pipeline.books import Account, Cursor
from pipeline.journal import Journal
from pipeline.presence import Presence
from pipeline.rescue import refuse_rescued, rescue
from pipeline.testing import doubles
from pipeline.watched_files import Fault, WatchedFiles
from tests.pipeline.test_journal import append, batch_of, opened
from tests.reloading import reload
from tests.running import running, until

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
STAMP = "20261130T120000Z"


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[tuple[Journal, Presence]]:
    """A journal that trims what is confirmed only, and its monitor, which a test tells to look."""
    async with opened(folder / "journal") as journal:
        journal.trims_when_confirmed = True
        yield journal, Presence(lambda: [journal.files], lambda: [journal], patience=0.2)


class HangingFiles(WatchedFiles):
    """The files of a journal on a file system that answers only when it is told to."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.path, copy=journal._copy, checkpoint=journal._checkpoint)
        self.asked, self.answers = threading.Event(), threading.Event()
        self.begin()

    def examine(self) -> list[Fault] | None:
        self.asked.set()
        self.answers.wait(20)
        return super().examine()


@contextmanager
def elsewhere(path: Path) -> Iterator[None]:
    """The file has another name meanwhile."""
    path.rename(path.with_name("elsewhere"))
    try:
        yield
    finally:
        path.with_name("elsewhere").rename(path)


def positions(journal: Journal) -> list[int]:
    """The rows of its file."""
    with closing(sqlite3.connect(journal.path)) as connection:
        return [first for (first,) in connection.execute("SELECT first FROM journal ORDER BY first")]


async def trimmed(journal: Journal) -> list[int]:
    """The rows that remain after a commit that trims."""
    await journal.call(lambda file: file.trim(journal._committer.trim_upto if journal._committer else 0))
    return positions(journal)


async def test_only_what_was_passed_before_the_look_is_trimmed(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, presence):
        for value in range(3):
            await append(journal, batch_of(value))
        journal.advance("exporter.a", Cursor(3, Account()))
        journal.keep_from(1, 1)
        assert await trimmed(journal) == [1, 2, 3]
        files = HangingFiles(journal)
        slow = Presence(lambda: [files], lambda: [journal])
        look = asyncio.ensure_future(slow.check())
        await until(files.asked.is_set)
        journal.keep_from(2, 2)
        files.answers.set()
        await look
        assert await trimmed(journal) == [2, 3]
        await presence.check()
        assert await trimmed(journal) == [3]


async def test_the_journals_of_a_service_trim_what_is_confirmed(tmp_path: Path) -> None:
    async with running(tmp_path, "processors.batch.flush_interval=0.01") as service:
        journals = [pipeline.journal for pipeline in service.service.graph.pipelines]
        assert all(journal.trims_when_confirmed for journal in journals)
        await service.push({"type": "custom", "value": 1})
        await service.flush()
        await until(lambda: journals[0].bytes == 0)


async def test_nothing_is_trimmed_while_a_file_is_missing(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, presence):
        await append(journal, batch_of(1))
        journal.keep_from(1, 1)
        with elsewhere(journal.path):
            await presence.check()
        assert await trimmed(journal) == [1]
        await presence.check()
        assert await trimmed(journal) == []


async def test_a_missing_file_is_named_to_clients_until_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(tmp_path) as (journal, presence):
        caplog.set_level("INFO", "presence")
        with elsewhere(journal.path):
            for _ in range(3):
                await presence.check()
            with pytest.raises(Overloaded, match=f"^{journal.path} is missing$"):
                await append(journal, batch_of(1))
            assert f"{journal.path} is missing since 20" in str(presence.state)
        await presence.check()
        assert presence.state is None
        await append(journal, batch_of(1))
        assert [record.levelname for record in caplog.records if record.name == "presence"] == ["ERROR", "INFO"]


async def test_a_journal_that_is_set_aside_is_no_alarm(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, presence):
        await append(journal, batch_of(1))
        looks = [0, 0]

        async def look() -> None:
            while True:
                await presence.check()
                looks[presence.fault is not None] += 1

        looking = asyncio.ensure_future(look())
        assert journal._committer is not None
        await journal._committer.call(
            lambda file: file.set_aside(sqlite3.DatabaseError("damaged, says this test")), transaction=False
        )
        await append(journal, batch_of(2))
        seen = looks[0]
        await until(lambda: looks[0] >= seen + 3)
        looking.cancel()
        assert looks[1] == 0
        assert [*journal.path.parent.glob("events.db.corrupt-*")]


async def test_a_file_system_that_does_not_answer_is_a_fault(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, _):
        files = HangingFiles(journal)
        presence = Presence(lambda: [files], lambda: [journal], every=0.05, patience=0.1)
        await presence.check()
        assert "does not answer" in str(presence.fault)
        assert journal.refusal() == presence.fault
        threads = threading.active_count()
        await presence.check()
        assert threading.active_count() == threads
        files.answers.set()
        while presence.fault is not None:
            await presence.check()
        assert journal.refusal() is None


async def test_journals_that_a_reload_opens_and_closes_are_no_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service_module, "Presence", partial(Presence, every=0.001))
    async with running(tmp_path, plugins=[doubles]) as service:
        for _ in range(5):
            assert await reload(service, OTEL_OTLP_ENDPOINT="http://127.0.0.1:1")
            assert len(service.service.graph.pipelines) == 3
            assert (await service.push({"type": "custom", "value": 1})).status_code == 200
            assert await reload(service, OTEL_OTLP_ENDPOINT="")
            assert len(service.service.graph.pipelines) == 2
    assert [record.message for record in caplog.records if record.name == "presence"] == []


async def saved(journal: Journal) -> str:
    """What a rescue says of a journal as it is now."""
    faults = journal.files.examine()
    assert faults
    return str(await rescue([(journal.files, faults)], NOW))


async def test_a_copy_holds_what_is_in_the_log_and_fits_the_log(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, _):
        for value in range(5):
            await append(journal, batch_of(value))
        journal.path.unlink()
        copy = Path(f"{journal.path}.rescued-{STAMP}")
        assert f"move {copy} to {journal.path}" in await saved(journal)
        with pytest.raises(StartError, match=str(copy)):
            refuse_rescued([journal.path])
        again = tmp_path / "again" / "events.db"
        again.parent.mkdir()
        for end in ("", "-wal"):
            shutil.copyfile(f"{copy if not end else journal.path}{end}", f"{again}{end}")
        with closing(sqlite3.connect(again)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("SELECT count(*) FROM journal").fetchall() == [(5,)]


async def test_a_missing_log_is_moved_into_its_database(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, _):
        for value in range(5):
            await append(journal, batch_of(value))
        log = Path(f"{journal.path}-wal")
        log.unlink()  # noqa: ASYNC240
        assert await saved(journal) == f"the content of {log} was moved into {journal.path}"
        refuse_rescued([journal.path])
        alone = tmp_path / "alone.db"
        shutil.copyfile(journal.path, alone)
        with closing(sqlite3.connect(alone)) as connection:
            assert connection.execute("SELECT count(*) FROM journal").fetchall() == [(5,)]


async def test_a_log_beside_another_database_is_renamed(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, _):
        await append(journal, batch_of(1))
        other = tmp_path / "other"
        other.write_bytes(b"another")
        other.rename(journal.path)
        assert f"{journal.path}-wal was renamed to {journal.path}-wal.replaced-{STAMP}" in await saved(journal)
        assert journal.path.read_bytes() == b"another"


async def test_the_files_of_a_missing_folder_are_saved_beside_it_and_overwrite_nothing(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, _):
        await append(journal, batch_of(1))
        shutil.rmtree(journal.path.parent)
        first = Path(f"{journal.path.parent}.rescued-{STAMP}", "events.db")
        assert str(first) in await saved(journal)
        inode = first.stat().st_ino  # noqa: ASYNC240
        assert f"{first}-2" in await saved(journal)
        assert first.stat().st_ino == inode  # noqa: ASYNC240
        with pytest.raises(StartError, match="rescued") as raised:
            refuse_rescued([journal.path])
        assert raised.value.exit_code == 78


async def test_a_copy_that_cannot_be_made_is_named_and_blocks_the_start(tmp_path: Path) -> None:
    async with watched(tmp_path) as (journal, _):
        await append(journal, batch_of(1))
        journal.path.unlink()
        unfinished = journal.path.with_name(f".{journal.path.name}.rescued-{STAMP}.unfinished")
        unfinished.symlink_to(tmp_path / "somewhere else")
        assert f"the content of {journal.path} cannot be saved" in await saved(journal)
        assert not (tmp_path / "somewhere else").exists()
        with pytest.raises(StartError, match="could not save its content"):
            refuse_rescued([journal.path])
