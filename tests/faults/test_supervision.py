"""A thread or a task of the engine that ends by a mistake: noticed at once, answered with 503, shown in `/health`, exit code 70.

Each is made to end by a plugin, in a real process, when a file appears. Nothing that was answered 200 is lost. With a negative control.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import plugin
from tests.faults.filling import Pushers, faults_of, settle
from tests.faults.sizes import sized
from tests.running import process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 900))]

SOFTWARE = 70
"""EX_SOFTWARE of sysexits.h."""
NOTICED = 5.0
"""Seconds until the health says so; a tenth of one where nothing else runs."""

BREAKING = """
import ctypes
import os
import time

import pipeline.books
import pipeline.journal_file
import pipeline.journal_opening
import pipeline.reserve
import pipeline.worker
import plugins.extensions.database.extension
from pipeline import hookimpl


def once_told(owner, method):
    before = getattr(owner, method)

    def call(*arguments, **named):
        if os.path.exists("break"):
            if not os.path.exists("broken"):
                with open("broken", "w") as file:
                    file.write(str(time.monotonic()))
            raise BREAK("a mistake of ours")
        return before(*arguments, **named)

    setattr(owner, method, call)


def end_thread_once_told():
    from plugins.extensions.database.extension import DatabaseExtension

    watch = DatabaseExtension._watch_threads

    async def watch_and_end(self, connections):
        import asyncio

        async def end():
            while not os.path.exists("break"):
                await asyncio.sleep(0.05)
            thread = connections[WHICH]._thread
            connections[WHICH]._tx.put_nowait((None, lambda: None))
            while thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
                connections[WHICH]._tx.put_nowait((None, lambda: None))
                await asyncio.sleep(0.01)

        self.ending = asyncio.ensure_future(end())
        await watch(self, connections)

    DatabaseExtension._watch_threads = watch_and_end


BREAK = RuntimeError
WHICH = 0
{what}


@hookimpl
def declare_components():
    return []
"""

COMMITTER = 'for each in ("write", "rollback"): once_told(pipeline.journal_file.JournalFile, each)'
WORKER = 'once_told(pipeline.worker.Worker, "_wake_when_due")'
RESERVE = 'once_told(pipeline.reserve.Reserve, "look")'
WRITER = "end_thread_once_told()"
READER = "WHICH = 1; end_thread_once_told()"


@dataclass
class Broken:
    """What became of a service."""

    pushers: Pushers
    code: int | None = None
    """Its exit code, if it has ended."""
    health: str = ""
    """What that said when it was bad."""
    noticed: float = 0
    """When that was, in seconds of the monotonic clock."""


def break_it(folder: Path, what: str, patience: float = 20) -> Broken:
    """Push until it ends, for these seconds at the most."""
    with (
        process(folder, *plugin(folder, BREAKING.replace("{what}", what))) as (running, base),
        Pushers(base) as pushers,
    ):
        broken = Broken(pushers)
        pushers.wait_for(200, more=20, seconds=20)
        pushers.ending = True
        (folder / "break").touch()
        deadline = time.monotonic() + patience
        while running.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{base}/health/ready", timeout=5)
                if answer.status_code == 503 and not broken.health:
                    broken.health, broken.noticed = answer.text, time.monotonic()
        broken.code = running.poll()
        running.kill()  # or its clients wait for the answers that a service that has noticed nothing never gives
        pushers.end()
    (folder / "break").unlink()
    return broken


def check_stored(folder: Path, pushers: Pushers) -> None:
    """Start it without the mistake: everything is there."""
    with process(folder) as (_, base):
        settle(base, 20)
    assert faults_of(pushers, folder / "metrics.db") == {}


@pytest.mark.parametrize("part", [COMMITTER, WORKER, RESERVE], ids=["committer", "worker", "reserve"])
def test_a_part_of_the_engine_that_ends_ends_the_service(tmp_path: Path, part: str) -> None:
    broken = break_it(tmp_path, part)
    assert broken.code == SOFTWARE
    assert "a mistake of ours" in broken.health, "the health did not say why"
    assert broken.noticed - float((tmp_path / "broken").read_text()) < NOTICED
    assert broken.pushers.wrong == []
    assert "ends itself, to be started anew" in (tmp_path / "service.log").read_text()
    check_stored(tmp_path, broken.pushers)


@pytest.mark.parametrize("which", [WRITER, READER], ids=["writer", "reader"])
def test_a_thread_of_the_database_that_ends_ends_the_process(tmp_path: Path, which: str) -> None:
    broken = break_it(tmp_path, which)
    assert broken.code == SOFTWARE
    assert "a thread of the database" in (tmp_path / "service.log").read_text()
    check_stored(tmp_path, broken.pushers)


UNSUPERVISED = (
    """
import pipeline.journal
pipeline.journal.Journal._stopped = lambda self: None
"""
    + COMMITTER
)


def test_a_service_that_does_not_notice_is_found(tmp_path: Path) -> None:
    assert break_it(tmp_path, UNSUPERVISED, patience=4).code != SOFTWARE
