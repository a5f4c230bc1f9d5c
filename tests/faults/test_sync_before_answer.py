"""The answer leaves after fdatasync, seen from outside: by the system calls of the process.

A killed process proves nothing about that, since the operating system keeps what was written. With its negative controls: a
service that is told to survive crashes only must be caught, and so must one that answers from memory and synchronises right after.
"""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import plugin
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.programs import need
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 900))]

PUSHES = sized(300, 1500)
CALLS = "trace=read,recvfrom,recvmsg,fdatasync,write,writev,sendto,sendmsg"
RECEIPT = re.compile(r'^(?:<\.\.\. )?(?:read|recvfrom|recvmsg)\b.*"POST /metrics')
ANSWER = re.compile(r'\\"status\\":\\"success\\",\\"accepted\\"')
SYNC = re.compile(r"fdatasync\(\d+<[^>]*/metrics-journal/events\.db-wal>(?:\) += (?P<result>-?\d+)| <unfinished)")
SYNCED = re.compile(r"<\.\.\. fdatasync resumed>\) += (-?\d+)")
EARLY = """
from pipeline import hookimpl
from pipeline.committer import Committer, _succeed

commit = Committer._commit


def answer_and_commit(self, records):
    for record in records:
        self._back(_succeed, record.future, record.outcome)
    return commit(self, records)


Committer._commit = answer_and_commit


@hookimpl
def declare_components():
    return []
"""
"""A service that answers all that it is sent, and then makes it durable."""


class Reader:
    """Reads the system calls of a service that is pushed to by one client. A sync counts for a push that had come when it began."""

    def __init__(self) -> None:
        self.answers = 0
        self.unsynced = 0
        """Answers to pushes that were not synchronised yet."""
        self._synced = False
        self.received = 0
        self._begun: dict[str, int] = {}
        """How many pushes had come when a thread began the sync that it is in."""

    def read(self, line: str) -> None:
        """One line of what strace writes: the thread, and its call, or the beginning or the end of it."""
        thread, _, call = line.partition(" ")
        call = call.lstrip()
        if RECEIPT.search(call):
            self.received += 1
            self._synced = False
        elif begun := SYNC.match(call):
            if begun["result"] is None:
                self._begun[thread] = self.received
            else:
                self._synced |= begun["result"] == "0"
        elif ended := SYNCED.match(call):
            self._synced |= self._begun.pop(thread, -1) == self.received and ended[1] == "0"
        elif ANSWER.search(call):
            self.answers += 1
            self.unsynced += not self._synced


def unsynced_answers(folder: Path, *arguments: str, **variables: str) -> tuple[int, int]:
    """Push one after the other, and count the answers and those that no sync came before."""
    trace = folder / "trace"
    prefix = [need("strace"), "-f", "--seccomp-bpf", "-y", "-s", "400", "-e", CALLS, "-o", str(trace)]
    with process(folder, *arguments, prefix=prefix, **variables) as (_, base), httpx.Client(base_url=base) as client:
        for value in range(PUSHES):
            body = {"service": "test", "metrics": [{"type": "custom", "value": value}]}
            assert client.post("/metrics", headers={"X-API-Key": KEY}, json=body).status_code == 200
    found = Reader()
    for line in trace.read_text(errors="replace").splitlines():
        found.read(line)
    assert found.received == PUSHES
    return found.answers, found.unsynced


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
def test_no_answer_leaves_before_its_data_is_synchronised(tmp_path: Path, server: str, report: Report) -> None:
    answers, unsynced = unsynced_answers(tmp_path, METRICS_SERVER=server)
    report(answers=answers, before_their_sync=unsynced)
    assert (answers, unsynced) == (PUSHES, 0)


def check_found(answers: int, unsynced: int, report: Report) -> None:
    assert answers == PUSHES
    assert unsynced > PUSHES // 2
    report(control="found", answers=answers, before_their_sync=unsynced)


def test_a_service_that_does_not_synchronise_is_caught(tmp_path: Path, report: Report) -> None:
    check_found(*unsynced_answers(tmp_path, "--set", "processors.batch.durability=crash"), report)


def test_a_service_that_answers_just_before_it_synchronises_is_caught(tmp_path: Path, report: Report) -> None:
    check_found(*unsynced_answers(tmp_path, *plugin(tmp_path, EARLY)), report)
