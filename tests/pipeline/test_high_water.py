"""The mark outside of a journal: what it notices, and what it survives."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from pipeline import Overloaded, StartError
from pipeline.high_water import HighWaterMark, Mark
from pipeline.journal import Journal
from pipeline.journal_file import JournalFile
from pipeline.journal_settings import JournalSettings
from pipeline.salvage import Damaged, finish
from tests.pipeline.test_journal import append, batch_of, opened

pytestmark = pytest.mark.anyio

MARK = Mark(b"j" * 16, 7, 70, 3, 30)


def noted(path: Path, *marks: Mark) -> Mark:
    """What is read after these were noted."""
    mark = HighWaterMark(path)
    mark.open()
    for each in marks:
        mark.note(each)
    mark.close()
    return HighWaterMark(path).open()


async def filled(folder: Path, batches: int = 3) -> bytes:
    """A journal that was stopped; its identity."""
    async with opened(folder) as journal:
        for value in range(batches):
            await append(journal, batch_of(value))
        return await journal.call(lambda file: file._identity)


def test_the_newest_is_read_and_nothing_of_a_new_one(tmp_path: Path) -> None:
    assert noted(tmp_path / "m") == Mark()
    assert noted(tmp_path / "m", MARK._replace(last=6), MARK) == MARK


def test_of_two_that_have_got_as_far_the_one_counts_that_has_trimmed_more(tmp_path: Path) -> None:
    assert noted(tmp_path / "m", MARK._replace(trimmed=2), MARK) == MARK
    assert noted(tmp_path / "n", MARK, MARK._replace(trimmed=2)) == MARK


def test_a_mark_that_was_cut_off_while_it_was_written_leaves_the_one_before(tmp_path: Path) -> None:
    newer = MARK._replace(last=8)
    noted(tmp_path / "m", MARK, newer)
    content = bytearray((tmp_path / "m").read_bytes())
    content[128 + 30] ^= 1
    (tmp_path / "m").write_bytes(content)
    assert HighWaterMark(tmp_path / "m").open() == MARK


@pytest.mark.parametrize("content", [b"\xff" * 5000, b"x"])
def test_a_damaged_mark_says_nothing_and_that_is_logged(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "m").write_bytes(content)
    assert HighWaterMark(tmp_path / "m").open() == Mark()
    assert "is damaged" in caplog.text
    assert noted(tmp_path / "m", MARK) == MARK


async def test_a_journal_is_kept_where_no_mark_can_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events.mark").mkdir()
    await filled(tmp_path)
    async with opened(tmp_path) as journal:
        assert journal.last == 3
    assert "cannot be kept" in caplog.text


async def test_the_mark_is_there_before_the_answer_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await append(journal, batch_of(1.0, 2.0))
        identity = await journal.call(lambda file: file._identity)
        assert HighWaterMark(tmp_path / "events.mark").open() == Mark(identity, 1, 2, 0, 0)


async def test_a_journal_that_is_gone_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "events.db").unlink()
    for _ in range(2):
        with pytest.raises(StartError, match="lost or replaced") as refused:
            async with opened(tmp_path):
                raise AssertionError("opened")
        assert refused.value.exit_code == 78
    assert not (tmp_path / "events.db").exists()


async def test_another_journal_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    for folder, batches in (("right", 3), ("other", 2), ("ahead", 4)):
        (tmp_path / folder).mkdir()
        await filled(tmp_path / folder, batches)
    shutil.copyfile(tmp_path / "other" / "events.db", tmp_path / "right" / "events.db")
    with pytest.raises(StartError, match=r"position 3.*ends at 2"):
        async with opened(tmp_path / "right"):
            raise AssertionError("opened")
    shutil.copyfile(tmp_path / "ahead" / "events.db", tmp_path / "right" / "events.db")
    with pytest.raises(StartError, match="was written for"):
        async with opened(tmp_path / "right"):
            raise AssertionError("opened")
    journal = Journal("events", JournalSettings(tmp_path / "right", 100, 1.0, 2**30))
    await journal.open(accept_reset=True)
    assert journal.last == 4
    await journal.close()


async def test_a_journal_that_is_accepted_as_lost_goes_on_above_the_mark(tmp_path: Path) -> None:
    before = await filled(tmp_path)
    (tmp_path / "events.db").unlink()
    journal = Journal("events", JournalSettings(tmp_path, 100, 1.0, 2**30))
    await journal.open(accept_reset=True)
    assert journal.last == 3
    await append(journal, batch_of(1.0))
    await journal.close()
    assert HighWaterMark(tmp_path / "events.mark").open().last == 4
    assert await filled(tmp_path, 0) != before


async def test_a_journal_that_is_shorter_than_it_was_goes_on_above_the_mark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await filled(tmp_path)
    shutil.copyfile(tmp_path / "events.db", tmp_path / "before")
    await filled(tmp_path, 2)
    shutil.copyfile(tmp_path / "before", tmp_path / "events.db")
    async with opened(tmp_path) as journal:
        assert (journal.last, journal.items) == (5, 5)
        assert "ends at position 3, but 5 is known to have been reached" in caplog.text
        assert "2 items are missing" in caplog.text
        await append(journal, batch_of(9.0))
        lost = await journal.read(3)
        assert (lost.upto, lost.batches) == (5, ())
        assert list((await journal.read(5)).batches) == [batch_of(9.0)]


async def test_what_was_trimmed_in_the_lost_part_is_not_trimmed_twice_by_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.journal_file.TRIM_COMMITS", 1)
    await filled(tmp_path)
    shutil.copyfile(tmp_path / "events.db", tmp_path / "before")

    async def trim() -> Mark:
        async with opened(tmp_path) as journal:
            journal.keep_from(journal.last, journal.last)
            await append(journal, batch_of(1.0))
            await append(journal, batch_of(2.0))
            return await journal.call(lambda file: file._noted)

    assert (await trim()).trimmed_items == 3
    shutil.copyfile(tmp_path / "before", tmp_path / "events.db")
    again = await trim()
    assert (again.last, again.items, again.trimmed, again.trimmed_items) == (7, 7, 5, 5)
    async with opened(tmp_path) as journal:
        assert journal.last == 7
    assert not any("corrupt" in file.name for file in journal.settings.folder.iterdir())


async def test_who_is_killed_while_a_file_is_set_aside_finishes_that_at_the_next_start(tmp_path: Path) -> None:
    await filled(tmp_path)
    path, new = tmp_path / "events.db", tmp_path / "events.db.salvaged"
    shutil.copyfile(path, new)
    finish(path)  # it had not come to the swap
    assert not new.exists()
    path.rename(new)
    (tmp_path / "events.db-wal").write_bytes(b"of the damaged one")
    async with opened(tmp_path) as journal:  # it had moved the damaged file away, and not yet its log
        assert journal.last == 3
    assert (tmp_path / "events.db.corrupt-wal").read_bytes() == b"of the damaged one"


async def test_a_new_file_that_could_not_be_put_into_its_place_is_kept_for_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.journal_opening.SET_ASIDE_EVERY", 0)
    rename, failures = Path.rename, [OSError("disk I/O error")]

    def fail_once(path: Path, to: Path) -> Path:
        if path.name.endswith(".salvaged") and failures:
            raise failures.pop()
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_once)
    async with opened(tmp_path) as journal:
        for value in range(3):
            await append(journal, batch_of(value))
        with pytest.raises(Overloaded):
            await journal.call(partial(JournalFile.report, error=Damaged("damaged")))
        assert not failures
        await append(journal, batch_of(3))
        assert await journal.call(lambda file: file.items_after(0)) == 4
        assert (await journal._reader.read(0, 3))[0].batches == [batch_of(0)]
