"""Clients push while everything happens to the service and to its collector that may; then all is well, and the oracle is asked.

ORACLE_SECONDS is how long, ORACLE_SEED what happens when. With its negative controls: services that are wrong on purpose.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.faults.changed import plugin
from tests.faults.downstream import ANSWERED, GONE, TIMEOUT, Downstream
from tests.faults.filling import intact, settle
from tests.faults.mayhem import Mayhem, Subject
from tests.faults.oracle import CLIENTS, Client, Fact, Ledger, Verdict, as_points, as_rows, judge, rows
from tests.faults.report import Report
from tests.faults.sizes import sized
from tests.faults.small_disk import tmpfs
from tests.running import rows as all_of
from tests.scrapes import total

SECONDS = int(os.environ.get("ORACLE_SECONDS") or sized(12, 1800))
SEED = os.environ.get("ORACLE_SEED") or f"{random.getrandbits(32):08x}"
KINDS = ("kill", "stop", "pause", "full disk", "lock", "clock", "reload")
LONGEST = sized(2, 5)
"""Seconds that a fault lasts at the most."""
SETTLED = 120.0
"""Seconds: an exporter that has failed waits up to a minute before it tries again."""
ANSWERED_WITHIN = 30.0
ROUND_TRIP = 5.0
SHORT = 4.0
"""Seconds of a negative control."""

CONFIG = """
extends: production
exporters:
  otlp/events: {endpoint: "%s", timeout: %ss}
service:
  pipelines:
    events: {exporters: [sqlite, series, otlp/events]}
    metrics: {exporters: [prometheus]}
"""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(SECONDS + 600)]


@dataclass
class Trial:
    """What one run has shown."""

    ledger: Ledger
    happened: Counter[str]
    failed: Counter[str]
    """How the collector did."""
    lives: int
    reloads: int
    counted: float
    """Events, by Prometheus."""
    round_trip: float
    """Seconds that one push took when all was well again."""
    stored: Counter[Fact]
    forwarded: Counter[Fact]

    @property
    def in_database(self) -> Verdict:
        """What is wrong there."""
        return judge(self.ledger, self.stored, as_rows)

    @property
    def in_collector(self) -> Verdict:
        """What is wrong there; it may have got things twice."""
        return judge(self.ledger, self.forwarded, as_points)


@contextmanager
def pushing(address: str, ledger: Ledger) -> Iterator[None]:
    """Clients push meanwhile. In the end those that wait for a 200 get it, unless something has failed."""
    ended = threading.Event()
    clients = [Client(address, ledger, number, ended) for number in range(CLIENTS)]
    for each in clients:
        each.start()
    patience = 0.0
    try:
        yield
        patience = ANSWERED_WITHIN
    finally:
        ended.set()
        until = time.monotonic() + patience
        for each in clients:
            each.join(max(0, until - time.monotonic()))
            each.abandoned.set()
        for each in clients:
            each.join()


def round_trip(subject: Subject, ledger: Ledger, downstream: Downstream) -> float:
    """Push once more: the seconds until it is stored and forwarded."""
    began = time.monotonic()
    push = "last"
    with closing(Client(subject.address, ledger, 0, threading.Event())) as client:
        while push not in ledger.acknowledged:
            assert time.monotonic() < began + ROUND_TRIP, f"a push was not accepted: {ledger.statuses}"
            client.send(push)
    newest = "SELECT json_extract(dimensions, '$.id') FROM metrics ORDER BY id DESC LIMIT 1"
    while (stored := all_of(subject.data / "metrics.db", newest)) != [(push,)] or not downstream.has(as_points(push)):
        assert time.monotonic() < began + ROUND_TRIP, f"a push did not arrive everywhere; the last stored is {stored}"
        time.sleep(0.02)
    return time.monotonic() - began


def trial(folder: Path, seed: str, seconds: float, kinds: Sequence[str], *arguments: str) -> Trial:
    """Let these happen for so long, and then all be well."""
    drawn, ledger = random.Random(seed), Ledger()
    with (
        tmpfs(folder, ",mode=700", (64 + int(seconds) // 2) * 2**20) as data,
        Downstream(f"{seed} collector", LONGEST) as downstream,
    ):
        subject = Subject(folder, data, CONFIG % (downstream.url, TIMEOUT), drawn, *arguments)
        mayhem = Mayhem(subject, drawn, LONGEST)
        if kinds != KINDS:
            downstream.recover()
        with subject:
            with pushing(subject.address, ledger):
                mayhem.run(seconds, kinds)
                if kinds == KINDS:
                    downstream.wait_until_it_failed_in_each_way()
                downstream.recover()
            settle(subject.base, SETTLED)
            seconds_taken = round_trip(subject, ledger, downstream)
            settle(subject.base, SETTLED)
            shown = httpx.get(subject.scraped, timeout=60).raise_for_status().text
            subject.terminate()
        assert intact(data)
        return Trial(
            ledger=ledger,
            happened=mayhem.happened,
            failed=downstream.failed,
            lives=subject.lives,
            reloads=subject.reloads(),
            counted=total(shown, "mcp_custom_events_total"),
            round_trip=seconds_taken,
            stored=rows(data / "metrics.db"),
            forwarded=downstream.arrived,
        )


def tell(report: Report, seed: str, found: Trial) -> None:
    """What the report says of it."""
    ledger = found.ledger
    report(seed=seed, lives=found.lives, reloads_done=found.reloads, **found.happened)
    report(**{f"collector {mode}": times for mode, times in sorted(found.failed.items())})
    report(sent=len(ledger.sent), acknowledged=len(ledger.acknowledged), answers=dict(sorted(ledger.statuses.items())))
    report(unanswered=ledger.unanswered, replays=ledger.replays, **found.in_database.counts())
    report(**{f"forwarded {what}": count for what, count in found.in_collector.counts().items()})
    report(books="exact", round_trip=f"{found.round_trip:.2f} s")


def test_whatever_happens_what_was_acknowledged_is_stored_once_and_forwarded(tmp_path: Path, report: Report) -> None:
    print(f"\nORACLE_SEED={SEED} ORACLE_SECONDS={SECONDS}")  # noqa: T201
    found = trial(tmp_path, SEED, SECONDS, KINDS)
    tell(report, SEED, found)
    ledger, forwarded = found.ledger, found.in_collector
    assert ledger.wrong == []
    assert ledger.given_up == set()
    assert found.in_database == Verdict(set(), set(), set(), set())
    assert (forwarded.missing, forwarded.spurious, forwarded.corrupted) == (set(), set(), set())
    assert found.counted == found.stored.total()
    # It all did happen, or nothing was shown.
    assert len(ledger.acknowledged) > 100
    assert all(found.happened[kind] for kind in KINDS)
    assert all(found.failed[mode] for mode in (*ANSWERED, GONE))
    assert found.reloads
    assert ledger.statuses[503]
    assert ledger.unanswered
    assert ledger.replays


FORGETFUL = """
from pipeline import hookimpl
from pipeline.journal_file import JournalFile

JournalFile.remember = lambda self, use, outcome: None


@hookimpl
def declare_components():
    return []
"""
"""A service that remembers no idempotency key."""


def test_the_same_oracle_finds_a_service_that_answers_from_memory(tmp_path: Path, report: Report) -> None:
    options = ("--set", "processors.batch.durability=none", "--set", "processors.batch.reserve=0")
    found = trial(tmp_path, "control", SHORT, ["full disk", "kill"], *options)
    assert found.in_database.missing
    report(control="found", **found.in_database.counts())


def test_the_same_oracle_finds_a_service_that_stores_again_what_was_sent_again(tmp_path: Path, report: Report) -> None:
    found = trial(tmp_path, "control", SHORT, ["pause"], *plugin(tmp_path, FORGETFUL))
    assert found.in_database.twice
    report(control="found", **found.in_database.counts())


@pytest.mark.parametrize("wrong", ["missing", "spurious", "corrupted", "twice"])
def test_the_oracle_names_what_is_wrong(wrong: str) -> None:
    ledger = Ledger(sent={"a", "b", "maybe"}, acknowledged={"a", "b"})
    found = Counter(as_rows("a") | as_rows("b"))
    (first, *_) = as_rows("a")
    match wrong:
        case "missing":
            found -= Counter(as_rows("a"))
        case "spurious":
            found.update(as_rows("never"))
        case "corrupted":
            del found[first]
            found[*first[:2], first[2] + 1, *first[3:]] = 1
        case "twice":
            found[first] += 1
    counts = judge(ledger, found, as_rows).counts()
    assert {name for name, count in counts.items() if count} == {wrong}
