"""The answer leaves after fdatasync, seen from outside: by the system calls of the process.

A killed process proves nothing about that, since the operating system keeps what was written. With its negative control: a
service that is told to survive crashes only must be caught.
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.programs import need
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 900))]

PUSHES = sized(300, 1500)
ANSWER = re.compile(r'\\"status\\":\\"success\\",\\"accepted\\"')
SYNC = re.compile(r"fdatasync\(\d+<[^>]*/journal/events\.db-wal>\) += 0|fdatasync resumed>\) += 0")


def unsynced_answers(folder: Path, *arguments: str, **variables: str) -> tuple[int, int]:
    """Push one after the other, and count the answers and those that no sync came before."""
    trace = folder / "trace"
    calls = "trace=fdatasync,fsync,write,writev,sendto,sendmsg"
    prefix = [need("strace"), "-f", "-y", "-s", "400", "-e", calls, "-o", str(trace)]
    with process(folder, *arguments, prefix=prefix, **variables) as (_, base), httpx.Client(base_url=base) as client:
        for value in range(PUSHES):
            body = {"service": "test", "metrics": [{"type": "custom", "value": value}]}
            assert client.post("/metrics", headers={"X-API-Key": KEY}, json=body).status_code == 200
    answers = unsynced = 0
    synced = False
    for line in trace.read_text(errors="replace").splitlines():
        if SYNC.search(line):
            synced = True
        elif ANSWER.search(line):
            answers += 1
            unsynced += not synced
            synced = False
    return answers, unsynced


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
def test_no_answer_leaves_before_its_data_is_synchronised(tmp_path: Path, server: str, report: Report) -> None:
    answers, unsynced = unsynced_answers(tmp_path, METRICS_SERVER=server)
    report(answers=answers, before_their_sync=unsynced)
    assert (answers, unsynced) == (PUSHES, 0)


def test_a_service_that_does_not_synchronise_is_caught(tmp_path: Path, report: Report) -> None:
    answers, unsynced = unsynced_answers(tmp_path, "--set", "processors.batch.durability=crash")
    assert answers == PUSHES
    assert unsynced > PUSHES // 2
    report(control="found", answers=answers, before_their_sync=unsynced)
