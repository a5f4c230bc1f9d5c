"""At the first start, the names of new files and folders are on the disk before the first answer, seen by the system calls.

The file systems that a power cut can be tried on here (test_power_cut.py) write a new file's name together with its data, so
they cannot show it; others need not. With its negative control: a service that does not synchronise folders must be caught.
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.programs import need
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

MADE = re.compile(r'(?:mkdir\(|openat\([^,]*, )"([^"]+)", (?:0\d+|\S*O_CREAT)')
SYNCED = re.compile(r"(?:fsync|fdatasync)\(\d+<([^>]+)>")
ANSWER = '\\"accepted\\"'
NEED_NOT_LAST = (".lock", "-shm", "-journal", "reserve.bin")
"""Files that are made anew, and journals of changes that were committed when the answer leaves."""

WRONG = """
import pipeline.files
from pipeline import hookimpl

pipeline.files.sync_folder = lambda folder: None


@hookimpl
def declare_components():
    return []
"""
"""A plugin with which the service synchronises files, and no folders itself."""


def without_a_name(folder: Path, *arguments: str) -> set[str]:
    """Start with folders that are not there, push once, and see what was made in a folder that was not synchronised since."""
    data = folder / "new" / "data"
    trace = folder / "trace"
    calls = "trace=mkdir,openat,fsync,fdatasync,write,writev,sendto,sendmsg"
    prefix = [need("strace"), "-f", "-y", "-s", "400", "-e", calls, "-o", str(trace)]
    variables = {"SQLITE_DB_PATH": str(data / "metrics.db")}
    with process(folder, *arguments, prefix=prefix, **variables) as (_, base):
        body = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
        assert httpx.post(f"{base}/metrics", headers={"X-API-Key": KEY}, json=body).status_code == 200
    return at_the_first_answer(trace, folder / "new")


def at_the_first_answer(trace: Path, new: Path) -> set[str]:
    """What a trace has made there whose folder was not synchronised before the first answer."""
    made: set[Path] = set()
    waiting: set[Path] = set()
    for line in trace.read_text(errors="replace").splitlines():
        if found := MADE.search(line):
            path = Path(found[1])
            if path.is_relative_to(new) and path not in made and not path.name.endswith(NEED_NOT_LAST):
                made.add(path)
                waiting.add(path)
        elif found := SYNCED.search(line):
            waiting = {path for path in waiting if path.parent != Path(found[1])}
        elif ANSWER in line:
            assert new / "data" / "metrics-journal" / "events.db-wal" in made
            return {str(path.relative_to(new)) for path in waiting}
    raise AssertionError("no answer in the trace")


def test_all_that_the_first_start_makes_has_its_name_on_the_disk_before_the_first_answer(tmp_path: Path) -> None:
    assert without_a_name(tmp_path) == set()


def test_a_service_that_does_not_synchronise_folders_is_caught(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "wrong.py").write_text(WRONG)
    folders = without_a_name(tmp_path, "--plugins-dir", str(tmp_path / "plugins"))
    assert {".", "data"} <= folders  # SQLite, and what makes `state.db`, synchronise the folder of the journal
