"""How components look at the machine: on which file system a path is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.findings import file_system


def mount_points() -> Iterator[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        yield line.split()[1]


def test_a_mount_point_may_have_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "a b\\é"
    folder.mkdir()
    mounted = str(folder).replace("\\", "\\134").replace(" ", "\\040")
    lines = f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {mounted} rw - nfs4 there:/ rw\n"
    monkeypatch.setattr(Path, "read_bytes", lambda path: lines.encode())
    assert file_system(folder / "metrics-journal") == "nfs4"


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    for place in mount_points():
        if os.access(place, os.X_OK) and Path(place).is_dir() and place != "/":
            named = subprocess.run(
                ["findmnt", "-n", "-o", "FSTYPE", "-T", place], capture_output=True, text=True, check=False
            )
            if named.returncode == 0:
                assert file_system(Path(place) / "not there") == named.stdout.split()[-1]
