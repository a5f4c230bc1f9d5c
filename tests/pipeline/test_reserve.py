"""The reserve: how much room there must be, and what becomes of the file. The disk is played, the file is real."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipeline import reserve
from pipeline.reserve import NOTHING, Reserve, is_out_of_room

MIB = 2**20


class Disk:
    """How much room there is, but for the reserve's file."""

    def __init__(self, room: int) -> None:
        self.room = room

    def free(self, folder: Path) -> int:
        """What is free now."""
        file = folder / "reserve.bin"
        return self.room - (file.stat().st_size if file.exists() else 0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk(100 * MIB)
    monkeypatch.setattr(reserve, "_room", found.free)
    return found


def looked(folder: Path, size: int = 4 * MIB) -> Reserve:
    made = Reserve(folder, size)
    made.look()
    return made


def test_the_file_is_written_and_not_a_hole(tmp_path: Path, disk: Disk) -> None:
    made = looked(tmp_path, 4 * MIB + 1)
    there = made.path.stat()
    assert there.st_size == made.held == 4 * MIB + 1
    assert there.st_blocks * 512 >= there.st_size
    assert there.st_mode & 0o777 == 0o640
    assert made.free == 96 * MIB - 1
    assert made.refusal(of_pushes=True) is None


def test_with_less_room_than_the_reserve_pushes_are_refused_until_there_is_a_little_more(
    tmp_path: Path, disk: Disk
) -> None:
    made = looked(tmp_path)
    for room, refused in ((8 * MIB, False), (8 * MIB - 1, True), (8 * MIB, True), (9 * MIB, False)):
        disk.room = room
        made.look()
        assert (made.refusal(of_pushes=True) is not None) == refused, room
        assert made.held == 4 * MIB


def test_the_refusal_says_how_much_room_there_is_and_must_be(tmp_path: Path, disk: Disk) -> None:
    made = looked(tmp_path)
    disk.room = 7 * MIB
    made.look()
    assert made.refusal(of_pushes=True) == (
        f"the disk is full: 3145728 bytes are free for {tmp_path} (must be 4404019)"
    )


def test_what_is_made_of_accepted_pushes_may_use_half_of_the_room(tmp_path: Path, disk: Disk) -> None:
    made = looked(tmp_path)
    for room, refused in ((6 * MIB, False), (6 * MIB - 1, True)):
        disk.room = room
        made.look()
        assert (made.refusal(of_pushes=False) is not None) == refused


def test_it_is_given_up_for_a_write_that_failed_and_made_again_when_there_is_room_for_two(
    tmp_path: Path, disk: Disk
) -> None:
    made = looked(tmp_path)
    made.release()
    assert (made.held, made.path.exists()) == (0, False)
    assert made.refusal(of_pushes=True) is not None, "at once: what became free is not for pushes"
    disk.room = 8 * MIB - 1
    made.look()
    assert (made.held, made.refusal(of_pushes=True) is None) == (0, False)
    disk.room = 9 * MIB
    made.look()
    assert (made.held, made.refusal(of_pushes=True)) == (4 * MIB, None)


def test_it_is_given_up_when_nothing_is_left_since_others_write_too(tmp_path: Path, disk: Disk) -> None:
    made = looked(tmp_path)
    disk.room = 4 * MIB + NOTHING - 1
    made.look()
    assert not made.path.exists()


def test_the_file_of_the_last_run_is_taken_over_and_one_of_another_size_replaced(tmp_path: Path, disk: Disk) -> None:
    before = looked(tmp_path).path.stat()
    assert looked(tmp_path).path.stat() == before
    assert looked(tmp_path, MIB).path.stat().st_size == MIB
    disk.room = 2 * MIB
    assert looked(tmp_path, MIB).held == MIB, "there is no room for another, and none is needed"


def test_one_that_somebody_has_deleted_is_made_again(tmp_path: Path, disk: Disk) -> None:
    made = looked(tmp_path)
    made.path.unlink()
    made.look()
    assert made.path.stat().st_size == made.held == 4 * MIB
    made.path.unlink()
    disk.room = 7 * MIB
    made.look()
    assert made.held == 0
    assert made.refusal(of_pushes=True) is not None


def test_on_a_full_disk_it_is_given_up_before_anything_is_opened(tmp_path: Path, disk: Disk) -> None:
    made = looked(tmp_path)
    disk.room = 4 * MIB
    Reserve(tmp_path, 4 * MIB).make_room()
    assert not made.path.exists()
    Reserve(tmp_path / "not there", MIB).make_room()


def test_without_a_size_there_is_no_file_and_no_refusal(tmp_path: Path, disk: Disk) -> None:
    disk.room = 1
    made = looked(tmp_path, 0)
    made.release()
    assert (made.free, made.held, made.refusal(of_pushes=True)) == (1, 0, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "accepts"), [(errno.EDQUOT, False), (errno.EACCES, True)])
def test_where_it_cannot_be_written_a_quota_refuses_and_all_else_is_only_reported(
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    accepts: bool,
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(reserve, "_private", refuse)
    made = looked(tmp_path)
    made.look()
    assert (made.refusal(of_pushes=True) is None) == accepts
    assert [record.message for record in caplog.records].count(
        f"cannot keep 4194304 bytes back in {made.path}: [Errno {number}] no"
    ) == 1
    assert not made.path.exists()


def test_a_disk_that_does_not_say_how_full_it_is_changes_nothing(tmp_path: Path) -> None:
    made = looked(tmp_path / "not there")
    assert made.refusal(of_pushes=True) is None


def test_it_knows_which_errors_are_for_want_of_room() -> None:
    full, other = sqlite3.OperationalError("full"), sqlite3.OperationalError("locked")
    full.sqlite_errorcode, other.sqlite_errorcode = sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY
    assert is_out_of_room(full)
    assert not is_out_of_room(other)
    assert not is_out_of_room(sqlite3.ProgrammingError("of the module, without a code"))
    assert is_out_of_room(OSError(errno.EDQUOT, "quota"))
    assert not is_out_of_room(OSError(errno.EIO, "I/O"))
    assert not is_out_of_room(ValueError())
