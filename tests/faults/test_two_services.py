"""Two services in one folder, under load and `kill -9`: each event is in its own service's database once, and in no other.

With its negative control: services that share a journal must be found by the same comparison, or it would prove nothing.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import plugin
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.test_kill import Books, client, compared, figures, stored
from tests.running import KEY, process

pytestmark = [pytest.mark.faults, pytest.mark.timeout(sized(120, 1200))]

ROUNDS = sized(2, 10)
CLIENTS = 8
NAMES = ("metrics.db", "staging_metrics.db")

SHARED = """
import pipeline.journal
from pipeline import hookimpl


async def claim(self, holder, store, *, accept_new=False):
    pass


pipeline.journal.Journal.claim = claim


@hookimpl
def declare_components():
    return []
"""
"""A plugin with which a journal belongs to any database, as in earlier versions."""


def load(base: str, books: Books, prefix: int, seconds: float, kill: threading.Event) -> None:
    ended = threading.Event()
    clients = [
        threading.Thread(target=client, args=(base, books, prefix + number, ended), daemon=True)
        for number in range(CLIENTS)
    ]
    for each in clients:
        each.start()
    time.sleep(seconds)  # the moment of the kill is the point of the test
    kill.set()
    ended.set()
    for each in clients:
        each.join(timeout=10)


def round_of(folder: Path, name: str, books: Books, *arguments: str, **more: str) -> None:
    """Start the service of that database, load it, kill it."""
    variables = {"SQLITE_DB_PATH": str(folder / name), "FLUSH_INTERVAL_SECONDS": "0.2", **more}
    with process(folder, *arguments, **variables) as (running, base):
        kill = threading.Event()
        loading = threading.Thread(target=load, args=(base, books, 0, random.uniform(0.2, 0.8), kill))
        loading.start()
        kill.wait()
        running.kill()
        loading.join()


def finished(folder: Path, name: str, *arguments: str, **more: str) -> None:
    """Start it once more, and have everything stored."""
    with process(folder, *arguments, SQLITE_DB_PATH=str(folder / name), **more) as (_, base):
        answer = httpx.post(f"{base}/flush", headers={"X-API-Key": KEY}, timeout=60)
        assert answer.json()["status"] == "success"


def test_two_services_in_one_folder_each_store_their_own_events_once(tmp_path: Path, report: Report) -> None:
    books = {name: Books() for name in NAMES}
    for number in range(ROUNDS):
        if number % 2:  # both at once
            both = [threading.Thread(target=round_of, args=(tmp_path, name, books[name])) for name in NAMES]
            for each in both:
                each.start()
            for each in both:
                each.join()
        else:
            for name in NAMES:
                round_of(tmp_path, name, books[name])
    for name in NAMES:
        finished(tmp_path, name)
    found = {name: stored(tmp_path / name) for name in NAMES}
    for name in NAMES:
        report(**{f"{name}: {what}": count for what, count in figures(books[name], found[name]).items()})
    report(kills=2 * ROUNDS)
    assert all(len(each.acknowledged) > 10 * ROUNDS for each in books.values())
    nothing: dict[str, set[str]] = {"lost": set(), "never sent": set(), "in part or twice": set()}
    assert {name: compared(books[name], found[name]) for name in NAMES} == dict.fromkeys(NAMES, nothing)


def test_services_that_share_a_journal_are_found(tmp_path: Path, report: Report) -> None:
    books, changed = {name: Books() for name in NAMES}, plugin(tmp_path, SHARED)
    shared = {"METRICS_JOURNAL_DIR": str(tmp_path / "shared")}
    never = ("--set", "processors.batch.size=100000", "--set", "processors.batch.flush_interval=1h", *changed)
    round_of(tmp_path, NAMES[1], books[NAMES[1]], *never, **shared)
    finished(tmp_path, NAMES[0], *changed, **shared)
    found = {name: stored(tmp_path / name) for name in NAMES}
    wrong = figures(books[NAMES[1]], found[NAMES[1]])
    report(control="found", **wrong)
    assert wrong["lost"] > 0
    assert compared(books[NAMES[0]], found[NAMES[0]])["never sent"], "the events of the other service are missing"
