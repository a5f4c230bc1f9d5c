"""Private folders, and the lock that keeps a second process off the same data."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import FileLock, StartError, check_exists, make_private_folder

HOLD = """
import sys
from pathlib import Path
from pipeline import FileLock, StartError

lock = FileLock(Path(sys.argv[1]))
try:
    lock.acquire()
except StartError as error:
    sys.exit(f"{error.exit_code} {error}")
print("held", flush=True)
sys.stdin.read()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def holder(path: Path, *, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """A real process that holds the lock, or says why it cannot."""
    command = [sys.executable, "-c", before + HOLD, str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_held(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"


def test_a_folder_and_its_parents_are_private_to_user_and_group(tmp_path: Path) -> None:
    with umask(0o022):
        make_private_folder(tmp_path / "a" / "b" / "c")
    assert [mode_of(tmp_path / part) for part in ("a", "a/b", "a/b/c")] == [0o750] * 3


def test_a_stricter_umask_is_respected(tmp_path: Path) -> None:
    with umask(0o077):
        make_private_folder(tmp_path / "a" / "b")
    assert mode_of(tmp_path / "a") == mode_of(tmp_path / "a" / "b") == 0o700


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "file").touch()
    make_private_folder(folder)
    assert mode_of(folder) == 0o777
    assert (folder / "file").exists()


def test_a_folder_behind_a_symbolic_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    make_private_folder(tmp_path / "link" / "data")
    assert (tmp_path / "disk" / "data").is_dir()


def test_a_relative_folder_is_made_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_private_folder(Path("one/two"))
    assert (tmp_path / "one" / "two").is_dir()


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_one_line_with_its_name_and_the_reason(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=rf"^cannot create the folder {tmp_path / folder}: ") as caught:
        make_private_folder(tmp_path / folder)
    assert caught.value.exit_code == 73


def test_a_folder_that_we_may_not_write_in_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o550)
    user = os.getuid() or 65534  # root may write everywhere
    os.setresuid(user, -1, -1)
    try:
        with pytest.raises(StartError, match=rf"{tmp_path}: it is not writable for user {user}$") as caught:
            make_private_folder(tmp_path)
    finally:
        os.setresuid(os.geteuid(), -1, -1)
    assert caught.value.exit_code == 73


def test_a_lock_is_private_and_says_who_holds_it_now(tmp_path: Path) -> None:
    (tmp_path / "b.lock").write_text("12345678901234567890\n")
    other = FileLock(tmp_path / "b.lock")
    other.acquire()
    assert other.path.read_text() == f"{os.getpid()}\n"
    other.release()
    with umask(0o022):
        lock = FileLock(tmp_path / "a.lock")
        lock.acquire()
    assert mode_of(tmp_path / "a.lock") == 0o640
    assert (tmp_path / "a.lock").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_second_process_is_turned_away_and_told_who_holds_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    lock.acquire()
    with holder(lock.path) as second:
        _, said = second.communicate()
    expected = f"{lock.path} is held by process {os.getpid()}: only one service may use this data"
    assert said == f"73 {expected}\n"
    lock.release()


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    with holder(lock.path) as process:
        wait_until_held(process)
        with pytest.raises(StartError, match=rf"is held by process {process.pid}:"):
            lock.acquire()
        process.kill()
        process.wait()
        lock.acquire()
        assert lock.path.read_text() == f"{os.getpid()}\n"
    lock.release()


def test_a_lock_that_was_released_is_free_for_others_and_for_us(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()
    with holder(lock.path) as process:
        wait_until_held(process)
    lock.acquire()
    lock.release()


def test_two_locks_of_one_process_keep_each_other_out(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    first.acquire()
    with pytest.raises(StartError, match="is held by process"):
        second.acquire()
    second.release()
    with pytest.raises(StartError, match="is held by process"):
        FileLock(first.path).acquire()
    first.release()


def test_a_child_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    lock.acquire()
    command = [sys.executable, "-c", "print('up', flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, close_fds=False) as child:
        assert child.stdout is not None
        child.stdout.readline()
        lock.release()
        lock.acquire()
        child.communicate("\n")
    lock.release()


def test_a_file_that_is_a_symbolic_link_or_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for path in (tmp_path / "link", tmp_path / "nowhere" / "a.lock", tmp_path):
        with pytest.raises(StartError, match=rf"^cannot open {path}: ") as caught:
            FileLock(path).acquire()
        assert caught.value.exit_code == 73
    assert not (tmp_path / "target").exists()


def test_a_full_disk_does_not_keep_the_lock_from_being_held(tmp_path: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    with holder(tmp_path / "a.lock", before=full) as process:
        wait_until_held(process)
        with pytest.raises(StartError, match="is held by process unknown:"):
            FileLock(tmp_path / "a.lock").acquire()


def test_a_file_that_a_command_must_not_make_is_looked_for(tmp_path: Path) -> None:
    there = tmp_path / "a.db"
    there.touch()
    check_exists("database", there)
    with pytest.raises(StartError, match=rf"^there is no database {tmp_path}/b.db yet$") as caught:
        check_exists("database", tmp_path / "b.db")
    assert caught.value.exit_code == 2
    with pytest.raises(StartError, match=rf"^cannot look at the database {there}/c.db: Not a directory$"):
        check_exists("database", there / "c.db")
