"""Power cuts: an ext4 on a loop device, and what that device held at one instant.

A copy of the device's image holds what was written through to it. What was only in the page cache of the file system is not
there, as after a real cut. (A disk that lies about its own cache is not played.)
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.programs import lacking, need

SIZE = 64 * 2**20
CLONE_NEWNS = 0x20000
"""A mount namespace, in the terms of unshare(2) and setns(2)."""


def stop(running: subprocess.Popen[bytes]) -> None:
    """Stop the process; it is not running any more when this returns, in none of its threads."""
    os.kill(running.pid, signal.SIGSTOP)
    ended = os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_code == os.CLD_STOPPED, f"the service ended: {ended}"


@contextmanager
def own_mounts() -> Iterator[None]:
    """Whatever is mounted meanwhile is seen by this thread and its children only, and gone with the last of them.

    So that a run that is killed leaves nothing mounted. Fails, or skips, where that is not allowed.
    """
    folder = Path.cwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) != 0:
            lacking(f"no power cuts without the right to mount (root): {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            yield
        finally:
            assert libc.setns(before, CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
            os.chdir(folder)  # setns went to the root
    finally:
        os.close(before)


class Disk:
    """A disk, mounted at `folder`, whose power can be cut."""

    def __init__(self, folder: Path, images: Path, options: str) -> None:
        self.folder = folder
        self._image = images / "disk"
        self._copy = images / "copy"
        self._options = options

    def make(self) -> None:
        """An empty disk, mounted."""
        with self._image.open("wb") as image:
            image.truncate(SIZE)
        made_now = "lazy_itable_init=0,lazy_journal_init=0"  # nothing is written later behind our back
        subprocess.run(["mkfs.ext4", "-q", "-E", made_now, self._image], check=True)
        self._mount()

    def copy(self) -> None:
        """Keep what the device holds now, which is not what the file system would show. Nobody may be using the disk."""
        device = self.folder.stat().st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        assert (block / "loop" / "backing_file").read_text().strip().endswith(f"/{self._image.name}")
        for _ in range(100):
            before = _writes(block)
            shutil.copyfile(self._image, self._copy)
            if before == _writes(block) and before[1] == 0:
                return
        raise AssertionError("the file system writes all the time: no copy is of one instant")

    def cut(self) -> None:
        """The disk is from now on what was copied. Nobody may have files open on it."""
        subprocess.run(["umount", self.folder], check=True)
        self._copy.replace(self._image)
        self._mount()

    def _mount(self) -> None:
        # `-o loop` frees the loop device with the last user of the mount.
        done = subprocess.run(
            ["mount", "-t", "ext4", "-o", f"loop,{self._options}", self._image, self.folder],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            lacking(f"no power cuts without ext4 on a loop device: {done.stderr.strip()}")


def _writes(block: Path) -> tuple[int, int]:
    """How many writes (and discards) a device has completed, and how many requests are on their way."""
    numbers = [int(each) for each in (block / "stat").read_text().split()]
    return numbers[4] + numbers[11], numbers[8]


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Disk]:
    """An empty ext4, mounted in the folder with those options, seen by this thread and its children only."""
    need("mkfs.ext4", "e2fsprogs")
    with own_mounts():
        images, mounted = folder / "images", folder / "disk"
        images.mkdir()
        mounted.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * SIZE}", "tmpfs", images], check=True)
        try:
            made = Disk(mounted, images, options)
            made.make()
            yield made
        finally:
            for each in (mounted, images):
                subprocess.run(["umount", "--lazy", each], check=False, stderr=subprocess.DEVNULL)
